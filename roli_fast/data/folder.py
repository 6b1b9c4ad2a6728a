"""Images in class folders."""

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

# Of all images, where a folder holds nothing but class folders.
_TEST = Fraction(1, 5)

# What PIL reads and photographs and drawings come in; timm looks for the first three alone.
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")

# Names of the folders, in any case; timm's, for what validates.
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
    """``train``, ``val`` and ``test`` folders of class folders, or fewer of them.

    What is missing is cut: test images (a fifth) from a folder of class folders alone, validation images (a
    tenth) from the training images. With ``train`` and ``val`` alone, ``val`` is what is held out: it tests,
    unless val_split names it. A folder that is named for one purpose serves no other.

    Class folders may lie in folders of superclasses, all of them. Files of other kinds, and folders whose
    names begin with a dot, are passed over.

    Raises FileNotFoundError for a folder that is not there or without images, ValueError for images outside
    class folders, for class folders at several depths or of one name, for a class that is not trained, and
    for a folder that is named twice.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(
            f"data_dir: got {data_dir}, which is no folder, accepted: a folder of class folders, or of "
            "train/, val/ and test/ with class folders"
        )
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
    """The split's folder; None where there is none and none was asked for. named: those that were."""
    if name is not None:
        if not (data_dir / name).is_dir():
            raise FileNotFoundError(f"{argument}: got {name}, accepted: a folder in {data_dir}")
        return data_dir / name
    free = [f for f in sorted(data_dir.iterdir()) if f.is_dir() and f.resolve() not in named]
    known = (folder for synonym in synonyms for folder in free if _is_named(folder, synonym))
    return next(known, None)


def _is_named(folder: Path, synonym: str) -> bool:
    """In another case only where it holds class folders: "Train" may be a class, beside "Bus"."""
    if folder.name == synonym:
        return True
    return folder.name.lower() == synonym and any(inside.is_dir() for inside in folder.iterdir())


def _listed(root: Path, view: View, mode: str, classes: Sequence[str] | None = None) -> Pictures:
    """The images below root. classes: those that are trained; None for the folders' own, in natural order."""
    found, _ = find_images_and_targets(str(root), types=_SUFFIXES, sort=False)
    below = (Path(path).relative_to(root) for path, _ in found)
    files = sorted((f for f in below if not any(part[0] == "." for part in f.parts)), key=_by_number)
    if not files:
        raise FileNotFoundError(f"data_dir: got no image below {root}, accepted: images in class folders")
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
    """The name of the class of each folder: its own, below any superclasses."""
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
    """timm's natural order, in which 2 comes before 10; it has no order for A and a, or 1 and 01."""
    return natural_key(str(name)), str(name)
