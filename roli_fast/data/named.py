"""The five data sets of the RoLI paper (Hua et al., CVPR 2024), in their authors' layouts.

The paper's numbers of images for training / validation / testing: CIFAR-10 and CIFAR-100
45,000 / 5,000 / 10,000, Caltech256 14,649 / 771 / 15,187, CUB-200-2011 5,394 / 600 / 5,794, Stanford Dogs
10,800 / 1,200 / 8,580. They are the same here. Test images are those of the data set, if it has a test set.
Which training images are for validation, and which images of Caltech256 are for testing, is chosen by
:func:`~roli_fast.data.splits.cut`. The paper's own choice is used instead if its files ``train.json``,
``val.json`` and ``test.json`` (which map paths below the image folder to class numbers) are in the folder of
Caltech256, CUB-200-2011 or Stanford Dogs.
"""

import dataclasses
import json
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path, PurePosixPath

import torch
from scipy.io import loadmat
from torchvision.datasets import CIFAR10, CIFAR100, Caltech256

from ..checks import refuse
from .images import ImageSet, Pictures, StoredImages
from .sources import Files, TorchvisionPictures
from .splits import Splits, cut, cut_share
from .view import View

PHOTO_VIEW = View(resize=256, crop=224, hflip=0.5)
# How many images of each class of Caltech256 are for training and validation; the others are for testing.
_CALTECH_TRAINING = 60

Entries = list[tuple[str, int]]  # path below the image folder, number of the class


@dataclasses.dataclass(frozen=True)
class _About:
    """A data set's facts and messages.

    title: its name in messages.
    layout: what ``data_dir`` should hold.
    home: its authors' page.
    classes: number of classes.
    validation: share of its training images that is for validation.
    fetch: downloads it into a folder; None if no library can.
    """

    title: str
    layout: str
    home: str
    classes: int
    validation: Fraction
    fetch: Callable[[Path], object] | None = None

    def missing(self, data_dir: Path, why: object) -> FileNotFoundError:
        how = "download=True fetches it" if self.fetch else "it has to be fetched by hand"
        return FileNotFoundError(
            f"data_dir: got {data_dir} ({why}), accepted: a folder that holds {self.title} as {self.layout}; "
            f"{how}, from {self.home}"
        )

    def check_classes(self, data_dir: Path, classes: int) -> None:
        if classes != self.classes:
            refuse("data_dir", f"{data_dir} with {classes} classes", f"{self.title} with {self.classes}")

    def download(self, data_dir: Path) -> None:
        if self.fetch is None:
            raise self.missing(data_dir, "no library fetches it")
        try:
            self.fetch(data_dir)
        except (OSError, RuntimeError) as error:
            raise self.missing(data_dir, f"the download failed: {error}") from error


@dataclasses.dataclass(frozen=True)
class _Photos:
    """A data set of photographs in class folders.

    folder: the folder to which its archive unpacks.
    images: the folder in it that holds the class folders.
    read: given the folder, returns the entries of "train" and, if the data set has a test set, of "test".
    """

    about: _About
    folder: str
    images: str
    read: Callable[[Path], dict[str, Entries]]


def _read_caltech(folder: Path) -> dict[str, Entries]:
    # The archive also has 056.dog/greg and 198.spider/RENAME2, which are no images.
    paths = sorted((folder / "256_ObjectCategories").glob("*/*.jpg"))
    return {"train": [(f"{p.parent.name}/{p.name}", int(p.parent.name.split(".")[0])) for p in paths]}


def _read_cub(folder: Path) -> dict[str, Entries]:
    def column(file: str) -> dict[str, str]:
        return dict(line.split(maxsplit=1) for line in (folder / file).read_text().splitlines())

    paths, labels, training = map(column, ("images.txt", "image_class_labels.txt", "train_test_split.txt"))
    parts: dict[str, Entries] = {"train": [], "test": []}
    for number, path in paths.items():
        parts["train" if training[number] == "1" else "test"].append((path, int(labels[number])))
    return parts


def _read_dogs(folder: Path) -> dict[str, Entries]:
    lists = folder / "lists" if (folder / "lists").is_dir() else folder
    parts = {}
    for part in ("train", "test"):
        listed = loadmat(lists / f"{part}_list.mat", squeeze_me=True)
        parts[part] = [(str(p), int(c)) for p, c in zip(listed["file_list"], listed["labels"], strict=True)]
    return parts


_CIFAR: dict[str, tuple[_About, type[CIFAR10]]] = {
    f"cifar{classes}": (
        _About(
            f"CIFAR-{classes}",
            f"{kind.base_folder}/, its version for Python",
            "www.cs.toronto.edu/~kriz/cifar.html",
            classes,
            Fraction(5_000, 50_000),
            partial(kind, download=True),
        ),
        kind,
    )
    for classes, kind in ((10, CIFAR10), (100, CIFAR100))
}

_PHOTOS = {
    "caltech256": _Photos(
        _About(
            "Caltech256",
            "256_ObjectCategories/001.ak47/*.jpg and so on",
            "data.caltech.edu/records/nyy15-4j048",
            257,
            Fraction(771, 15_420),
            lambda data_dir: Caltech256(str(data_dir), download=True),
        ),
        "caltech256",
        "256_ObjectCategories",
        _read_caltech,
    ),
    "cub200": _Photos(
        _About(
            "CUB-200-2011",
            "CUB_200_2011/ with images/, images.txt, image_class_labels.txt and train_test_split.txt",
            "www.vision.caltech.edu/datasets/cub_200_2011",
            200,
            Fraction(600, 5_994),
        ),
        "CUB_200_2011",
        "images",
        _read_cub,
    ),
    "stanford_dogs": _Photos(
        _About(
            "Stanford Dogs",
            "Images/ and lists/ with train_list.mat and test_list.mat",
            "vision.stanford.edu/aditya86/ImageNetDogs",
            120,
            Fraction(1_200, 12_000),
        ),
        "stanford_dogs",
        "Images",
        _read_dogs,
    ),
}

PHOTO_NAMES = tuple(_PHOTOS)
NAMES = (*_CIFAR, *PHOTO_NAMES)


def load_named(name: str, data_dir: Path, view: View, mode: str, split_seed: int, download: bool) -> Splits:
    """Loads one of NAMES. Raises FileNotFoundError if it is missing, and ValueError for a wrong number of
    classes."""
    read = _load_photos if name in _PHOTOS else _load_cifar
    return read(name, data_dir, view, mode, split_seed, download)


def _load_cifar(name: str, data_dir: Path, view: View, mode: str, split_seed: int, download: bool) -> Splits:
    about, kind = _CIFAR[name]
    if download:
        about.download(data_dir)
    try:
        parts = [kind(data_dir, train=train) for train in (True, False)]
    except RuntimeError as error:
        raise about.missing(data_dir, error) from error
    about.check_classes(data_dir, len(parts[0].classes))
    pool, test = (_cifar_images(part, view, mode) for part in parts)
    train, val = cut_share(pool, about.validation, split_seed)
    return Splits(train, val, test)


def _cifar_images(part: CIFAR10, view: View, mode: str) -> ImageSet:
    labels = torch.tensor(part.targets)
    keys = [str(row) for row in range(len(labels))]
    if view.resize is None and mode == "RGB":
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        return StoredImages(images, labels, part.classes, keys, view)
    return Pictures(TorchvisionPictures(part), labels, part.classes, keys, view, mode)


def _load_photos(name: str, data_dir: Path, view: View, mode: str, split_seed: int, download: bool) -> Splits:
    photos = _PHOTOS[name]
    about = photos.about
    if download:
        about.download(data_dir)
    folders = (data_dir, data_dir / photos.folder)
    folder = next((f for f in folders if (f / photos.images).is_dir()), None)
    if folder is None:
        raise about.missing(data_dir, f"without {photos.images}/")
    try:
        parts = _papers_own(folder) or photos.read(folder)
    except FileNotFoundError as error:
        raise about.missing(data_dir, error) from error
    except Exception as error:  # whatever an incomplete list makes its reader raise
        raise about.missing(
            data_dir, f"its lists cannot be read ({type(error).__name__}: {error})"
        ) from error
    whole = _whole(folder / photos.images, parts, view, mode)
    about.check_classes(folder, len(whole.classes))

    begin, sets = 0, {}
    for part, entries in parts.items():
        sets[part] = whole.select(range(begin, begin + len(entries)))
        begin += len(entries)
    if "test" not in sets:
        sizes = torch.bincount(whole.labels)
        if sizes.min() <= _CALTECH_TRAINING:
            scarce = int(sizes.argmin())
            got = f"{sizes[scarce]} images of {whole.classes[scarce]} in {folder}"
            refuse("data_dir", got, f"more than {_CALTECH_TRAINING} of each class")
        sets["train"], sets["test"] = cut(whole, (sizes - _CALTECH_TRAINING).tolist(), split_seed)
    if "val" not in sets:
        sets["train"], sets["val"] = cut_share(sets["train"], about.validation, split_seed)
    return Splits(**sets)


def _papers_own(folder: Path) -> dict[str, Entries] | None:
    """The splits that the paper used, if their files are there."""
    files = {part: folder / f"{part}.json" for part in ("train", "val", "test")}
    if not all(file.is_file() for file in files.values()):
        return None
    return {part: list(json.loads(file.read_text()).items()) for part, file in files.items()}


def _whole(root: Path, parts: dict[str, Entries], view: View, mode: str) -> Pictures:
    """All parts in one data set, one after the other. Classes are named after their folders."""
    entries = [entry for part in parts.values() for entry in part]
    names = {number: PurePosixPath(path).parent.name for path, number in entries}
    numbers = sorted(names)
    place = {number: i for i, number in enumerate(numbers)}
    paths = [path for path, _ in entries]
    labels = torch.tensor([place[number] for _, number in entries])
    classes = [names[number] for number in numbers]
    return Pictures(Files(root, paths), labels, classes, paths, view, mode)
