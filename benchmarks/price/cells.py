"""Cells: what an arm has learnt and spent, for a data size, a learning rate and a seed, with its weights.
Each is a file of its own; one that is there is finished."""

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roli_fast.attacks import PGD
from roli_fast.data import Splits, StoredImages
from roli_fast.evaluation import evaluate
from roli_fast.files import write
from roli_fast.models import find_classifier
from roli_fast.speed import machine
from roli_fast.training import Cost, Recipe, Rounds, Trained, probe, train
from roli_fast.training.attack import validation_attack
from roli_fast.training.result import merit
from roli_fast.training.stage import OnEpochEnd

from ..baselines import recipe as public
from . import arms, problem
from .carried import carrying

Weights = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Run:
    """What a training was: a row for each epoch, the best of them, what was spent."""

    history: list[dict[str, Any]]
    best: int
    cost: Cost

    @classmethod
    def of(cls, done: Trained) -> "Run":
        return cls(done.history, done.best, done.cost)


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
    model = beginning(task, weights_of_head(work, task))
    robust: list[float] = []

    def look(net: nn.Module, _: dict[str, Any]) -> None:
        robust.append(robustness(net, problem.held_out()))

    is_ours = task.name in arms.ARMS and not arms.ARMS[task.name].public
    run = learn(task, model, look if is_ours else None, progress)
    found = described(run, model, problem.splits(task.size)) | ({"held_out": robust} if is_ours else {})
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    write(path.with_suffix(".pt"), lambda file: torch.save(weights, file))
    save(path, found)  # last: it says that the cell is finished


def best_of(paths: Sequence[Path]) -> Path:
    """The first of those that are there that has validated best."""
    there = sorted(path for path in paths if path.exists())
    if not there:
        raise FileNotFoundError(f"the best of {', '.join(map(str, paths))} was wanted: none is there")
    return max(there, key=lambda path: read(path)["validated"])


def weights_of_head(work: Path, task: Task) -> Weights | None:
    """Of the model with the head that an arm begins with, where that was probed."""
    if task.name in arms.HEADS or arms.ARMS[task.name].head not in arms.HEADS:
        return None
    return weights_of(counting(work, task.size, arms.ARMS[task.name].head)[task.seed])


def beginning(task: Task, probed: Weights | None) -> nn.Module:
    """The model that is to train. probed: the weights with the head that its arm begins with, where it does
    not begin with a random one."""
    if task.name in arms.HEADS:
        return problem.backbone(task.seed, "linear")
    model = problem.backbone(task.seed, "full")
    if probed is not None:
        model.load_state_dict(probed)
    elif arms.ARMS[task.name].head == "random":
        find_classifier(model).head.reset_parameters()
    return model


def learn(
    task: Task, model: nn.Module, on_epoch_end: OnEpochEnd | None = None, progress: bool = False
) -> Run:
    """Trains the model, from the head that it has. on_epoch_end: not called of rounds, which have none."""
    data = problem.splits(task.size)
    if task.name in arms.ROUNDS_IN:
        attacks = problem.ATTACK | {"precision": arms.ROUNDS_IN[task.name]}
        recipe = Recipe(1, 1.0, seed=task.seed, **attacks)
        return Run.of(probe(model, data, recipe, Rounds(), progress=progress))
    if task.name in arms.HEADS:
        lr, decay = task.setting or ()
        recipe = Recipe(arms.PROBING_EPOCHS, lr, weight_decay=decay, seed=task.seed, **problem.PROBING)
        by_public_code, carried = task.name == "public", False
    else:
        arm, (lr,) = arms.ARMS[task.name], task.setting or ()
        recipe = Recipe(arm.epochs, lr, seed=task.seed, **(problem.FINETUNING | arm.settings))
        by_public_code, carried = arm.public, arm.carried
    if by_public_code:
        history, spent = public.train(model, data, recipe, on_epoch_end)
        best = max(range(len(history)), key=lambda e: merit(history[e]))
        return Run(history, best, Cost(spent.forwards, spent.backwards - spent.to_weights, spent.to_weights))
    with carrying(data.train) if carried else contextlib.nullcontext():
        done = train(model, data, recipe, progress=progress, title=str(task), on_epoch_end=on_epoch_end)
    return Run.of(done)


def weights_of(cell: Path) -> Weights:
    return torch.load(cell.with_suffix(".pt"), map_location="cpu", weights_only=True)


def described(run: Run, model: nn.Module, data: Splits) -> dict[str, Any]:
    pgd = PGD(
        eps=problem.EPS, step_size=problem.EPS / 4, steps=20, iterate="best", early_stop=True,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    parts = zip(data.test.images.split(problem.TESTED), data.test.labels.split(problem.TESTED), strict=True)
    tested = evaluate(model, parts, pgd, strict=False)
    return {
        "device": machine.slug(problem.DEVICE),
        "history": run.history,
        "best": run.best,
        "validated": run.history[run.best]["val_robust"],
        "cost": dataclasses.asdict(run.cost),
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
