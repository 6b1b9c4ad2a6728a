"""What a stage takes by the clock, with its validation, and what an arm takes to its best epoch."""

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from roli_fast.speed.timing import OtherLoad

from . import problem
from .arms import ARMS, NFGSM, PROBING_EPOCHS, Arm
from .phases import stages

# Of each kind of head: the stage, and how many of it are all of probing.
PROBING = {
    "rounds": ("probing, ours: rounds, all of it", 1),
    "rounds, bf16": ("probing, ours, bf16: rounds, all of it", 1),
    "sgd": ("probing, ours: an epoch of SGD", PROBING_EPOCHS),
    "public": ("probing, public code: an epoch", PROBING_EPOCHS),
}


def seconds(sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """By size and stage: each repeat's seconds, all stages in turns."""
    load = OtherLoad()
    found: dict[str, dict[str, list[float]]] = {str(size): defaultdict(list) for size in sizes}
    for _ in range(repeats):
        for size in sizes:
            for name, run in stages(size).items():
                begin = time.perf_counter()
                run()
                if problem.DEVICE == "cuda":
                    torch.cuda.synchronize()
                found[str(size)][name].append(time.perf_counter() - begin)
    return {"other_cores_busy": load.cores(), "seconds": found}


def to_best(name: str, best_epochs: Sequence[int], stage: dict[str, list[float]]) -> float | None:
    """Of an arm, from its first attack to the end of its best epoch: an estimate, the mean over seeds.

    stage: seconds of each, by repeat. None where one of the arm's has not been measured."""
    arm, epochs = ARMS[name], statistics.fmean(best_epochs)
    parts = []
    if arm.head in PROBING:
        probing, all_of_it = PROBING[arm.head]
        alone = arm.epochs is None and all_of_it > 1  # its best epoch is one of probing
        parts.append((probing, epochs if alone else all_of_it))
    if arm.epochs is not None:
        parts.append((_finetuning(arm), epochs))
    if any(name not in stage for name, _ in parts):
        return None
    return sum(count * statistics.median(stage[name]) for name, count in parts)


def _finetuning(arm: Arm) -> str:
    settings: dict[str, Any] = dict(arm.settings)
    if arm.public:
        return "finetuning, public code: an epoch"
    bf16 = ", bf16" * (settings.pop("precision", None) == "bf16")
    if settings == NFGSM:
        return f"finetuning, ours, N-FGSM{bf16}: an epoch"
    return f"finetuning, ours{bf16}: an epoch" if not settings and not arm.carried else ""
