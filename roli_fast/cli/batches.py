"""Images of a split, as subcommands that evaluate look at them."""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..data import ImageSet, ImageStream, Loader, Splits


class Batches:
    """(images, labels) on a device, the same at each pass: at most so many, evenly spaced in the split."""

    def __init__(
        self,
        splits: Splits,
        split: str,
        images: int | None,
        batch_size: int,
        workers: int | None,
        device: torch.device,
    ):
        chosen: ImageSet | ImageStream = getattr(splits, split)
        self.images = len(chosen) if images is None else min(images, len(chosen))
        if self.images == 0:
            raise ValueError(f"--split: got {split}, which has no images, accepted: one that has")
        if isinstance(chosen, ImageSet):  # a stream is mixed already, and read from its beginning
            chosen = chosen.select([i * len(chosen) // self.images for i in range(self.images)])
        # Every process sees all: evaluate() shares the batches.
        self._loader = Loader(chosen, batch_size, workers=workers, rank=0, world_size=1)
        self._device = device

    def __len__(self) -> int:
        return math.ceil(self.images / self._loader.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        left = self.images
        for images, labels, _ in itertools.islice(self._loader, len(self)):
            yield images[:left].to(self._device), labels[:left].to(self._device)
            left -= len(images)
