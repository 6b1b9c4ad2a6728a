"""What whole trainings take by the clock, and what an arm takes to its best epoch."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from roli_fast.speed.timing import OtherLoad

from . import arms, problem
from .cells import Task, Weights, beginning, learn

# Of these, training is timed: those whose attack is the problem's or N-FGSM, for the problem's epochs.
TIMED = tuple(
    name
    for name, arm in arms.ARMS.items()
    if arm.settings.keys() <= {"attack", "precision"}
    and arm.epochs in (None, arms.EPOCHS)
    and arm.head != "paper"
    and not arm.carried
)

Ends = list[float]  # of the epochs, in seconds from the beginning
Rows = dict[str, dict[str, Any]]  # of a size's table, by arm


def seconds(tables: dict[str, Rows], sizes: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """By size, "heads" by kind and "arms" by name: of each seed, when each epoch ended. Of rounds, which have
    no epochs, when they did.

    tables: by size, what was trained: its settings are taken, and its seeds.
    """
    load = OtherLoad()
    found = {str(size): _of_size(size, tables[str(size)], names) for size in sizes}
    return {"other_cores_busy": load.cores(), "seconds": found}


def _of_size(size: int, rows: Rows, names: Sequence[str]) -> dict[str, dict[str, list[Ends]]]:
    """Seed by seed, so that a machine that gets slower slows all of them down."""
    wanted = {name: arms.ARMS[name] for name in names if name in rows}
    heads: dict[str, list[Ends]] = {arm.head: [] for arm in wanted.values() if arm.head in arms.HEADS}
    finetuned: dict[str, list[Ends]] = {name: [] for name, arm in wanted.items() if arm.epochs is not None}
    for seed in range(max(rows[name]["seeds"] for name in wanted)):
        probed: dict[str, Weights] = {}
        for kind, ends in heads.items():
            task = Task(size, kind, seed, _setting_of_head(kind, rows))
            model = beginning(task, None)
            ends.append(_timed(task, model))
            probed[kind] = model.state_dict()
        for name, ends in finetuned.items():
            task = Task(size, name, seed, (float(rows[name]["setting"]),))
            ends.append(_timed(task, beginning(task, probed.get(wanted[name].head))))
    return {"heads": heads, "arms": finetuned}


def _timed(task: Task, model: nn.Module) -> Ends:
    ends: Ends = []
    begin = time.perf_counter()

    def note(*_: object) -> None:
        if problem.DEVICE == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter() - begin)

    learn(task, model, note)
    if task.name in arms.ROUNDS_IN:
        note()
    return ends


def _setting_of_head(kind: str, rows: Rows) -> tuple[float, ...]:
    """That with which the table's heads were probed."""
    if len(arms.HEADS[kind]) == 1:
        return arms.HEADS[kind][0]
    alone = next(name for name, arm in arms.ARMS.items() if arm.head == kind and arm.epochs is None)
    return tuple(map(float, rows[alone]["setting"].split("-")))


def to_best(name: str, best_epochs: Sequence[int], clock: dict[str, dict[str, list[Ends]]]) -> Ends | None:
    """Of each seed of an arm, from its first attack to the end of its best epoch; None where that was not
    measured. clock: a size's heads and arms."""
    arm = arms.ARMS[name]
    probing, finetuning = clock["heads"].get(arm.head), clock["arms"].get(name)
    if arm.epochs is None:
        of_rounds = arm.head in arms.ROUNDS_IN  # which are over before it is known what was best
        return probing and [
            ends[-1 if of_rounds else e - 1] for ends, e in zip(probing, best_epochs, strict=True)
        ]
    if finetuning is None or (arm.head in arms.HEADS and probing is None):
        return None
    before = [ends[-1] for ends in probing] if probing else [0.0] * len(finetuning)
    return [b + ends[e - 1] for b, ends, e in zip(before, finetuning, best_epochs, strict=True)]
