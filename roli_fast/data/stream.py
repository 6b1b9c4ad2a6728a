"""Images that are read from shards in sequence, for data sets that are too large for anything else."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..checks import refuse
from .batch import Batch, generator, received
from .images import of_bytes
from .view import DRAWS, View


class ImageStream(IterableDataset[tuple[Tensor, int]]):
    """A data set of images (C, H, W), uint8, in the order in which timm's reader takes them from shards.

    Iterates over (image, label) as evaluation sees it, not augmented; a :class:`Loader` makes batches,
    augmented in training.

    make: makes timm's IterableImageDataset of (PIL image, label); takes ``is_training`` (whether in random
        order), ``seed`` and ``batch_size``. Grey values of 16 bits may be as they are stored.
    length: number of images.
    classes: the classes' names, in the order of the labels.
    view: how pictures are resized, cropped and mirrored.
    padded: whether evaluation in several processes would see some images twice, or not at all.
    mode: PIL's mode to which all pictures are converted, "RGB" or "L".
    """

    def __init__(
        self,
        make: Callable[..., Any],
        length: int,
        classes: Sequence[str],
        view: View,
        padded: bool,
        mode: str = "RGB",
    ):
        self.make = make
        self.length = length
        self.classes = tuple(classes)
        self.view = view
        self.padded = padded
        self.mode = mode

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        dataset = self.make()
        dataset.reader.dist_rank, dataset.reader.dist_num_replicas = 0, 1
        for picture, label in _pictures(dataset, self.mode):
            yield self.view.shown(picture), label

    def batches(
        self, batch_size: int, train: bool, seed: int, epoch: int, workers: int, rank: int, world_size: int
    ) -> Iterator[Batch]:
        """The batches of one pass; in training, full batches without end."""
        random = generator(seed, epoch)
        # Readers add small numbers to their seed, and pass it on to libraries that take 32 bits.
        reader_seed = int(torch.randint(2**31 - 2**16, (), generator=random))
        dataset = self.make(is_training=train, seed=reader_seed, batch_size=batch_size)
        # By default, readers ask torch.distributed; but in evaluation each process may read all images.
        dataset.reader.dist_rank, dataset.reader.dist_num_replicas = rank, world_size
        dataset.set_loader_cfg(num_workers=workers)
        seeds = (seed, epoch) if train else None
        fetched = DataLoader(
            _Batches(self, dataset, batch_size, seeds, rank, world_size),
            batch_size=None,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            generator=random,  # draws the workers' seeds, by which readers shuffle
        )
        batches = map(received, fetched)
        if train:
            return self._some(batches)
        return batches if world_size > 1 else self._whole(batches)

    def _some(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Batches without end. Raises OSError where they end: no worker of this process has a shard."""
        yield from batches
        accepted = "as many shards as processes, or more, that can be read"
        refuse("images", "none of a stream in one of the processes", accepted, OSError)

    def _whole(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """A pass over all images. Raises OSError at its end if their number is not ``length``: readers leave
        out what they cannot read, such as a missing shard, with no more than a warning."""
        found = 0
        for batch in batches:
            yield batch
            found += len(batch[0])
        if found != self.length:
            reasons = "a shard is missing, a picture cannot be read, or this number is wrong"
            refuse(
                "images", f"{found} of a stream", f"{self.length}, its number of images: {reasons}", OSError
            )


class _Batches(IterableDataset[Batch | Exception]):
    """This worker's batches. What is refused is returned rather than raised, since a worker's exceptions
    arrive with its stack, in which their text is lost.

    seeds: of the augmentation, for full batches without end; None for one pass without augmentation.
    """

    def __init__(
        self,
        images: ImageStream,
        dataset: Any,
        batch_size: int,
        seeds: tuple[int, int] | None,
        rank: int,
        world_size: int,
    ):
        self._dataset, self._view, self._mode = dataset, images.view, images.mode
        self._batch_size, self._seeds = batch_size, seeds
        self._rank, self._world_size = rank, world_size

    def __iter__(self) -> Iterator[Batch | Exception]:
        samples = self._samples()
        try:
            while batch := list(itertools.islice(samples, self._batch_size)):
                if len(batch) == self._batch_size or self._seeds is None:
                    yield _collated(batch)
        except (OSError, ValueError) as error:
            yield error

    def _samples(self) -> Iterator[tuple[Tensor, int, int]]:
        """(image, label, index) of this worker's images."""
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        first = self._rank * workers + number
        random = None if self._seeds is None else generator(*self._seeds, first)
        for place, (picture, label) in enumerate(self._passes()):
            draws = None if random is None else torch.rand(DRAWS, generator=random).tolist()
            yield self._view.shown(picture, draws), label, first + place * workers * self._world_size

    def _passes(self) -> Iterator[tuple[Image.Image, int]]:
        while True:
            empty = True
            for pair in _pictures(self._dataset, self._mode):
                empty = False
                yield pair
            # Where there are more workers than shards, this one may have none: the others go on.
            if empty or self._seeds is None:
                return


def _pictures(dataset: Any, mode: str) -> Iterator[tuple[Image.Image, int]]:
    """The pictures, converted, and their labels. Raises OSError for what cannot be read."""
    try:
        for picture, label in dataset:
            yield of_bytes(picture).convert(mode), int(label)
    except Exception as error:  # readers and decoders raise many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise OSError(f"images: got {reason}, of a stream, accepted: one that can be read") from error


def _collated(samples: list[tuple[Tensor, int, int]]) -> Batch:
    images, labels, index = zip(*samples, strict=True)
    sizes = list(dict.fromkeys(f"{image.shape[2]}x{image.shape[1]}" for image in images))
    if len(sizes) > 1:
        got = f"None, but pictures of a stream have {sizes[0]} and {sizes[1]} pixels"
        refuse("input_size", got, "pixels a side for all, such as 224")
    return torch.stack(images), torch.tensor(labels), torch.tensor(index)
