"""Resizing as part of the model, so that attacks act on pixels of the data's own size."""

import torch.nn.functional as F
from torch import Tensor, nn


class Resized(nn.Module):
    """``model(images resized to size)``, bilinearly and antialiased, as torchvision resizes a tensor.

    It may stand behind a normalisation as well as before it: each resized pixel is a mean of pixels.

    model: takes images (N, C, *size).
    size: (H, W).
    """

    def __init__(self, model: nn.Module, size: tuple[int, int]):
        super().__init__()
        self.model = model
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        return self.model(F.interpolate(images, self.size, mode="bilinear", antialias=True))
