"""Loads a data set by its name."""

import dataclasses
import math
from pathlib import Path

from ..checks import refuse
from .digits import digits
from .folder import load_folder
from .named import NAMES, PHOTO_NAMES, PHOTO_VIEW, load_named
from .splits import Splits
from .timm_sets import PREFIXES, load_timm
from .view import View

MODES = ("RGB", "L")
_CROP_PCT = 0.875


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    train_split: str | None = None,
    val_split: str | None = None,
    test_split: str | None = None,
    input_size: int | None = None,
    crop_pct: float | None = None,
    hflip: float | None = None,
    input_img_mode: str = "RGB",
    num_classes: int | None = None,
    split_seed: int = 0,
    download: bool = False,
) -> Splits:
    """Loads the training, validation and test images of a data set. Options have timm's names.

    name: ``cifar10``, ``cifar100``, ``caltech256``, ``cub200`` or ``stanford_dogs``, with the sizes and the
        augmentation of the RoLI paper; ``digits``, which needs no data_dir; ``folder`` or "" for images in
        class folders; or a data set of timm's, with the prefix ``torch/``, ``hfds/``, ``hfids/``, ``wds/`` or
        ``tfds/``.
    data_dir: the folder that holds the data set, or to which it is downloaded; for shards, whatever timm
        reads.
    train_split, val_split, test_split: names of the splits in a folder or a data set of timm's. Without a
        validation split, a tenth of each class's training images is cut off for it.
    input_size: side in pixels of the square that the model sees. None: the paper's for its data sets,
        otherwise the images' own, which has to be the same for all.
    crop_pct: share of the resized image's shorter side that is cropped to input_size. None: 0.875.
    hflip: probability of mirroring a training image. None: 0.5 if images are cropped, otherwise 0.
    input_img_mode: "RGB", or "L" for one channel of grey.
    num_classes: number of classes, for a data set that does not say; for any other, it has to agree.
    split_seed: chooses which images are cut off for a missing split. Other seeds have no influence on this,
        and the choice is the same on every machine.
    download: whether to download the data set if it is missing and torchvision or timm can. With several
        processes, let one of them do so first.

    Raises ValueError for an option that is not accepted, FileNotFoundError for a data set that is missing
    (the message says where to get it), and ImportError for a package that is missing.
    """
    if input_img_mode not in MODES:
        refuse("input_img_mode", repr(input_img_mode), " or ".join(MODES))
    view = _view(name, input_size, crop_pct, hflip)
    folder = None if data_dir is None else Path(data_dir)
    if name.lower().startswith(PREFIXES):
        splits = load_timm(
            name,
            None if data_dir is None else str(data_dir),  # for shards, it need not be a path
            train_split or "train",
            val_split,
            test_split or "test",
            view,
            input_img_mode,
            num_classes,
            split_seed,
            download,
        )
    elif name in ("", "folder"):
        folder = _needed(folder, "a folder of images in class folders")
        splits = load_folder(folder, train_split, val_split, test_split, view, input_img_mode, split_seed)
    elif name in NAMES:
        _refuse_splits(name, train_split, val_split, test_split)
        folder = _needed(folder, f"the folder in which {name} lies, or is downloaded to")
        splits = load_named(name, folder, view, input_img_mode, split_seed, download)
    elif name == "digits":
        _refuse_splits(name, train_split, val_split, test_split)
        if folder is not None:
            refuse("data_dir", folder, "None: scikit-learn brings the digits along")
        if input_size is not None or hflip:
            refuse(
                "input_size, hflip",
                f"{input_size}, {hflip}",
                "None: digits are 8x8 pixels, and no mirror images",
            )
        splits = digits(split_seed)
    else:
        known = ", ".join((*NAMES, "digits", "folder", *(f"{prefix}..." for prefix in PREFIXES)))
        refuse("name", repr(name), known)
    for part, images in zip(("val", "test"), splits[1:], strict=True):
        if images.classes != splits.classes:
            odd = sorted(set(images.classes) ^ set(splits.classes)) or ["their order"]
            got = f"{part} images whose classes differ from the training images' in {', '.join(odd[:5])}"
            refuse("name", got, "splits of the same classes, whose numbers are then the same")
    if num_classes not in (None, len(splits.classes)):
        refuse("num_classes", num_classes, f"{len(splits.classes)}, as many as {name or data_dir} has")
    return splits


def _view(name: str, input_size: int | None, crop_pct: float | None, hflip: float | None) -> View:
    view = PHOTO_VIEW if name in PHOTO_NAMES else View()
    if input_size is None and crop_pct is not None:
        refuse("crop_pct", crop_pct, "None without an input_size")
    if input_size is not None:
        if input_size < 1:
            refuse("input_size", input_size, "a number of pixels from 1 on, or None")
        crop_pct = _CROP_PCT if crop_pct is None else crop_pct
        if not 0 < crop_pct <= 1:
            refuse("crop_pct", crop_pct, "a number above 0 and up to 1")
        view = View(math.floor(input_size / crop_pct), input_size, 0.5)
    return view if hflip is None else dataclasses.replace(view, hflip=hflip)


def _needed(data_dir: Path | None, accepted: str) -> Path:
    if data_dir is None:
        refuse("data_dir", "None", accepted)
    return data_dir


def _refuse_splits(name: str, *splits: str | None) -> None:
    if any(split is not None for split in splits):
        got = ", ".join(map(str, splits))
        refuse("train_split, val_split, test_split", got, f"None: the splits of {name} are fixed")
