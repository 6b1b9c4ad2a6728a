"""Data sets of labelled images with random access: in memory, or decoded on demand."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy
import torch
from PIL import Image, TiffImagePlugin
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from ..checks import refuse
from .sources import Source
from .view import Draws, View

if TYPE_CHECKING:
    from typing_extensions import Self

# How many bytes a split may take to be kept decoded. CIFAR-10's training images take 0.15 GB, Tiny-ImageNet's
# 1.2 GB. Larger splits are decoded anew in each epoch.
MEMORY = 2 * 10**9


class ImageSet(Dataset[tuple[Tensor, int]], ABC):
    """A data set of images (C, H, W), uint8 unless said otherwise, and labels, the numbers of their classes.

    ``images[i]`` is (image, label) as evaluation sees it, not augmented; a :class:`Loader` makes batches,
    augmented in training.

    labels: (N,) int64, from 0.
    classes: the classes' names, in the order of the labels.
    keys: a name for each image that is the same on every machine: its path within the data set, or its
        number.
    view: how pictures are resized, cropped and mirrored.

    Raises ValueError for a label without a class, and for two classes of the same name.
    """

    def __init__(self, labels: Tensor, classes: Sequence[str], keys: Sequence[str], view: View):
        if len(set(classes)) < len(classes):
            twice = next(c for c in classes if list(classes).count(c) > 1)
            refuse("classes", f"{twice} twice", "names that differ")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            got = f"values in [{labels.min()}, {labels.max()}]"
            refuse("labels", got, f"0 .. {len(classes) - 1}, the numbers of {len(classes)} classes")
        self.labels = labels
        self.classes = tuple(classes)
        self.keys = list(keys)
        self.view = view

    @abstractmethod
    def batch(self, rows: Sequence[int], draws: Sequence[Draws] | None = None) -> Tensor:
        """Images (n, C, H, W) of these rows; augmented if draws are given, with those of each image."""

    def select(self, rows: Sequence[int]) -> Self:
        """A data set of these rows alone, in this order."""
        chosen = copy.copy(self)
        chosen.labels = self.labels[torch.as_tensor(rows, dtype=torch.int64)]
        chosen.keys = [self.keys[row] for row in rows]
        chosen._keep(rows)
        return chosen

    @abstractmethod
    def _keep(self, rows: Sequence[int]) -> None:
        """Keeps these rows of everything other than labels and keys."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.batch([row])[0], int(self.labels[row])


class StoredImages(ImageSet):
    """Images in memory, from which a batch is copied.

    images: (N, C, H, W), already resized; uint8, or float32 in [0, 1].
    labels: (N,) int64, from 0.
    classes: the classes' names; by default, the numbers up to the largest label.
    keys: by default, the images' numbers.
    view: by default, the whole image, never mirrored.

    Raises ValueError for images and labels that do not fit together, and for floats outside of [0, 1].
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: Sequence[str] | None = None,
        keys: Sequence[str] | None = None,
        view: View | None = None,
    ):
        if images.dim() != 4 or images.shape[:1] != labels.shape or labels.dtype != torch.int64:
            got = f"shape {tuple(images.shape)}, with {labels.dtype} labels of shape {tuple(labels.shape)}"
            refuse("images", got, "(N, C, H, W), with torch.int64 labels (N,)")
        if images.is_floating_point() and images.numel():
            lowest, highest = torch.stack(images.aminmax()).tolist()
            if not (lowest >= 0 and highest <= 1):  # NaN is not, either
                accepted = "floats from 0 to 1, or bytes (torch.uint8); models normalise by themselves"
                refuse("images", f"floats from {lowest:.6g} to {highest:.6g}", accepted)
        if classes is None:
            classes = [str(c) for c in range(int(labels.max()) + 1 if len(labels) else 0)]
        keys = [str(row) for row in range(len(labels))] if keys is None else keys
        super().__init__(labels, classes, keys, view or View())
        self.images = images

    def batch(self, rows: Sequence[int], draws: Sequence[Draws] | None = None) -> Tensor:
        images = self.images[torch.as_tensor(rows)]
        if draws is None:
            return self.view.centre(images)
        if self.view.crop is None and self.view.hflip == 0:
            return images
        return self.view.random_batch(images, draws)

    def _keep(self, rows: Sequence[int]) -> None:
        self.images = self.images[torch.as_tensor(rows, dtype=torch.int64)]


class Pictures(ImageSet):
    """Images that are decoded on demand.

    source: the pictures, one for each label.
    mode: PIL's mode to which all pictures are converted, "RGB" or "L".

    Raises OSError, with the picture's name, for one that cannot be decoded, and ValueError if pictures differ
    in size and the view leaves them so.
    """

    def __init__(
        self,
        source: Source,
        labels: Tensor,
        classes: Sequence[str],
        keys: Sequence[str],
        view: View,
        mode: str,
    ):
        super().__init__(labels, classes, keys, view)
        self.source = source
        self.rows = list(range(len(labels)))  # the images' rows in the source
        self.mode = mode
        self._stored: ImageSet | None = None

    def batch(self, rows: Sequence[int], draws: Sequence[Draws] | None = None) -> Tensor:
        shown = []
        for place, row in enumerate(rows):
            its_draws = None if draws is None else draws[place]
            shown.append(self.view.shown(self._converted(row), its_draws))
            if shown[-1].shape != shown[0].shape:
                self._refuse_sizes(rows[0], row)
        return torch.stack(shown)

    def _keep(self, rows: Sequence[int]) -> None:
        self.rows = [self.rows[row] for row in rows]
        self._stored = None

    def stored(self) -> ImageSet:
        """The same images in memory, if all have one size and they take at most MEMORY bytes; otherwise self.

        The first call decodes them.
        """
        if self._stored is None:
            self._stored = self._decoded()
        return self._stored

    def _decoded(self) -> ImageSet:
        first = self._resized(0)
        if len(self) * first.numel() > MEMORY:
            return self
        size = self._size(0)
        odd = next((row for row in range(1, len(self)) if self._size(row) != size), None)
        if odd is not None:
            if self.view.crop is None:
                self._refuse_sizes(0, odd)
            return self
        images = first.new_empty(len(self), *first.shape)
        console = Console(stderr=True)
        for row in track(range(len(self)), "decoding", console=console, disable=not console.is_terminal):
            images[row] = self._resized(row)
        return StoredImages(images, self.labels, self.classes, self.keys, self.view)

    def check_headers(self) -> None:
        """Raises as decoding would for pictures that cannot be opened and for different sizes. Of files, only
        the headers are read."""
        first = self._size(0)
        for row in range(len(self)):
            if self._size(row) != first and self.view.crop is None:
                self._refuse_sizes(0, row)

    def _resized(self, row: int) -> Tensor:
        return F.pil_to_tensor(self.view.resized(self._converted(row)))

    def _converted(self, row: int) -> Image.Image:
        with self._opened(row) as picture:
            return of_bytes(picture).convert(self.mode)

    def _size(self, row: int) -> tuple[int, int]:
        """Width and height before resizing. Of a file, only the header is read."""
        with self._opened(row) as picture:
            return picture.size

    @contextmanager
    def _opened(self, row: int) -> Iterator[Image.Image]:
        try:
            with self.source.open(self.rows[row]) as picture:
                yield picture
        except Exception as error:  # decoders raise many kinds
            name = self.source.name(self.rows[row])
            raise OSError(f"{name}: got {error}, accepted: an image that can be decoded") from error

    def _refuse_sizes(self, *rows: int) -> None:
        sizes = (
            f"{self.source.name(self.rows[row])} has {'x'.join(map(str, self._size(row)))}" for row in rows
        )
        refuse("input_size", f"None, but {' and '.join(sizes)} pixels", "pixels a side for all, such as 224")


def of_bytes(picture: Image.Image) -> Image.Image:
    """The picture with grey values of 12 or 16 bits scaled to 8 bits; PIL's conversion would cut them off at
    255.

    Raises ValueError for floats, and for integers that are neither of so many bits nor from 0 to 255.
    """
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture
    values = numpy.asarray(picture)
    if values.dtype.kind == "f":
        raise ValueError(f"pixels of mode {picture.mode}, which are floats")
    values, white = values.astype(numpy.int64), _white(picture)
    lowest, highest = values.min(), values.max()
    if lowest < 0 or highest > white:
        raise ValueError(
            f"grey values from {lowest} to {highest}, of which white is not known: they are neither "
            "0 .. 255 nor 16 bits without a sign"
        )
    return Image.fromarray(((values * 255 + white // 2) // white).astype(numpy.uint8))


def _white(picture: Image.Image) -> int:
    """Which grey value is white. In 32 bits it could be any, and mostly they hold bytes; but some formats' 16
    bits PIL opens as 32."""
    if picture.mode == "I" and picture.format not in ("PNG", "PPM"):
        return 255
    bits = getattr(picture, "tag_v2", {}).get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    return 2**bits - 1
