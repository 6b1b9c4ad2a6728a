"""Resizing as part of the model, so that attacks act on pixels of the data's own size."""

import torch.nn.functional as F
from torch import Tensor, nn


class Resized(nn.Module):
    """``model(images enlarged to size)``, bilinearly, in the images' dtype.

    It may be placed before or after a normalisation, with the same result, since each new pixel is a weighted
    mean of old ones. Images larger than ``size`` are made smaller without antialiasing; that is better done
    to the data, before they are attacked.

    model: takes images (N, C, *size).
    size: (H, W), in pixels.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int]):
        super().__init__()
        self.model = model
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        # Not antialiased: that only matters for shrinking, and torch lacks it in half precision on CPUs.
        return self.model(F.interpolate(images, self.size, mode="bilinear", align_corners=False))
