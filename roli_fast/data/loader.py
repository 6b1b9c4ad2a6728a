"""Batches of a data set, in an order that seed and epoch determine."""

import itertools
import os
from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from .. import distributed
from ..checks import refuse
from .batch import Batch, generator, received
from .images import ImageSet, Pictures, StoredImages
from .stream import ImageStream
from .view import DRAWS

# The rows of a batch, and the random numbers that augment each of them, if any.
_Request = tuple[list[int], list[list[float]] | None]


class Loader:
    """Batches of a data set, on the CPU: tuples of images (n, C, H, W), labels (n,) int64 and index (n,)
    int64, each image's place in the data set.

    ``loader.epoch(e)`` iterates over epoch e. Order and augmentation depend only on seed, epoch and data set,
    not on workers or on any global random state: ``loader.epoch(e, start=s)`` goes on where a run was
    interrupted, with bitwise the same batches.

    With several processes, each has its own share of the images. In training, all have the same number of
    batches, and their batches number s together hold the images of batch s of a single process with
    ``world_size`` times the batch size. In evaluation, each image is in one process, once; the processes'
    numbers of batches may differ by one.

    images: as :func:`load` returns them.
    batch_size: images in a batch of one process.
    train: whether batches are in random order, augmented, and without an incomplete last batch (unless it is
        the only one). Otherwise they are in the data set's order, and ``iter(loader)`` iterates over them.
    augment: whether images are augmented; None: only in training. With train=False, each epoch then has all
        images in the data set's order, augmented differently.
    seed: of order and augmentation.
    workers: number of processes that decode; None: one per core, at most 4. None are needed for a split whose
        images have one size and take at most 2 GB when decoded: it is decoded once, in this process.
    rank, world_size: the number of this process, and how many there are; None: as torch.distributed says. For
        evaluate(), which shares out the batches itself, give rank=0 and world_size=1.

    A stream (:class:`ImageStream`) is in timm's order, which also depends on the numbers of workers and
    processes. The index is then a place in that order, ``start`` has to read what it skips, and training
    reads the shards again if they end before ``len(loader)`` batches.

    An epoch ends when the next one begins. Raises ValueError for an argument out of range and for images of
    different sizes, and OSError, with the image's name, for one that cannot be decoded.
    """

    def __init__(
        self,
        images: ImageSet | ImageStream,
        batch_size: int,
        *,
        train: bool = False,
        augment: bool | None = None,
        seed: int = 0,
        workers: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        if batch_size < 1:
            refuse("batch_size", batch_size, "an integer >= 1")
        workers = min(4, os.cpu_count() or 1) if workers is None else workers
        if workers < 0:
            refuse("workers", workers, "an integer >= 0, or None")
        rank = distributed.rank() if rank is None else rank
        world_size = distributed.world_size() if world_size is None else world_size
        if not 0 <= rank < world_size:
            refuse("rank", rank, f"0 .. world_size - 1 = {world_size - 1}")
        if train and len(images) < world_size:
            refuse("images", len(images), f"one for each of {world_size} processes, or more")
        if isinstance(images, ImageStream) and augment not in (None, train):
            refuse("augment", augment, f"None, or train: {train}, for a stream")
        if isinstance(images, ImageStream) and images.padded and not train and world_size > 1:
            refuse("images", f"a stream that {world_size} processes would pad", "evaluation in one process")
        self.images = images.stored() if isinstance(images, Pictures) else images
        self.batch_size = batch_size
        self.train = train
        self.augment = train if augment is None else augment
        self.seed = seed
        self._workers = workers
        self._rank = rank
        self.world_size = world_size
        self._requested = _Requested()
        self._decoding: DataLoader | None = None

    def __len__(self) -> int:
        """The number of batches of an epoch in this process."""
        count, left = divmod(len(self.images), self.world_size)
        if self.train:
            return max(count // self.batch_size, 1)
        return -(-(count + (self._rank < left)) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self.train:
            refuse("loader", "iter() in training", "loader.epoch(e): no two epochs are the same", TypeError)
        return self.epoch(0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, beginning with batch number ``start``."""
        if epoch < 0:
            refuse("epoch", epoch, "an integer >= 0")
        if not 0 <= start <= len(self):
            refuse("start", start, f"0 .. {len(self)}, the batches of an epoch")
        if isinstance(self.images, ImageStream):
            batches = self.images.batches(
                self.batch_size, self.train, self.seed, epoch, self._workers, self._rank, self.world_size
            )
            return itertools.islice(batches, start, len(self) if self.train else None)
        requests = itertools.islice(self._requests(epoch), start, None)
        if self._workers == 0 or isinstance(self.images, StoredImages):
            fetched = map(_Fetched(self.images).__getitem__, requests)
            return map(_pinned if torch.cuda.is_available() else received, fetched)
        self._requested.requests = requests
        if self._decoding is None:
            self._decoding = DataLoader(
                _Fetched(self.images),
                batch_size=None,
                sampler=self._requested,
                num_workers=self._workers,
                persistent_workers=True,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # by default, the global one would be used
            )
        return map(received, self._decoding)

    def _requests(self, epoch: int) -> Iterator[_Request]:
        count = len(self.images)
        random = generator(self.seed, epoch)
        order = torch.randperm(count, generator=random) if self.train else torch.arange(count)
        draws = torch.rand(count, DRAWS, generator=random) if self.augment else None
        mine = order[self._rank :: self.world_size]
        if self.train:
            mine = mine[: min(len(self) * self.batch_size, count // self.world_size)]
        for begin in range(0, len(mine), self.batch_size):
            rows = mine[begin : begin + self.batch_size]
            yield rows.tolist(), None if draws is None else draws[rows].tolist()


class _Fetched(Dataset[Batch | OSError]):
    """Turns requests into batches. An OSError is returned rather than raised, since a worker's exceptions
    arrive with its stack, in which the file's name is lost."""

    def __init__(self, images: ImageSet):
        self._images = images

    def __getitem__(self, request: _Request) -> Batch | OSError:
        rows, draws = request
        index = torch.tensor(rows)
        try:
            return self._images.batch(rows, draws), self._images.labels[index], index
        except OSError as error:
            return error


def _pinned(fetched: Batch | OSError) -> Batch:
    images, labels, index = received(fetched)
    return images.pin_memory(), labels.pin_memory(), index.pin_memory()


class _Requested:
    """A sampler whose requests change from epoch to epoch, while the workers stay alive. Everything that
    differs between epochs reaches the workers through the requests."""

    def __init__(self) -> None:
        self.requests: Iterable[_Request] = ()

    def __iter__(self) -> Iterator[_Request]:
        return iter(self.requests)
