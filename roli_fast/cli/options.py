"""Options that several subcommands have, and what becomes of them. Names are timm's where it has them."""

import argparse
import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data import Splits, load
from .errors import UserError


@contextlib.contextmanager
def users_mistakes() -> Iterator[None]:
    """What the library refuses, as one line for the user: for what is done before any work begins."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise UserError(" ".join(str(error).split())) from error


def number(option: str, least: float = 0.0, *, open_below: bool = True) -> Callable[[str], float]:
    """Reads a number or a fraction such as 8/255: above ``least``, or from it on."""

    def read(text: str) -> float:
        try:
            numerator, slash, denominator = text.partition("/")
            value = float(numerator) / (float(denominator) if slash else 1)
        except (ValueError, ZeroDivisionError):
            value = math.nan
        if not (least < value < math.inf or (value == least and not open_below)):
            accepted = f"a number above {least:g}" if open_below else f"a number from {least:g} on"
            raise UserError(f"{option}: got {text!r}, accepted: {accepted}, such as 0.5 or 8/255")
        return value

    return read


def count(option: str, least: int = 1) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise UserError(f"{option}: got {text!r}, accepted: {least} or more")
        return int(text)

    return read


def options_of(group: Any) -> Callable[..., None]:
    """``option(name, metavar, help, **how)`` for a parser or a group of one."""

    def option(name: str, metavar: str | None, about: str, **how: Any) -> None:
        group.add_argument(name, help=about, **({"metavar": metavar} if metavar else {}), **how)

    return option


def one_of(option: str, accepted: Sequence[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in accepted:
            raise UserError(f"{option}: got {text!r}, accepted: {', '.join(accepted)}")
        return text

    return read


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """--dataset and all that :func:`roli_fast.data.load` takes, read by :func:`load_data`."""
    option = options_of(parser.add_argument_group("data"))
    names = (
        "cifar10, cifar100, caltech256, cub200, stanford_dogs, digits (default), folder, or one of timm's: "
        "torch/..., hfds/..., wds/..., tfds/..."
    )
    option("--dataset", "NAME", names, default="digits")
    option("--data-dir", "FOLDER", "where it lies, or is downloaded to")
    option("--dataset-download", None, "fetch it, where a library can", action="store_true")
    for split in ("train", "val", "test"):
        option(f"--{split}-split", "NAME", f"of the {split} images, in a folder or a set of timm's")
    option("--input-size", "PIXELS", "a side (default: the set's)", type=count("--input-size"))
    cropped = "of the resized image, that is cropped to --input-size (default: 0.875)"
    option("--crop-pct", "SHARE", cropped, type=number("--crop-pct"), default=0.875)
    mirrored = "of mirroring a training image (default: 0.5 where images are cropped, else 0)"
    option("--hflip", "PROBABILITY", mirrored, type=number("--hflip", open_below=False))
    option("--input-img-mode", "MODE", "RGB (default), or L for one channel of grey", default="RGB")
    option("--num-classes", "N", "for a set that does not tell", type=count("--num-classes", 2))
    seed = "chooses which images are cut off to validate (default: 0)"
    option("--split-seed", "N", seed, type=count("--split-seed", 0), default=0)
    decode = "processes that decode images (default: one per core, 4 at most)"
    option("--workers", "N", decode, type=count("--workers", 0))


def load_data(arguments: argparse.Namespace) -> Splits:
    with users_mistakes():
        return load(
            arguments.dataset,
            arguments.data_dir,
            train_split=arguments.train_split,
            val_split=arguments.val_split,
            test_split=arguments.test_split,
            input_size=arguments.input_size,
            crop_pct=arguments.crop_pct,
            hflip=arguments.hflip,
            input_img_mode=arguments.input_img_mode,
            num_classes=arguments.num_classes,
            split_seed=arguments.split_seed,
            download=arguments.dataset_download,
        )


def device_of(name: str | None) -> torch.device:
    """Of --device; by default CUDA where there is one."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(f"--device: got {name!r}, accepted: cpu, cuda, cuda:1 ...") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device: got {name!r}, accepted: cpu, cuda")
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"--device: got {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices"
            )
        torch.cuda.set_device(device)
    return device


def new_folder(option: str, path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: {error}") from error
    return path


def check_names(option: str, given: Sequence[str], accepted: Sequence[str] | dict[str, Any]) -> None:
    for name in given:
        if name not in accepted:
            raise UserError(f"{option}: got {name!r}, accepted: {', '.join(accepted)}")
    if len(set(given)) < len(given):
        raise UserError(f"{option}: got {' '.join(given)}, accepted: each once")
