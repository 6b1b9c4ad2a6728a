"""Loads images from class folders."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch
from timm.data.readers.reader_image_folder import find_images_and_targets
from timm.utils import natural_key

from ..checks import refuse
from .images import Pictures
from .sources import Files
from .splits import VALIDATION, Splits, cut_share, refuse_same
from .view import View

# The share of all images that is for testing, if a folder holds nothing but class folders.
_TEST = Fraction(1, 5)

# Formats of photographs and drawings that PIL reads; timm looks only for the first three.
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")

# Names of the splits' folders, with or without capitals. Those for validation are timm's.
_TRAIN = ("train", "training")
_VAL = ("val", "valid", "validation", "eval", "evaluation")
_TEST_NAMES = ("test", "testing")


def load_folder(
    data_dir: Path,
    train_split: str | None,
    val_split: str | None,
    test_split: str | None,
    view: View,
    mode: str,
    split_seed: int,
) -> Splits:
    """Loads ``train``, ``val`` and ``test`` folders that hold class folders, some of them, or class folders
    alone.

    Missing splits are cut from others: test images (a fifth) from a folder that holds class folders alone,
    and validation images (a tenth) from the training images. If there are only ``train`` and ``val``, the
    images of ``val`` are for testing, unless val_split names it. A folder that an argument names is used for
    that split only.

    Class folders may be inside folders of superclasses, if all of them are. Files of other kinds, and folders
    whose names begin with a dot, are ignored.

    Raises FileNotFoundError for a folder that does not exist or has no images. Raises ValueError for images
    outside class folders, for class folders at different depths or of the same name, for a validation or test
    class that is no training class, for a folder that is named twice, and for a held-out split without a
    training split.
    """
    if not data_dir.is_dir():
        accepted = "a folder of class folders, or of train/, val/ and test/ with class folders"
        refuse("data_dir", f"{data_dir}, which is no folder", accepted, FileNotFoundError)
    named = [(data_dir / name).resolve() for name in (train_split, val_split, test_split) if name is not None]
    refuse_same(*map(str, named))
    train = _find(data_dir, "train_split", train_split, _TRAIN, named)
    val = _find(data_dir, "val_split", val_split, _VAL, named)
    test = _find(data_dir, "test_split", test_split, _TEST_NAMES, named)
    held_out = test or val
    if train is None and held_out is not None:
        refuse("data_dir", f"{data_dir} with {held_out.name}/ alone", "train/ as well")
    if test is None and val_split is None:
        val, test = None, val

    trained = _listed(train or data_dir, view, mode)
    tested = None if test is None else _listed(test, view, mode, trained.classes)
    if tested is None:
        trained, tested = cut_share(trained, _TEST, split_seed)
    if val is None:
        trained, validating = cut_share(trained, VALIDATION, split_seed)
    else:
        validating = _listed(val, view, mode, trained.classes)
    return Splits(trained, validating, tested)


def _find(
    data_dir: Path, argument: str, name: str | None, synonyms: Sequence[str], named: Sequence[Path]
) -> Path | None:
    """A split's folder: the one called ``name``, or else the first with one of the synonyms as its name; None
    if there is none. named: folders that arguments name, which are left out of the search."""
    if name is not None:
        if not (data_dir / name).is_dir():
            refuse(argument, name, f"a folder in {data_dir}", FileNotFoundError)
        return data_dir / name
    free = [f for f in sorted(data_dir.iterdir()) if f.is_dir() and f.resolve() not in named]
    known = (folder for synonym in synonyms for folder in free if _is_named(folder, synonym))
    return next(known, None)


def _is_named(folder: Path, synonym: str) -> bool:
    """Whether a folder has this name. With capitals it has to hold class folders: otherwise "Train" may be a
    class, beside "Bus"."""
    if folder.name == synonym:
        return True
    return folder.name.lower() == synonym and any(inside.is_dir() for inside in folder.iterdir())


def _listed(root: Path, view: View, mode: str, classes: Sequence[str] | None = None) -> Pictures:
    """The images below root. classes: those of the training images; None for root's own, in natural order."""
    found, _ = find_images_and_targets(str(root), types=_SUFFIXES, sort=False)
    below = (Path(path).relative_to(root) for path, _ in found)
    files = sorted((f for f in below if not any(part[0] == "." for part in f.parts)), key=_by_number)
    if not files:
        refuse("data_dir", f"no image below {root}", "images in class folders", FileNotFoundError)
    folders = _class_folders(root, files)
    names = sorted(folders.values(), key=_by_number)
    classes = names if classes is None else classes
    unknown = [name for name in names if name not in classes]
    if unknown:
        refuse(
            "data_dir",
            f"{root} with {', '.join(unknown)}",
            f"the {len(classes)} classes of the training images",
        )
    place = {name: number for number, name in enumerate(classes)}
    labels = torch.tensor([place[folders[file.parent]] for file in files])
    paths = [file.as_posix() for file in files]
    return Pictures(Files(root, paths), labels, classes, paths, view, mode)


def _class_folders(root: Path, files: Sequence[Path]) -> dict[Path, str]:
    """For each folder of images the name of its class: its own name, without those of superclasses."""
    stray = next((file for file in files if len(file.parts) == 1), None)
    if stray is not None:
        refuse("data_dir", f"{root / stray}, outside a class folder", "images in class folders")
    folders = dict.fromkeys(file.parent for file in files)
    one = next(iter(folders))
    other = next((f for f in folders if len(f.parts) != len(one.parts)), None)
    if other is not None:
        got = f"{root} with images in {one} and in {other}"
        refuse("data_dir", got, "class folders at one depth")
    by_name: dict[str, Path] = {}
    for folder in folders:
        if folder.name in by_name:
            got = f"{root} with {by_name[folder.name]} and {folder}, of one name"
            refuse("data_dir", got, "class folders of different names")
        by_name[folder.name] = folder
    return {folder: name for name, folder in by_name.items()}


def _by_number(name: str | Path) -> tuple[list[str | int], str]:
    """The sort key of timm's natural order, in which 2 comes before 10; and then the name itself, since that
    order does not tell apart A and a, or 1 and 01."""
    return natural_key(str(name)), str(name)
