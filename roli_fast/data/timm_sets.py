"""The data sets of timm's dataset factory: ``torch/``, ``hfds/``, ``hfids/``, ``wds/`` and ``tfds/``."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset
from torchvision.datasets import ImageFolder

from ..checks import refuse
from .images import Pictures
from .sources import ReaderPictures, Source, TorchvisionPictures
from .splits import VALIDATION, Splits, cut_share, refuse_same
from .stream import ImageStream
from .view import View

_PACKAGES: dict[str, tuple[str, ...]] = {
    "torch": (),
    "hfds": ("datasets",),
    "hfids": ("datasets",),
    "wds": ("webdataset",),
    "tfds": ("tensorflow", "tensorflow_datasets"),
}
_STREAMED = ("hfids", "wds", "tfds")
_PADDED = ("wds", "tfds")  # whose readers give all processes as many images, by repeating or leaving out some
PREFIXES = tuple(f"{prefix}/" for prefix in _PACKAGES)


def load_timm(
    name: str,
    data_dir: str | None,
    train_split: str,
    val_split: str | None,
    test_split: str,
    view: View,
    mode: str,
    num_classes: int | None,
    split_seed: int,
    download: bool,
) -> Splits:
    """Loads splits by the names that the data set has for them. Without a validation split, one is cut from
    the training images.

    Raises ImportError for a package that is missing, and FileNotFoundError for a data set or split that is
    missing. Raises ValueError for a name that timm does not know, a split that is named twice, a streamed
    data set without a validation split, and a number of classes that neither the data set nor num_classes
    tells.
    """
    prefix = name.partition("/")[0].lower()
    for package in _PACKAGES[prefix]:
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"{name} needs a package: pip install {package.replace('_', '-')}")
    if prefix in ("torch", "wds") and data_dir is None:
        refuse("data_dir", "None", f"where {name} lies")
    refuse_same(train_split, val_split, test_split)
    # Readers would convert by PIL, which cuts off grey values of 16 bits: "" has them convert nothing. Only
    # tfds decodes by the mode.
    theirs = mode if prefix == "tfds" else ""
    make = partial(_create, name, root=data_dir, download=download, input_img_mode=theirs)

    if prefix in _STREAMED:
        if val_split is None:
            refuse(
                "val_split", "None", f"the name of one: {name} is streamed, so that none can be cut from it"
            )
        names = (train_split, val_split, test_split)
        padded = prefix in _PADDED
        return Splits(*(_stream(make, split, view, mode, num_classes, padded) for split in names))

    parts = {split: make(split=split) for split in (train_split, val_split, test_split) if split is not None}
    if prefix == "torch":
        check_parts(parts, train_split, name, data_dir)
    shown = {
        split: _pictures(part, f"{name}, {split}", view, mode, num_classes) for split, part in parts.items()
    }
    train, test = shown[train_split], shown[test_split]
    if val_split is not None:
        return Splits(train, shown[val_split], test)
    train, val = cut_share(train, VALIDATION, split_seed)
    return Splits(train, val, test)


def check_parts(parts: dict[str, Any], train_split: str, name: str, data_dir: str | None) -> None:
    """Raises an error for parts that are not what their names say: timm returns a torchvision data set's test
    images for every name that it does not know, and a whole folder if the split's own is missing."""
    if getattr(parts[train_split], "train", True) is False:
        refuse("train_split", f"{train_split}, which is the test images of {name}", "train")
    are: dict[tuple[str, ...], str] = {}
    for split, part in parts.items():
        if type(part) is ImageFolder and Path(part.root) == Path(str(data_dir)):
            accepted = "one for each split; or the data set 'folder', which cuts what is missing"
            refuse("data_dir", f"{data_dir} without a folder for {split}", accepted, FileNotFoundError)
        is_part = tuple(str(getattr(part, what, None)) for what in ("root", "train", "split", "version"))
        if is_part in are:
            got = f"{are[is_part]} and {split}, which are the same images of {name}"
            refuse("train_split, val_split, test_split", got, "splits that share no images")
        are[is_part] = split


def _create(name: str, *, root: str | None, split: str, **options: Any) -> Any:
    """Calls timm's create_dataset, and words its errors as this package does."""
    try:
        return create_dataset(name, root=root, split=split, **options)
    except AssertionError as error:
        refuse("name", f"{name} ({error})", "a set that timm's create_dataset knows")
    except ValueError as error:  # from torchvision
        refuse("train_split, val_split, test_split", f"{split} ({error})", f"one that {name} has")
    except RuntimeError as error:
        raise FileNotFoundError(
            f"data_dir: got {root} ({error}), accepted: where split {split} of {name} lies; download=True "
            "fetches it where a library can"
        ) from error


def _pictures(dataset: Any, title: str, view: View, mode: str, num_classes: int | None) -> Pictures:
    source: Source
    if hasattr(dataset, "reader"):
        reader = dataset.reader
        source, targets = ReaderPictures(reader, title), reader.dataset[reader.label_key]
        classes = _names(reader.class_to_idx, num_classes)
    else:
        source, targets = TorchvisionPictures(dataset), getattr(dataset, "targets", None)
        classes = class_names(dataset.classes)
    labels = torch.as_tensor(targets if targets is not None else [])
    if labels.dim() != 1 or len(labels) != len(dataset):
        refuse("name", f"{title}, which does not list one class per image", "a set that does")
    keys = [str(row) for row in range(len(labels))]
    return Pictures(source, labels, classes, keys, view, mode)


def class_names(given: Sequence[Any]) -> list[str]:
    """The classes' names, with their numbers if several have the same one, as ImageNet's two cranes."""
    names = [", ".join(c) if isinstance(c, tuple) else str(c) for c in given]
    return [f"{name} ({c})" if names.count(name) > 1 else name for c, name in enumerate(names)]


def _names(numbers: dict[str, int] | None, num_classes: int | None) -> list[str]:
    if numbers:
        return sorted(numbers, key=numbers.__getitem__)
    if num_classes is None:
        refuse("num_classes", "None", "the number of classes, since the set does not tell")
    return [str(c) for c in range(num_classes)]


def _stream(
    make: Callable[..., Any], split: str, view: View, mode: str, num_classes: int | None, padded: bool
) -> ImageStream:
    make = partial(make, split=split)
    reader = make().reader
    if not reader.num_samples:
        refuse(
            "train_split, val_split, test_split", split, "one that tells its number of images, SHARDS|NUMBER"
        )
    classes = _names(reader.class_to_idx, num_classes)
    return ImageStream(make, reader.num_samples, classes, view, padded, mode)
