"""A sample of a data set, for evaluation."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..checks import refuse
from .images import ImageSet
from .loader import Loader
from .stream import ImageStream


class Sample:
    """Batches (images, labels) of some images of a data set, evenly spaced in it, and the same in each pass.

    count: number of images, at most; None: all. Of a stream, which is mixed already, the first are taken.
    workers: as in :class:`Loader`.
    device: the device to which batches are moved.

    With several processes, each gets all batches. Raises ValueError for a data set without images.
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
        """The labels of all images, (images,) int64, on the CPU. Of a stream, this takes a pass."""
        if self._labels is None:
            self._labels = torch.cat([labels.cpu() for _, labels in self])
        return self._labels

    def __len__(self) -> int:
        """The number of batches. A stream that several workers read may have more."""
        return math.ceil(self.images / self._loader.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        left = self.images
        for images, labels, _ in self._loader:
            yield images[:left].to(self._device), labels[:left].to(self._device)
            left -= len(images)
            if left <= 0:  # in a stream, where each worker ends with a batch that is not full
                break
