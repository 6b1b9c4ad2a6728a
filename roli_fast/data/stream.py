"""Images that are read from shards in sequence, for data sets that are too large for anything else."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchvision.transforms.v2 import functional as F

from .batch import Batch, generator
from .view import DRAWS, View


class ImageStream(IterableDataset[tuple[Tensor, int]]):
    """A data set of images (C, H, W), uint8, in the order in which timm's reader takes them from shards.

    Iterates over (image, label) as evaluation sees it, not augmented; a :class:`Loader` makes batches,
    augmented in training.

    make: makes timm's IterableImageDataset of (PIL image, label); takes ``is_training`` (whether in random
        order), ``seed`` and ``batch_size``.
    length: number of images.
    classes: the classes' names, in the order of the labels.
    view: how pictures are resized, cropped and mirrored.
    padded: whether evaluation in several processes would see some images twice.
    """

    def __init__(
        self, make: Callable[..., Any], length: int, classes: Sequence[str], view: View, padded: bool
    ):
        self.make = make
        self.length = length
        self.classes = tuple(classes)
        self.view = view
        self.padded = padded

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        dataset = self.make()
        dataset.reader.dist_rank, dataset.reader.dist_num_replicas = 0, 1
        for picture, label in dataset:
            yield F.pil_to_tensor(self.view.centre(self.view.resized(picture))), int(label)

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
        batches = iter(
            DataLoader(
                _Samples(dataset, self.view, (seed, epoch) if train else None, rank, world_size),
                batch_size=batch_size,
                drop_last=train,
                num_workers=workers,
                collate_fn=_collated,
                pin_memory=torch.cuda.is_available(),
                generator=random,  # draws the workers' seeds, by which readers shuffle
            )
        )
        return batches if train or world_size > 1 else self._whole(batches)

    def _whole(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """A pass over all images. Raises OSError at its end if there were others than the set tells: readers
        leave out what they cannot read, such as a shard that is missing, with no more than a warning."""
        found = 0
        for batch in batches:
            yield batch
            found += len(batch[0])
        if found != self.length:
            raise OSError(
                f"images: got {found} of a stream, accepted: {self.length}, as it tells: a shard is missing, "
                "a picture cannot be read, or the number is another"
            )


class _Samples(IterableDataset[tuple[Tensor, int, int]]):
    """(image, label, index) of this worker's images. seeds: of the augmentation, in passes without end; None
    for one pass without augmentation."""

    def __init__(self, dataset: Any, view: View, seeds: tuple[int, int] | None, rank: int, world_size: int):
        self._dataset = dataset
        self._view = view
        self._seeds = seeds
        self._rank = rank
        self._world_size = world_size

    def __iter__(self) -> Iterator[tuple[Tensor, int, int]]:
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        first = self._rank * workers + number
        if self._seeds is None:
            for place, (picture, label) in enumerate(self._dataset):
                image = self._view.centre(self._view.resized(picture))
                yield F.pil_to_tensor(image), int(label), first + place * workers * self._world_size
            return
        random = generator(*self._seeds, first)
        for place, (picture, label) in enumerate(self._without_end()):
            image = self._view.random(
                self._view.resized(picture), torch.rand(DRAWS, generator=random).tolist()
            )
            yield F.pil_to_tensor(image), int(label), first + place * workers * self._world_size

    def _without_end(self) -> Iterator[tuple[Any, Any]]:
        for _ in itertools.count():
            empty = True
            for pair in self._dataset:
                empty = False
                yield pair
            if empty:
                raise RuntimeError(
                    "workers: got one without a shard, accepted: as many workers as shards at most"
                )


def _collated(samples: list[tuple[Tensor, int, int]]) -> Batch:
    images, labels, index = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels), torch.tensor(index)
