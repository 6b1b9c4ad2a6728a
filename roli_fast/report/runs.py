"""What a finished run has left in its folder."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

from ..checks import refuse
from ..models import read_metadata
from ..training import Cost

_COUNTS = ("forwards", "input_gradients", "weight_gradients")


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
    try:
        result = json.loads((folder / "result.json").read_text())
        stages = {n: _stage(folder / n, n, result["stages"][n]) for n in names if n in result["stages"]}
        there = folder / "args.json"
        about = dict(json.loads(there.read_text())) if there.is_file() else {}
        method = json.loads(read_metadata(folder / "finetune" / "best.safetensors")["method"])["name"]
        name = name or folder.resolve().name
        for which in result["test"].keys() & {
            "clean",
            "robust",
        }:  # what is missing fails here, not after all attacks
            _ = result["test"][which]["value"], result["test"][which]["interval"]
        return Run(name, folder, stages, method, _kind(stages, method, about), result["test"], about)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        refuse("run", f"{folder}, whose files cannot be read ({reason})", "a whole run")


def _stage(folder: Path, name: str, result: dict[str, Any]) -> Stage:
    with (folder / "metrics.csv").open() as file:
        history = [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]
    recipe = json.loads((folder / "recipe.json").read_text())
    return Stage(name, recipe, history, int(result["best"]["epoch"]) - 1, list(result["warnings"]))


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
