"""``roli-fast bench``: our attack against every peer that is installed, on models of the user's choice."""

import argparse
import contextlib
import dataclasses
import datetime
import importlib.util
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..checks import first_line
from ..engine import PRECISIONS
from ..files import write_json
from ..speed import machine
from ..speed.comparison import Comparison, compare
from ..speed.peers import PEERS, Settings, find
from ..speed.report import draw, table
from ..speed.subjects import labelled, random_images, settle, timm_model
from .errors import UserError
from .options import Options, check_eps, check_names, chosen_device, new_folder

# eps in [0, 1] pixels, as the field has them for images of some dozens of pixels; a step is a quarter.
_EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 12}

_DEFAULTS: dict[str, Any] = {
    "models": ["resnet18"],
    "size": [64],
    "batch_size": 32,
    "batches": 2,
    "steps": [10],
    "rounds": 7,
}
# Whether it runs, not how fast.
_QUICK = _DEFAULTS | {"models": ["resnet10t"], "size": [32], "batch_size": 2, "steps": [2], "rounds": 3}


@dataclasses.dataclass(frozen=True)
class _Subject:
    model: str
    shape: tuple[int, int, int, int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    option = Options(parser, "measurement")  # where defaults are only shown, --quick has others
    names = "timm's names, or NAME:NxCxHxW with batch size and image"
    option.text("--models", "MODEL", names, nargs="+", shown=_DEFAULTS["models"])
    option.count("--size", "PIXELS", "image size", nargs="+", shown=_DEFAULTS["size"])
    option.count("--batch-size", "N", "images per call", least=2, shown=_DEFAULTS["batch_size"])
    batches = "number of different batches, over all of which robust accuracy is measured"
    option.count("--batches", "N", batches, shown=_DEFAULTS["batches"])
    option.count("--num-classes", "N", "number of classes of the models", least=2, default=10)
    option.text("--checkpoint", "FILE", "weights, for one model (default: random)", type=Path)
    option.text("--norms", "NORM", "norms, of linf, l2, l1", nargs="+", default=["linf"])
    eps = "radius for each norm, for pixels in [0, 1] (default: 8/255 in linf, 0.5 in l2, 12 in l1)"
    option.number("--eps", "EPS", eps, nargs="+")
    option.number("--step-size", "SIZE", "step size for each norm (default: eps / 4)", nargs="+")
    option.count("--steps", "N", "number of gradient steps", nargs="+", shown=_DEFAULTS["steps"])
    precisions = f"precisions, of {', '.join(PRECISIONS)}"
    option.text("--precisions", "PRECISION", precisions, nargs="+", default=["fp32", "bf16"])
    peers = f"peers, of {', '.join(PEERS)}"
    option.text("--peers", "PEER", peers, nargs="*", default=list(PEERS), shown="all")
    rounds = "number of rounds, in each of which everything is timed once"
    option.count("--rounds", "N", rounds, least=2, shown=_DEFAULTS["rounds"])
    option.text("--device", "DEVICE", "cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    option.count("--seed", "N", "seed of weights, images and attacks", least=0, default=0)
    option.flag("--quick", "small defaults, to see in under a minute whether it runs")
    folder = "folder for picture and numbers"
    option.text("--output", "FOLDER", folder, type=Path, default=Path("bench-results"))


def run(arguments: argparse.Namespace) -> None:
    for name, default in (_QUICK if arguments.quick else _DEFAULTS).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    check_names("--norms", arguments.norms, _EPS)
    check_names("--precisions", arguments.precisions, PRECISIONS)
    check_names("--peers", arguments.peers, PEERS)
    device = chosen_device(arguments.device)
    subjects, attacks = _subjects(arguments), _attacks(arguments)
    folder = new_folder("--output", arguments.output)

    console = Console(width=None if Console().is_terminal else 160)
    peers, missing = find(arguments.peers)
    for name, reason in missing.items():
        console.print(f"without {name}: {reason}", style="yellow", markup=False)
    _seed(arguments.seed)
    results: list[tuple[str, Comparison]] = []
    for subject in subjects:
        model, batches = _prepared(subject, arguments, device)
        for settings in attacks:
            with _progress(subject.model) as progress:
                found = compare(
                    model,
                    batches,
                    settings,
                    precisions=arguments.precisions,
                    peers=peers,
                    rounds=arguments.rounds,
                    progress=progress,
                )
            results.append((subject.model, found))
            console.print(table(subject.model, found))
            _save(folder, results, missing, arguments, device)  # also of a run that is interrupted later
    _say_where(console, arguments, results, folder, device)


def _subjects(arguments: argparse.Namespace) -> list[_Subject]:
    found = []
    for given in arguments.models:
        model, _, shape = given.partition(":")
        if not shape:
            found += [_Subject(model, (arguments.batch_size, 3, side, side)) for side in arguments.size]
            continue
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+)", shape)
        numbers = tuple(map(int, match.groups())) if match else ()
        if len(numbers) != 4 or numbers[0] < 2 or 0 in numbers:
            raise UserError(f"--models: got {given!r}, accepted: NAME, or NAME:NxCxHxW with N of at least 2")
        found.append(_Subject(model, numbers))
    if arguments.checkpoint and len({subject.model for subject in found}) > 1:
        raise UserError("--checkpoint: got several models, accepted: one model")
    if arguments.checkpoint and not arguments.checkpoint.is_file():
        raise UserError(f"--checkpoint: {arguments.checkpoint} is no file")
    return found


def _attacks(arguments: argparse.Namespace) -> list[Settings]:
    every_eps = _per_norm("--eps", arguments.eps, arguments.norms) or [_EPS[n] for n in arguments.norms]
    step_sizes = _per_norm("--step-size", arguments.step_size, arguments.norms) or [e / 4 for e in every_eps]
    for norm, eps in zip(arguments.norms, every_eps, strict=True):
        check_eps(norm, eps)
    sized = zip(arguments.norms, every_eps, step_sizes, strict=True)
    return [
        Settings(norm, eps, step_size, steps)
        for (norm, eps, step_size), steps in itertools.product(sized, arguments.steps)
    ]


def _per_norm(option: str, given: list[float] | None, norms: list[str]) -> list[float] | None:
    if given is not None and len(given) != len(norms):
        raise UserError(f"{option}: got {len(given)}, accepted: one for each of --norms {' '.join(norms)}")
    return given


def _seed(seed: int) -> None:
    import numpy

    torch.manual_seed(seed)
    numpy.random.seed(seed % 2**32)  # ART draws from it


def _prepared(subject: _Subject, arguments: argparse.Namespace, device: torch.device) -> tuple[Any, Any]:
    """The model with sensible statistics, and batches labelled by it."""
    count, *shape = subject.shape
    try:
        model = timm_model(
            subject.model, shape, num_classes=arguments.num_classes, checkpoint=arguments.checkpoint
        ).to(device)
        images = [random_images(count, shape).to(device) for _ in range(arguments.batches)]
        if arguments.checkpoint is None:
            settle(model, images)
        return model, labelled(model, images)
    except torch.OutOfMemoryError:
        raise UserError(f"--models: {subject.model} at {subject.shape} does not fit into {device}") from None
    except Exception as error:  # what timm and torch say of a model, size or checkpoint that does not fit
        raise UserError(f"--models {subject.model}: {first_line(error)}") from error


@contextlib.contextmanager
def _progress(model: str) -> Iterator[Any]:
    columns = (TextColumn("{task.description:<24}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    console = Console(stderr=True)
    # No thread of its own that draws while something is timed.
    with Progress(*columns, TimeElapsedColumn(), console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task(model)

        def advance(what: str, done: int, of: int) -> None:
            bar.update(task, description=f"{model}: {what}", completed=done, total=of, refresh=True)

        yield advance


def _save(
    folder: Path,
    results: list[tuple[str, Comparison]],
    missing: dict[str, str],
    arguments: argparse.Namespace,
    device: torch.device,
) -> None:
    packages = {name: machine.version(peer.package) for name, peer in PEERS.items()}
    saved = {
        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(device.type),
        "commit": machine.commit(),
        "peers": packages | {"timm": machine.version("timm")},
        "missing": missing,
        "weights": "a checkpoint's" if arguments.checkpoint else "random",
        "labels": "the model's own predictions",
        "seed": arguments.seed,
        "quick": arguments.quick,
        "comparisons": [{"model": model} | dataclasses.asdict(found) for model, found in results],
    }
    write_json(folder / "bench.json", saved)


def _say_where(
    console: Console,
    arguments: argparse.Namespace,
    results: list[tuple[str, Comparison]],
    folder: Path,
    device: torch.device,
) -> None:
    weights = "a checkpoint's" if arguments.checkpoint else "random"
    console.print(
        f"Weights: {weights}. Images: random. Labels: the model's own predictions, so that clean accuracy is "
        "100 %." + (" --quick shows that it runs, not how fast." if arguments.quick else "")
    )
    if importlib.util.find_spec("matplotlib") is None:
        console.print("No picture: it needs matplotlib (pip install 'roli-fast[demo]')", markup=False)
    else:
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else machine.cpu_name()
        conditions = f"{where} · torch {torch.__version__} · {torch.get_num_threads()} threads"
        draw(results, conditions, folder / "bench.png")
        console.print(f"Picture: {folder / 'bench.png'}", soft_wrap=True)
    console.print(f"Numbers: {folder / 'bench.json'}", soft_wrap=True)
