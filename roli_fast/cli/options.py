"""Options that several subcommands share, and their evaluation. Names are timm's where it has them."""

import argparse
import ast
import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data import Sample, Splits, load
from ..files import read_json
from .errors import UserError


@contextlib.contextmanager
def users_mistakes() -> Iterator[None]:
    """Raises UserError, with one line for the user, for what the library refuses. Other errors, which would
    be bugs, pass through."""
    try:
        yield
    except (ValueError, TypeError, ImportError, OSError) as error:
        text = " ".join(str(error).split())
        named = (FileNotFoundError, NotADirectoryError, PermissionError, ImportError)
        if not isinstance(error, named) and "accepted: " not in text:
            raise
        raise UserError(text) from error


Effects = list[tuple[tuple[str, ...], bool, str]]


def size_effect(arguments: argparse.Namespace) -> tuple[tuple[str, ...], bool, str]:
    """Whether --img-size has an effect, given --model and --resize."""
    from ..models.create import is_built_for_one_size  # timm takes seconds

    used = arguments.resize or is_built_for_one_size(arguments.model)
    return ("img_size",), used, "--resize, or a --model that is built for one size"


def refuse_without_effect(arguments: argparse.Namespace, effects: Effects) -> None:
    """Raises UserError for an option that was given but has no effect beside the others.

    effects: for each group of options, their names, whether they have an effect, and what they need for it.
    """
    for options, has_effect, accepted in effects:
        for option in options:
            value = getattr(arguments, option)
            if value is not None and value is not False and not has_effect:
                got = f"--{option.replace('_', '-')}: got {'it' if value is True else value}"
                raise UserError(f"{got}, which has no effect, accepted: it with {accepted}")


def number(option: str, *, or_zero: bool = False) -> Callable[[str], float]:
    """A parser of numbers above 0, or from 0 on, and of fractions such as 8/255."""

    def read(text: str) -> float:
        try:
            numerator, slash, denominator = text.partition("/")
            value = float(numerator) / (float(denominator) if slash else 1)
        except (ValueError, ZeroDivisionError):
            value = math.nan
        if not (0 < value < math.inf or (value == 0 and or_zero)):
            accepted = "a number from 0 on" if or_zero else "a number above 0"
            raise UserError(f"{option}: got {text!r}, accepted: {accepted}, such as 0.5 or 8/255")
        return value

    return read


def count(option: str, least: int = 1) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) < 2**63:
            raise UserError(f"{option}: got {text!r}, accepted: {least} or more, below 2^63")
        return int(text)

    return read


def one_of(option: str, accepted: Sequence[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in accepted:
            raise UserError(f"{option}: got {text!r}, accepted: {', '.join(accepted)}")
        return text

    return read


class Options:
    """Adds options to a group of a parser. Help texts end with the default, or with what ``shown`` gives in
    its place."""

    def __init__(self, parser: argparse.ArgumentParser, title: str):
        self._group = parser.add_argument_group(title)

    def text(self, name: str, metavar: str, about: str, *, shown: Any = None, **how: Any) -> None:
        default = how.get("default") if shown is None else shown
        if default not in (None, []):
            about += f" (default: {' '.join(map(str, default)) if isinstance(default, list) else default})"
        self._group.add_argument(name, metavar=metavar, help=about, **how)

    def number(self, name: str, metavar: str, about: str, *, or_zero: bool = False, **how: Any) -> None:
        self.text(name, metavar, about, type=number(name, or_zero=or_zero), **how)

    def count(self, name: str, metavar: str, about: str, least: int = 1, **how: Any) -> None:
        self.text(name, metavar, about, type=count(name, least), **how)

    def choice(self, name: str, about: str, accepted: Sequence[str], **how: Any) -> None:
        metavar = name[2:].upper().replace("-", "_")
        self.text(name, metavar, f"{about}: {', '.join(accepted)}", type=one_of(name, accepted), **how)

    def flag(self, name: str, about: str) -> None:
        self._group.add_argument(name, help=about, action="store_true")


def add_data_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """--dataset and all that :func:`roli_fast.data.load` takes, read by :func:`load_data`. default: what the
    help text says of none."""
    option = Options(parser, "data")
    names = (
        "cifar10, cifar100, caltech256, cub200, stanford_dogs, digits, folder, or one of timm's: "
        f"torch/..., hfds/..., wds/..., tfds/... ({default})"
    )
    option.text("--dataset", "NAME", names)
    option.text("--data-dir", "FOLDER", "where the data set is, or is downloaded to")
    option.flag("--dataset-download", "download the data set, if its library can")
    for split in ("train", "val", "test"):
        option.text(
            f"--{split}-split", "NAME", f"name of the {split} split, in a folder or a data set of timm's"
        )
    option.count("--input-size", "PIXELS", "image size (default: the data set's)")
    option.number("--crop-pct", "SHARE", "share of the resized image's side that is kept (default: 0.875)")
    mirrored = "probability of mirroring (default: 0.5 where images are cropped, else 0)"
    option.number("--hflip", "SHARE", mirrored, or_zero=True)
    option.text("--input-img-mode", "MODE", "RGB (default), or L for one channel of grey")
    option.count("--num-classes", "N", "number of classes, for a data set that does not say", least=2)
    option.count(
        "--split-seed",
        "N",
        "seed that chooses images for validation or test, if they have no split (default: 0)",
        least=0,
    )
    option.count("--workers", "N", "processes that decode images (default: one per core, at most 4)", least=0)


# Options that load() takes, which has defaults for those that are not given.
DATA_OPTIONS = (
    "data_dir",
    "train_split",
    "val_split",
    "test_split",
    "input_size",
    "crop_pct",
    "hflip",
    "input_img_mode",
    "num_classes",
    "split_seed",
)


def load_data(arguments: argparse.Namespace) -> Splits:
    name = arguments.dataset or "digits"
    refuse_without_effect(
        arguments,
        [
            (("dataset_download",), name not in ("digits", "folder"), "a --dataset that is fetched"),
            (("input_img_mode",), name != "digits", "another --dataset than digits"),
        ],
    )
    given = {name: getattr(arguments, name) for name in DATA_OPTIONS}
    chosen = {name: value for name, value in given.items() if value is not None}
    with users_mistakes():
        return load(name, download=arguments.dataset_download, **chosen)


def sampled(splits: Splits, arguments: argparse.Namespace, device: torch.device) -> Sample:
    """The images that --split, --images, --batch-size and --workers ask for."""
    images = getattr(splits, arguments.split)
    return Sample(images, arguments.images, arguments.batch_size, workers=arguments.workers, device=device)


def pairs(option: str, given: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE options as keyword arguments; values as Python has them, else text."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name.isidentifier() and equals):
            raise UserError(f"{option}: got {text!r}, accepted: NAME=VALUE")
        try:
            found[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            found[name] = value
    return found


def chosen_device(name: str | None) -> torch.device:
    """The device of --device; by default CUDA if there is one."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"--device: got {name!r}, accepted: cpu, cuda, cuda:1 ...") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device: got {name!r}, accepted: cpu, cuda")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)  # torch 2.11 sets none without a number
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"--device: got {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices"
            )
        torch.cuda.set_device(device)
    return device


def check_eps(norm: str, eps: float) -> None:
    if norm == "linf" and eps > 1:
        raise UserError(f"--eps: got {eps:g}, accepted: at most 1 in linf, such as 8/255")


def new_folder(option: str, path: Path, result: str | None = None) -> Path:
    """result: the name of what will be in it; an earlier one is never overwritten."""
    if result is not None and (path / result).exists():
        raise UserError(f"{option}: {path} has an earlier {result}, accepted: {option} with another folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: {error}") from error
    return path


def read_arguments(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments that a run was given and its recipe of finetuning, from its args.json."""
    about = read_json(path)
    try:
        return dict(about["arguments"]), dict(about["finetuning"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: got a file without arguments of a run, accepted: a run's own") from error


def check_names(option: str, given: Sequence[str], accepted: Sequence[str] | dict[str, Any]) -> None:
    for name in given:
        if name not in accepted:
            raise UserError(f"{option}: got {name!r}, accepted: {', '.join(accepted)}")
    if len(set(given)) < len(given):
        raise UserError(f"{option}: got {' '.join(given)}, accepted: each once")
