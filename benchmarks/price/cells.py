"""Cells: what an arm has learnt and spent, for a data size, a learning rate and a seed, with its weights.
Each is a file of its own; one that is there is finished."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from roli_fast.attacks import PGD
from roli_fast.data import Splits, StoredImages
from roli_fast.evaluation import evaluate
from roli_fast.files import write
from roli_fast.models import find_classifier
from roli_fast.speed import machine
from roli_fast.training import Cost, Recipe, Rounds, probe, train
from roli_fast.training.attack import validation_attack
from roli_fast.training.result import merit

from ..baselines import recipe as public
from . import arms, problem
from .carried import carrying

Cell = tuple[dict[str, Any], nn.Module]  # what is said of it, and the model with its best weights


@dataclasses.dataclass(frozen=True)
class Task:
    """A cell to train.

    name: an arm, or one of arms.HEADS. setting: of an arm its learning rate, None for the best of the rates;
        of a head by SGD its weight decay. rates: among which that best one is. needs: what is trained before.
    """

    size: int
    name: str
    seed: int
    setting: float | None = None
    rates: tuple[float, ...] = ()
    needs: tuple["Task", ...] = ()

    def __str__(self) -> str:
        setting = "" if self.setting is None else f", {self.setting:g}"
        return f"{self.size} {self.name}{setting}, seed {self.seed}"


def plan(
    sizes: Sequence[int], asked: Sequence[str] | None, seeds: Sequence[int], rates: Sequence[float]
) -> list[Task]:
    """All heads, what a rate is chosen by (the first seed), the rest: nothing before what it needs."""
    heads: list[Task] = []
    choosing: list[Task] = []
    rest: list[Task] = []
    for size in sorted(sizes):
        for name in arms.of_size(asked, size):
            kind = arms.ARMS[name].head
            if arms.ARMS[name].epochs is None:
                heads += [head for seed in seeds for head in heads_of(size, kind, seed)]
                continue
            heads += [head for seed in sorted({0, *seeds}) for head in heads_of(size, kind, seed)]
            choices = tuple(Task(size, name, 0, lr, needs=heads_of(size, kind, 0)) for lr in rates)
            choosing += choices
            for seed in (s for s in seeds if s > 0):
                needs = heads_of(size, kind, seed) + choices
                rest.append(Task(size, name, seed, rates=tuple(rates), needs=needs))
    return list(dict.fromkeys(heads + choosing + rest))


def heads_of(size: int, kind: str, seed: int) -> tuple[Task, ...]:
    """From which the best head of a kind is chosen; none where it is random."""
    settings = {"rounds": (None,), "rounds-7": (None,), "sgd": arms.DECAYS}.get(kind, ())
    return tuple(Task(size, kind, seed, setting) for setting in settings)


def place(work: Path, task: Task) -> Path:
    """Of a task whose setting is known."""
    if task.name in arms.HEADS:
        file = task.name if task.setting is None else f"{task.name}-{task.setting:g}"
        return work / str(task.size) / "heads" / str(task.seed) / f"{file}.json"
    return work / str(task.size) / task.name / f"{task.setting:g}-{task.seed}.json"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def save(path: Path, found: dict[str, Any]) -> None:
    write(path, f"{json.dumps(found)}\n".encode())


def train_cell(work: Path, progress: bool, task: Task) -> None:
    """Where it is not there yet. Raises FileNotFoundError where all of a kind that it needs have failed."""
    if task.name not in arms.HEADS and task.setting is None:
        choices = [place(work, Task(task.size, task.name, 0, lr)) for lr in task.rates]
        lr = float(best_of(choices, "a rate").stem.rpartition("-")[0])
        task = dataclasses.replace(task, setting=lr)
    path = place(work, task)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    found, model = (probed if task.name in arms.HEADS else finetuned)(work, progress, task)
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    write(path.with_suffix(".pt"), lambda file: torch.save(weights, file))
    save(path, found)  # last: it says that the cell is finished


def best_of(paths: Sequence[Path], what: str) -> Path:
    """The first of those that are there that has validated best."""
    there = sorted(path for path in paths if path.exists())
    if not there:
        raise FileNotFoundError(f"{what} was to be chosen from {', '.join(map(str, paths))}: none is there")
    return max(there, key=lambda path: read(path)["validated"])


def probed(work: Path, progress: bool, task: Task) -> Cell:
    data, model = problem.splits(task.size), problem.backbone(task.seed, "linear")
    if task.setting is None:
        rounds = Rounds(**(arms.SEVEN_STEPS if task.name == "rounds-7" else {}))
        done = probe(model, data, Recipe(1, 1.0, seed=task.seed, **problem.ATTACK), rounds, progress=progress)
    else:
        by_sgd = Recipe(
            arms.PROBING_EPOCHS, 0.1, weight_decay=task.setting, seed=task.seed, **problem.PROBING
        )
        done = train(model, data, by_sgd, progress=progress, title=str(task))
    return described(done.history, done.best, done.cost, model, data), model


def finetuned(work: Path, progress: bool, task: Task) -> Cell:
    arm, data, model = arms.ARMS[task.name], problem.splits(task.size), problem.backbone(task.seed, "full")
    if arm.head == "random":
        find_classifier(model).head.reset_parameters()
    elif arm.head != "paper":
        heads = [place(work, head) for head in heads_of(task.size, arm.head, task.seed)]
        load(model, best_of(heads, "a head"))
    recipe = Recipe(arm.epochs, task.setting, seed=task.seed, **(problem.FINETUNING | arm.settings))
    if arm.public:
        history, spent = public.train(model, data, recipe)
        best = max(range(len(history)), key=lambda e: merit(history[e]))
        cost = Cost(spent.forwards, spent.backwards - spent.to_weights, spent.to_weights)
        return described(history, best, cost, model, data), model
    robust: list[float] = []
    with carrying(data.train) if arm.carried else contextlib.nullcontext():
        done = train(
            model, data, recipe, progress=progress, title=str(task),
            on_epoch_end=lambda net, _: robust.append(robustness(net, problem.held_out())),
        )  # fmt: skip
    return described(done.history, done.best, done.cost, model, data) | {"held_out": robust}, model


def load(model: nn.Module, cell: Path) -> None:
    weights = torch.load(cell.with_suffix(".pt"), map_location="cpu", weights_only=True)
    model.load_state_dict(weights)


def described(
    history: list[dict[str, Any]], best: int, cost: Cost, model: nn.Module, data: Splits
) -> dict[str, Any]:
    pgd = PGD(
        eps=problem.EPS, step_size=problem.EPS / 4, steps=20, iterate="best", early_stop=True,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    parts = zip(data.test.images.split(problem.TESTED), data.test.labels.split(problem.TESTED), strict=True)
    tested = evaluate(model, parts, pgd, strict=False)
    return {
        "device": machine.slug(problem.DEVICE),
        "history": history,
        "best": best,
        "validated": history[best]["val_robust"],
        "cost": dataclasses.asdict(cost),
        "right": {"clean": tested.clean.right.int().tolist(), "pgd20": tested.right.int().tolist()},
    }


def robustness(model: nn.Module, data: StoredImages) -> float:
    """Under validation's attack."""
    attack = validation_attack(Recipe(1, 1.0, **problem.ATTACK), "fp32", torch.Generator().manual_seed(0))
    parts = zip(data.images.split(problem.TESTED), data.labels.split(problem.TESTED), strict=True)
    return evaluate(model, parts, attack, strict=False).value


# --- which of them count


def chosen(work: Path, size: int) -> dict[str, dict[int, Path]]:
    """Of each arm the cells that count, by seed: of those there are, those with the rate that is best with
    the first seed; of heads the best."""
    found = {}
    for name, arm in arms.ARMS.items():
        cells = best_heads(work, size, arm.head) if arm.epochs is None else _with_best_rate(work, size, name)
        if cells:
            found[name] = cells
    return found


def best_heads(work: Path, size: int, kind: str) -> dict[int, Path]:
    seeds = sorted(int(folder.name) for folder in (work / str(size) / "heads").glob("*"))
    files = {seed: [place(work, head) for head in heads_of(size, kind, seed)] for seed in seeds}
    return {seed: best_of(paths, "a head") for seed, paths in files.items() if any(p.exists() for p in paths)}


def _with_best_rate(work: Path, size: int, name: str) -> dict[int, Path]:
    folder = work / str(size) / name
    choices = sorted(folder.glob("*-0.json"))
    if not choices:
        return {}
    rate = best_of(choices, "a rate").stem.rpartition("-")[0]
    found = {int(path.stem.rpartition("-")[2]): path for path in folder.glob(f"{rate}-*.json")}
    return dict(sorted(found.items()))


def not_chosen(work: Path, size: int, name: str, counting: Sequence[Path]) -> dict[str, dict[int, Path]]:
    """Of an arm or of a head by SGD the other cells, by learning rate or weight decay, and seed."""
    arm, folder = arms.ARMS[name], work / str(size)
    found: dict[str, dict[int, Path]] = {}
    if arm.epochs is None:
        seeds = [int(seed.name) for seed in (folder / "heads").glob("*")]
        tasks = [head for seed in seeds for head in heads_of(size, arm.head, seed)]
        cells = {place(work, head): (f"{head.setting:g}", head.seed) for head in tasks if head.setting}
    else:
        parts = {path: path.stem.rpartition("-") for path in (folder / name).glob("*.json")}
        cells = {path: (rate, int(seed)) for path, (rate, _, seed) in parts.items()}
    for path, (setting, seed) in sorted(cells.items()):
        if path.exists() and path not in counting:
            found.setdefault(setting, {})[seed] = path
    return found
