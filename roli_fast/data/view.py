"""From a picture of any size to the pixels that a model is given."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..checks import refuse

# What augments an image, uniform in [0, 1): where the crop is, down and across, and whether it is mirrored.
Draws = Sequence[float]
DRAWS = 3


@dataclasses.dataclass(frozen=True)
class View:
    """What of a picture is shown: a square of it, resized, in training at a random place and mirrored.

    Pixels are never normalised: an attack acts on them, and the model normalises.

    resize: the shorter side in pixels, bilinear and antialiased as PIL does it; None: as it is.
    crop: the side of the square, at the centre outside training; None: everything.
    hflip: probability, in training, of mirroring left and right.

    Raises ValueError for a crop larger than what it is cut from, and for an hflip outside [0, 1].
    """

    resize: int | None = None
    crop: int | None = None
    hflip: float = 0.0

    def __post_init__(self) -> None:
        if self.crop is not None and (self.resize is None or not 0 < self.crop <= self.resize):
            refuse("crop", self.crop, f"1 .. resize = {self.resize}")
        if not 0 <= self.hflip <= 1:
            refuse("hflip", self.hflip, "a probability from 0 to 1")

    def resized(self, picture: Image.Image) -> Image.Image:
        return picture if self.resize is None else F.resize(picture, [self.resize])

    def centre(self, resized: Any) -> Any:
        """Of a resized picture, or of resized images (..., H, W)."""
        return resized if self.crop is None else F.center_crop(resized, [self.crop, self.crop])

    def random(self, resized: Image.Image, draws: Draws) -> Image.Image:
        """The same in training."""
        top, left, mirrored = self._place(resized.height, resized.width, draws)
        if self.crop is not None:
            resized = F.crop(resized, top, left, self.crop, self.crop)
        return F.hflip(resized) if mirrored else resized

    def random_batch(self, resized: Tensor, draws: Sequence[Draws]) -> Tensor:
        """The same for resized images (n, C, H, W), with draws for each."""
        height, width = resized.shape[-2:]
        places = [self._place(height, width, d) for d in draws]
        if self.crop is not None:
            resized = torch.stack(
                [
                    image[:, top : top + self.crop, left : left + self.crop]
                    for image, (top, left, _) in zip(resized, places, strict=True)
                ]
            )
        mirrored = torch.tensor([m for _, _, m in places])
        return torch.where(mirrored[:, None, None, None], resized.flip(-1), resized)

    def _place(self, height: int, width: int, draws: Draws) -> tuple[int, int, bool]:
        """Top and left of the crop, and whether it is mirrored."""
        down, across, mirror = draws
        side = self.crop or 0
        top, left = math.floor(down * (height - side + 1)), math.floor(across * (width - side + 1))
        return top, left, mirror < self.hflip
