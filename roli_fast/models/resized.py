"""Resizing as part of the model, so that attacks act on pixels of the data's own size."""

import torch.nn.functional as F
from torch import Tensor, nn


class Resized(nn.Module):
    """``model(images enlarged to size)``, bilinearly, in the images' dtype.

    It may stand behind a normalisation as well as before it: each new pixel is a weighted mean of old ones.
    What is larger than ``size`` is sampled without a filter: data are made smaller before they are attacked.

    model: takes images (N, C, *size).
    size: (H, W).
    """

    def __init__(self, model: nn.Module, size: tuple[int, int]):
        super().__init__()
        self.model = model
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        # Not antialiased: that is the same for enlarging, and torch has it in no half precision on the CPU.
        return self.model(F.interpolate(images, self.size, mode="bilinear", align_corners=False))
