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

    name: an arm, or one of arms.HEADS. setting: of an arm its learning rate, of a head by SGD that and its
        weight decay; None for the best of ``choices`` with the first seed. needs: what is trained before.
    """

    size: int
    name: str
    seed: int
    setting: tuple[float, ...] | None
    choices: tuple[tuple[float, ...], ...] = ()
    needs: tuple["Task", ...] = ()

    def __str__(self) -> str:
        numbers = "".join(f", {number:g}" for number in self.setting or ())
        return f"{self.size} {self.name}{numbers}, seed {self.seed}"


def plan(
    sizes: Sequence[int], asked: Sequence[str] | None, seeds: Sequence[int], rates: Sequence[float]
) -> list[Task]:
    """All heads, what a rate is chosen by (the first seed), the rest: nothing before what it needs."""
    heads: list[Task] = []
    finetuned: list[Task] = []
    for size in sorted(sizes):
        for name in arms.of_size(asked, size):
            for seed in sorted({0, *seeds}):
                heads += heads_of(size, arms.ARMS[name].head, seed)
                if arms.ARMS[name].epochs is not None:
                    finetuned += tasks_of(size, name, seed, [(rate,) for rate in rates])
    finetuned.sort(key=lambda task: task.setting is None)
    return list(dict.fromkeys(heads + finetuned))


def tasks_of(size: int, name: str, seed: int, settings: Sequence[tuple[float, ...]]) -> tuple[Task, ...]:
    """Of an arm or a head: with the first seed one for each setting, which the best is chosen from."""
    begins = heads_of(size, arms.ARMS[name].head, seed) if name in arms.ARMS else ()
    if seed == 0 or len(settings) == 1:
        return tuple(Task(size, name, seed, setting, needs=begins) for setting in settings)
    needs = begins + tasks_of(size, name, 0, settings)
    return (Task(size, name, seed, None, tuple(settings), needs),)


def heads_of(size: int, kind: str, seed: int) -> tuple[Task, ...]:
    """None where it is random."""
    return tasks_of(size, kind, seed, arms.HEADS[kind]) if kind in arms.HEADS else ()


def place(work: Path, task: Task) -> Path:
    if task.setting is None:
        raise ValueError(f"{task}: which setting is the best is not known yet")
    numbers = "-".join(f"{number:g}" for number in (*task.setting, task.seed))
    return work / str(task.size) / task.name / f"{numbers}.json"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def save(path: Path, found: dict[str, Any]) -> None:
    write(path, f"{json.dumps(found)}\n".encode())


def train_cell(work: Path, progress: bool, task: Task) -> None:
    """Where it is not there yet. Raises FileNotFoundError where all of a kind that it needs have failed."""
    if task.setting is None:
        choices = {place(work, dataclasses.replace(task, seed=0, setting=s)): s for s in task.choices}
        task = dataclasses.replace(task, setting=choices[best_of(list(choices))])
    path = place(work, task)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    found, model = (probed if task.name in arms.HEADS else finetuned)(work, progress, task)
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    write(path.with_suffix(".pt"), lambda file: torch.save(weights, file))
    save(path, found)  # last: it says that the cell is finished


def best_of(paths: Sequence[Path]) -> Path:
    """The first of those that are there that has validated best."""
    there = sorted(path for path in paths if path.exists())
    if not there:
        raise FileNotFoundError(f"the best of {', '.join(map(str, paths))} was wanted: none is there")
    return max(there, key=lambda path: read(path)["validated"])


def probed(work: Path, progress: bool, task: Task) -> Cell:
    data, model = problem.splits(task.size), problem.backbone(task.seed, "linear")
    if task.name in arms.ROUNDS_IN:
        attacks = problem.ATTACK | {"precision": arms.ROUNDS_IN[task.name]}
        done = probe(model, data, Recipe(1, 1.0, seed=task.seed, **attacks), Rounds(), progress=progress)
        return described(done.history, done.best, done.cost, model, data), model
    lr, decay = task.setting or ()
    recipe = Recipe(arms.PROBING_EPOCHS, lr, weight_decay=decay, seed=task.seed, **problem.PROBING)
    if task.name == "public":
        return by_public_code(model, data, recipe)
    done = train(model, data, recipe, progress=progress, title=str(task))
    return described(done.history, done.best, done.cost, model, data), model


def finetuned(work: Path, progress: bool, task: Task) -> Cell:
    arm, data, model = arms.ARMS[task.name], problem.splits(task.size), problem.backbone(task.seed, "full")
    if arm.head == "random":
        find_classifier(model).head.reset_parameters()
    elif arm.head != "paper":
        load(model, counting(work, task.size, arm.head)[task.seed])
    (lr,) = task.setting or ()
    recipe = Recipe(arm.epochs, lr, seed=task.seed, **(problem.FINETUNING | arm.settings))
    if arm.public:
        return by_public_code(model, data, recipe)
    robust: list[float] = []
    with carrying(data.train) if arm.carried else contextlib.nullcontext():
        done = train(
            model, data, recipe, progress=progress, title=str(task),
            on_epoch_end=lambda net, _: robust.append(robustness(net, problem.held_out())),
        )  # fmt: skip
    return described(done.history, done.best, done.cost, model, data) | {"held_out": robust}, model


def by_public_code(model: nn.Module, data: Splits, recipe: Recipe) -> Cell:
    history, spent = public.train(model, data, recipe)
    best = max(range(len(history)), key=lambda e: merit(history[e]))
    cost = Cost(spent.forwards, spent.backwards - spent.to_weights, spent.to_weights)
    return described(history, best, cost, model, data), model


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
    """Of each arm the cells that count, by seed."""
    found = {name: counting(work, size, folder_of(name)) for name in arms.ARMS}
    return {name: cells for name, cells in found.items() if cells}


def folder_of(name: str) -> str:
    """Where an arm's cells lie; one that is a head alone has that head's."""
    return name if arms.ARMS[name].epochs is not None else arms.ARMS[name].head


def counting(work: Path, size: int, name: str) -> dict[int, Path]:
    """Of the cells that are there, by seed: those with the setting that is best with the first seed."""
    cells = settings_of(work, size, name)
    first = {by_seed[0]: by_seed for by_seed in cells.values() if 0 in by_seed}
    return first[best_of(list(first))] if first else {}


def settings_of(work: Path, size: int, name: str) -> dict[str, dict[int, Path]]:
    """All cells that are there, by setting, as their files' names have it, and seed."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted((work / str(size) / name).glob("*.json")):
        setting, _, seed = path.stem.rpartition("-")
        found.setdefault(setting, {})[int(seed)] = path
    return found
