"""From a picture of any size to the pixels that a model is given."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image
from torchvision.transforms.v2 import functional as F

from .checks import refuse

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

    def random(self, resized: Any, draws: Draws) -> Any:
        """The same in training."""
        down, across, mirror = draws
        if self.crop is not None:
            height, width = F.get_size(resized)
            top = math.floor(down * (height - self.crop + 1))
            left = math.floor(across * (width - self.crop + 1))
            resized = F.crop(resized, top, left, self.crop, self.crop)
        return F.hflip(resized) if mirror < self.hflip else resized
