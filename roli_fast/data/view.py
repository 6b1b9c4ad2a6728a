"""How a picture of any size becomes the pixels that a model is given."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..checks import refuse

# Random numbers in [0, 1) that augment an image: the crop's place, down and across, and whether to mirror it.
Draws = Sequence[float]
DRAWS = 3


@dataclasses.dataclass(frozen=True)
class View:
    """What is shown of a picture: it is resized, and a square is cropped from it. In training, the square is
    at a random place and may be mirrored.

    Pixels are never normalised: an attack acts on them, and the model normalises.

    resize: length of the shorter side in pixels, bilinear and antialiased as PIL does it; None: not resized.
    crop: side of the square in pixels, which outside training is at the centre; None: not cropped.
    hflip: probability of mirroring left and right in training.

    Raises ValueError for a crop larger than ``resize`` or without it, and for an hflip outside [0, 1].
    """

    resize: int | None = None
    crop: int | None = None
    hflip: float = 0.0

    def __post_init__(self) -> None:
        if self.crop is not None and (self.resize is None or not 0 < self.crop <= self.resize):
            refuse("crop", self.crop, f"1 .. resize = {self.resize}")
        if not 0 <= self.hflip <= 1:
            refuse("hflip", self.hflip, "a probability from 0 to 1")

    def shown(self, picture: Image.Image, draws: Draws | None = None) -> Tensor:
        """The pixels (C, H, W) of a picture, uint8; augmented if draws are given."""
        resized = self.resized(picture)
        return F.pil_to_tensor(self.centre(resized) if draws is None else self.random(resized, draws))

    def resized(self, picture: Image.Image) -> Image.Image:
        return picture if self.resize is None else F.resize(picture, [self.resize])

    def centre(self, resized: Any) -> Any:
        """The square at the centre of a resized picture, or of resized images (..., H, W)."""
        return resized if self.crop is None else F.center_crop(resized, [self.crop, self.crop])

    def random(self, resized: Image.Image, draws: Draws) -> Image.Image:
        """What training sees of a resized picture, by these draws."""
        top, left, mirrored = self._place(resized.height, resized.width, draws)
        if self.crop is not None:
            resized = F.crop(resized, top, left, self.crop, self.crop)
        return F.hflip(resized) if mirrored else resized

    def random_batch(self, resized: Tensor, draws: Sequence[Draws]) -> Tensor:
        """As :meth:`random`, for resized images (n, C, H, W) with draws for each."""
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
