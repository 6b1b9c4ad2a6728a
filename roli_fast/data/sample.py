"""A part of a set, as evaluation looks at it."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..checks import refuse
from .images import ImageSet
from .loader import Loader
from .stream import ImageStream


class Sample:
    """(images, labels) in batches, the same at each pass: at most so many, evenly spaced in the set.

    count: how many; None: all. Of a stream, which is mixed already, its first.
    device: where the batches are wanted. Of several processes, each has all.

    Raises ValueError for a set without images.
    """

    def __init__(
        self,
        images: ImageSet | ImageStream,
        count: int | None,
        batch_size: int,
        *,
        workers: int | None = None,
        device: torch.device | str = "cpu",
    ):
        self.images = len(images) if count is None else min(count, len(images))
        if self.images == 0:
            refuse("images", "none", "a set that has some")
        self._labels: Tensor | None = None
        if isinstance(images, ImageSet):
            images = images.select([i * len(images) // self.images for i in range(self.images)])
            self._labels = images.labels
        self._loader = Loader(images, batch_size, workers=workers, rank=0, world_size=1)
        self._device = torch.device(device)

    @property
    def labels(self) -> Tensor:
        """(images,) int64, on the CPU; of a stream, this takes a pass."""
        if self._labels is None:
            self._labels = torch.cat([labels.cpu() for _, labels in self])
        return self._labels

    def __len__(self) -> int:
        """Batches; of a stream, which several workers read, there may be more."""
        return math.ceil(self.images / self._loader.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        left = self.images
        for images, labels, _ in self._loader:
            yield images[:left].to(self._device), labels[:left].to(self._device)
            left -= len(images)
            if left <= 0:  # of a stream, whose workers each end with a batch that is not full
                break
