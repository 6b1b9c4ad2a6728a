"""Making a report, from runs to its files."""

import contextlib
import dataclasses
import functools
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from .. import __version__
from ..checks import refuse
from ..data import Sample, Splits
from ..files import write
from ..models import Normalized, find_classifier, load_model
from . import pictures
from .advice import advice
from .compare import Comparison, compare
from .html import page
from .measure import Found, Tell, count_of, measure
from .runs import Run, check_comparable
from .sanity import sanity
from .sections import Drawn, body

IMAGES = 200
_AT_ONCE = 50  # images


def write_report(
    runs: Sequence[Run],
    splits: Splits,
    folder: str | Path,
    *,
    images: int = IMAGES,
    data: str | None = None,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> Path:
    """Attacks the models of finished runs and writes the report: ``report.html``, one page that needs no
    other file and no network, ``report.json`` with all numbers, and the pictures in the folder ``pictures``.

    runs: from :func:`read_run`. Several runs, of the same data, norm and eps, are compared.
    splits: the data that all of them were trained on. Its test images are attacked.
    images: how many test images are attacked at most; they are evenly spaced.
    data: a description of the data; by default, how many classes and images there are.
    device: where the models are attacked.
    progress: whether to show a progress bar.

    Returns the path of the page. The following errors are raised before anything is attacked: ValueError for
    runs that cannot be compared, that were trained on other data, or whose model does not fit the data;
    ImportError without matplotlib; OSError if nothing can be written.
    """
    pictures.check_matplotlib()
    runs, folder = list(runs), Path(folder)
    check_comparable(runs)
    if images < 1:
        refuse("images", images, "1 or more")
    batches = list(Sample(splits.test, images, _AT_ONCE, device=device))
    models = {run.name: _model(run, batches, len(splits.classes)) for run in runs}
    _check_data(runs, splits)
    _make(folder)
    found = _measured(runs, models, batches, splits, progress)
    comparison = compare(runs, found)
    report = _Report(data or _described(splits), runs, found, comparison, len(splits.val))
    return report.write(folder)


def _check_data(runs: Sequence[Run], splits: Splits) -> None:
    data = splits.fingerprint()
    for run in runs:
        if run.recipe.get("data", data) != data:
            got = f"{run.name}, which trained on other images, or other views of them ({run.recipe['data']})"
            refuse("runs", got, f"runs on these data ({data})")


def _model(run: Run, batches: Sequence[tuple[Tensor, Tensor]], classes: int) -> Normalized:
    """The run's model, on the batches' device. A model that does not fit the data is refused before any is
    attacked."""
    model = load_model(run.model_file)
    classifier, images = find_classifier(model), batches[0][0]
    if classifier.head.out_features != classes:
        refuse(
            "runs", f"{run.name} with {classifier.head.out_features} classes", f"{classes}, as the data have"
        )
    architecture = classifier.architecture
    if architecture is not None and architecture.in_chans != images.shape[1]:
        channels = f"{run.name} for {architecture.in_chans} channels"
        refuse("runs", channels, f"{images.shape[1]}, as the images have")
    return model.to(images.device)


def _make(folder: Path) -> None:
    """Makes the folders, and finds out now, rather than after an hour, if nothing can be written."""
    try:
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        for place in (folder, folder / "pictures"):
            with tempfile.TemporaryFile(dir=place):
                pass
    except OSError as error:
        raise type(error)(f"folder: got {folder}, accepted: one that can be written ({error})") from error


def _measured(
    runs: Sequence[Run],
    models: dict[str, Normalized],
    batches: Sequence[tuple[Tensor, Tensor]],
    splits: Splits,
    shown: bool,
) -> dict[str, Found]:
    norm, eps = runs[0].recipe["norm"], runs[0].recipe["eps"]
    total = len(runs) * count_of(norm, eps, batches[0][0].shape[1:])
    found = {}
    with _bar(total, shown) as tell:
        for run in runs:
            named = functools.partial(_named, tell, run.name)
            found[run.name] = measure(
                models[run.name], batches, norm=norm, eps=eps, classes=splits.classes, tell=named
            )
    return found


def _named(tell: Tell, name: str, what: str) -> None:
    tell(f"{name}: {what}")


@contextlib.contextmanager
def _bar(total: int, shown: bool) -> Iterator[Tell]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("report", total=total)
        begun = False

        def tell(what: str) -> None:
            nonlocal begun
            bar.update(task, description=what, advance=int(begun))
            begun = True

        yield tell
        bar.update(task, description="report", completed=total)


def _described(splits: Splits) -> str:
    return f"{len(splits.classes)} classes, {len(splits.test)} test images"


class _Report:
    def __init__(
        self,
        data: str,
        runs: list[Run],
        found: dict[str, Found],
        comparison: Comparison | None,
        validated: int,
    ):
        self._data, self._runs, self._comparison, self._validated = data, runs, comparison, validated
        self._found = found
        self._numbers = {name: one.numbers for name, one in found.items()}

    def write(self, folder: Path) -> Path:
        drawn = {run.name: self._drawn(run) for run in self._runs}
        compared = self._compared()
        prefixes = _slugs(drawn)
        files = {f"{prefixes[name]}-{one.name}.png": one for name, d in drawn.items() for one in d.all}
        files |= {f"{_COMPARISON}-{one.name}.png": one for one in compared}
        earlier = _pictures_of(folder) - files.keys()
        numbers = json.dumps(self._as_json() | {"pictures": [*files]}, indent=1, allow_nan=False) + "\n"
        write(folder / "report.json", numbers.encode())
        for name, one in files.items():
            write(folder / "pictures" / name, one.png)
        for name in earlier:
            (folder / "pictures" / name).unlink(missing_ok=True)
        parts = body(self._data, self._runs, self._found, drawn, self._comparison, compared)
        title = f"Robustness report: {', '.join(run.name for run in self._runs)}"
        path = folder / "report.html"
        write(path, page(title, parts).encode(errors="backslashreplace"))  # of files' names
        return path

    def _drawn(self, run: Run) -> Drawn:
        found = self._numbers[run.name]
        examples = [
            pictures.example(one, number, found.norm, found.eps)
            for number, one in enumerate(self._found[run.name].shown, start=1)
        ]
        return Drawn(
            learning=pictures.learning(run, self._validated),
            eps=pictures.against_eps({run.name: found}),
            cost=pictures.cost(run),
            examples=examples,
            transfer=pictures.transfer_picture(run, found),
        )

    def _compared(self) -> list[pictures.Picture]:
        if self._comparison is None:
            return []
        return [
            pictures.accuracies(self._runs, self._numbers),
            pictures.gaps(self._runs, self._comparison),
            pictures.against_eps(self._numbers),
            pictures.against_cost(self._runs, {name: one.robust for name, one in self._numbers.items()}),
        ]

    def _as_json(self) -> dict[str, Any]:
        return {
            "roli_fast": __version__,
            "data": self._data,
            "runs": {run.name: self._run_as_json(run) for run in self._runs},
            "comparison": None if self._comparison is None else dataclasses.asdict(self._comparison),
        }

    def _run_as_json(self, run: Run) -> dict[str, Any]:
        found, advised = self._numbers[run.name], advice(self._found[run.name])
        checks = [dataclasses.asdict(check) | {"passed": check.passed} for check in sanity(found)]
        return {
            "folder": str(run.folder),
            "kind": run.kind,
            "method": run.method,
            "whole_test_set": run.test,
            "cost": dataclasses.asdict(run.cost) | {"passes": run.cost.passes, "seconds": run.cost.seconds},
            "measured": dataclasses.asdict(found),
            "checks": checks,
            "advice": None if advised is None else dataclasses.asdict(advised),
        }


def _pictures_of(folder: Path) -> set[str]:
    """The names of the pictures of an earlier report in this folder. No other files may be deleted."""
    try:
        names = json.loads((folder / "report.json").read_text())["pictures"]
        return {name for name in names if Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


_COMPARISON = "comparison"  # of the pictures of several runs


def _slugs(names: Iterable[str]) -> dict[str, str]:
    """For each run, what the names of its pictures begin with. No two are alike."""
    found: dict[str, str] = {}
    for name in names:
        slug, number = _slug(name), 1
        while slug in (_COMPARISON, *found.values()):
            number += 1
            slug = f"{_slug(name)}-{number}"
        found[name] = slug
    return found


def _slug(name: str) -> str:
    """The name in a form that is fit for a file's name, of which systems allow 255 characters."""
    return re.sub(r"[^a-zA-Z0-9.]+", "-", name)[:100].strip("-.").lower() or "run"
