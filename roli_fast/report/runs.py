"""What a finished run has left in its folder."""

import contextlib
import csv
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..attacks.norms import NORMS
from ..checks import check_choice, check_number, refuse
from ..models import read_metadata
from ..training import Cost

_COUNTS = ("forwards", "input_gradients", "weight_gradients")
# By column of metrics.csv that a report shows, the most that it can be.
_MOST = {field.name: math.inf for field in dataclasses.fields(Cost)} | {"train_loss": math.inf}
_MOST |= dict.fromkeys(("train_accuracy", "val_clean", "val_robust"), 1.0)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of a run.

    recipe: its settings, named as in :class:`roli_fast.training.Recipe`.
    history: one row per epoch, with the columns of ``metrics.csv`` by name: numbers, or None for what was not
        measured.
    best: the row, counted from 0, of the epoch whose weights were kept.
    warnings: of overfitting.
    """

    name: str
    recipe: dict[str, Any]
    history: list[dict[str, float | None]]
    best: int
    warnings: list[str]

    @property
    def cost(self) -> Cost:
        """The cost of all its epochs."""
        return sum((row_cost(row) for row in self.history), Cost())


def row_cost(row: dict[str, float | None]) -> Cost:
    """The cost of an epoch."""
    found = {f.name: row[f.name] or 0.0 for f in dataclasses.fields(Cost)}
    return Cost(**{name: int(v) if name in _COUNTS else v for name, v in found.items()})  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run of :func:`roli_fast.training.roli`.

    name: what it is called in the report.
    stages: "probe", if there was one, and "finetune".
    method: the method of finetuning.
    kind: "RoLI" if finetuning began from a probed head; "RanLI" if it began from a random one, and "RanLI,
        small head" if that was torch's own; "linear probing" if there was no finetuning; or "pretrained
        head".
    test: the accuracies on all test images, from ``result.json``.
    about: what else ``args.json`` says: arguments, versions, commit. It is empty for a run of the Python API.
    """

    name: str
    folder: Path
    stages: dict[str, Stage]
    method: str
    kind: str
    test: dict[str, Any]
    about: dict[str, Any]

    @property
    def model_file(self) -> Path:
        return self.folder / "finetune" / "best.safetensors"

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of finetuning. Its ball is the run's."""
        return self.stages["finetune"].recipe

    @property
    def cost(self) -> Cost:
        return sum((stage.cost for stage in self.stages.values()), Cost())

    @property
    def title(self) -> str:
        return self.kind if self.kind == "linear probing" else f"{self.kind}, {self.method}"


def read_run(folder: str | Path, name: str | None = None) -> Run:
    """Reads the run in a folder that :func:`roli_fast.training.roli` or ``roli-fast train`` has made.

    name: by default the folder's own. A run of the Python API without a probe counts as RanLI, because its
        folder does not say with which head it began.

    Raises ValueError for a folder that holds no run or an unfinished one, and for files that cannot be read.
    """
    folder = Path(folder)
    names = [n for n in ("probe", "finetune") if (folder / n / "recipe.json").is_file()]
    if not names:
        refuse("run", f"{folder}, which holds no run", "a folder of roli-fast train or of roli(folder=...)")
    if not (folder / "result.json").is_file() or "finetune" not in names:
        refuse("run", f"{folder}, which is unfinished", "a finished run: roli-fast train --resume ends it")
    with _reading(folder / "result.json") as file:
        result = json.loads(file.read_text())
        kept = {n: (int(s["best"]["epoch"]), list(s["warnings"])) for n, s in result["stages"].items()}
        test = dict(result["test"])
        for which in test.keys() & {"clean", "robust"}:  # what is missing fails here, not after all attacks
            _ = test[which]["value"], test[which]["interval"]
    stages = {n: _stage(folder / n, *kept[n]) for n in names if n in kept}
    about: dict[str, Any] = {}
    if (folder / "args.json").is_file():
        with _reading(folder / "args.json") as file:
            about = dict(json.loads(file.read_text()))
            about["arguments"] = dict(about["arguments"])
    with _reading(folder / "finetune" / "best.safetensors") as file:
        method = json.loads(read_metadata(file)["method"])["name"]
    name = name or folder.resolve().name
    return Run(name, folder, stages, method, _kind(stages, method, about), test, about)


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[Path]:
    """Raises ValueError, which names the file, for whatever goes wrong with it."""
    try:
        yield file
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        refuse("run", f"{file}, which cannot be read ({reason})", "a whole run's")


def _stage(folder: Path, best: int, warnings: list[str]) -> Stage:
    """best: the epoch, counted from 1."""
    with _reading(folder / "metrics.csv") as path, path.open() as file:
        history = [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]
        _check(history, best)
    with _reading(folder / "recipe.json") as path:
        recipe = dict(json.loads(path.read_text()))
        check_choice("norm", recipe["norm"], tuple(NORMS))
        check_number("eps", recipe["eps"], 0)
    return Stage(folder.name, recipe, history, best - 1, warnings)


def _check(history: list[dict[str, float | None]], best: int) -> None:
    if not 1 <= best <= len(history):
        raise ValueError(f"{len(history)} epochs, where epoch {best} was the best")
    for number, row in enumerate(history, 1):
        for column, most in _MOST.items():
            value = row[column]
            if value is None and column == "val_robust":
                continue
            if value is None or not (0 <= value <= most and math.isfinite(value)):
                raise ValueError(f"{column} is {value} in epoch {number}")


def _kind(stages: dict[str, Stage], method: str, about: dict[str, Any]) -> str:
    if method == "linear":
        return "linear probing"
    if "probe" in stages:
        return "RoLI"
    init = about.get("arguments", {}).get("init")
    return {"pretrained": "pretrained head", "small": "RanLI, small head"}.get(init, "RanLI")


def check_comparable(runs: list[Run]) -> None:
    """Raises ValueError if there is no run, if two have the same name, or if their attacks had different
    balls."""
    if not runs:
        refuse("runs", "none", "at least one")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        refuse("runs", f"{', '.join(names)}", "each once, by names of their own")
    first = runs[0]
    for run in runs[1:]:
        if _ball(run) != _ball(first):
            refuse(
                "runs",
                f"{first.name} with {_ball(first)} and {run.name} with {_ball(run)}",
                "runs of one norm and eps: others cannot be compared",
            )


def _ball(run: Run) -> str:
    return f"{run.recipe['norm']}, eps {run.recipe['eps']:.6g}"
