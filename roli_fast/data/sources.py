"""Sources of pictures, in forms that can be passed to worker processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image


class Source(Protocol):
    def open(self, row: int) -> Image.Image:
        """The picture, decoded as late as the source can do it."""
        ...

    def name(self, row: int) -> str:
        """The picture's name in error messages."""
        ...


class Files:
    """Image files.

    paths: the files' paths below root.
    """

    def __init__(self, root: Path, paths: Sequence[str]):
        self._root = root
        self._paths = list(paths)

    def open(self, row: int) -> Image.Image:
        return Image.open(self.name(row))

    def name(self, row: int) -> str:
        return str(self._root / self._paths[row])


class TorchvisionPictures:
    """The pictures of a torchvision data set of (PIL image, label)."""

    def __init__(self, dataset: Any):
        self._dataset = dataset

    def open(self, row: int) -> Image.Image:
        return self._dataset[row][0]

    def name(self, row: int) -> str:
        files = getattr(self._dataset, "samples", None)
        return files[row][0] if files else f"{type(self._dataset).__name__}, image {row}"


class ReaderPictures:
    """The pictures of timm's random-access reader. timm's data set around it is not used, since it replaces
    an image that cannot be decoded by the next one.

    title: the name of the data set and split.
    """

    def __init__(self, reader: Any, title: str):
        self._reader = reader
        self._title = title

    def open(self, row: int) -> Image.Image:
        return Image.open(self._reader[row][0])

    def name(self, row: int) -> str:
        return f"{self._title}, image {row}"
