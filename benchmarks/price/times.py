"""What an image costs: on each engine, in each kind of training."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from roli_fast.data import Splits
from roli_fast.speed.timing import interleaved, until_done
from roli_fast.training import Recipe
from roli_fast.training.attack import TrainingAttack
from roli_fast.training.learner import Learner

from ..baselines import recipe as public
from . import problem

BATCH = problem.ATTACK["batch_size"]
PARTS = ("attack", "training")
Parts = dict[str, Callable[[], object]]


def kinds(data: Splits) -> dict[str, Parts]:
    """Of each engine and what trains: the attack on a batch, and the step that follows."""
    images = data.train.images[:BATCH].float().div(255).to(problem.DEVICE)
    labels = data.train.labels[:BATCH].to(problem.DEVICE)
    bf16 = {"precision": "bf16"}
    variants: dict[str, dict[str, Any]] = {"ours, torch's layout": {"channels_last": False}, "ours": {}}
    if problem.DEVICE == "cuda":
        variants["ours, tf32"] = {"precision": "tf32"}
    variants["ours, bf16"] = bf16
    step, nfgsm = {"steps": 1}, {"attack": "nfgsm"}
    cheaper: dict[str, dict[str, Any]] = {  # what rounds take, and what finetunes from their heads
        "linear": {"ours, one step": step, "ours, one step, bf16": step | bf16},
        "full": {"ours, N-FGSM": nfgsm, "ours, N-FGSM, bf16": nfgsm | bf16},
    }
    found: dict[str, Parts] = {}
    for method, settings in (("full", problem.FINETUNING), ("linear", problem.PROBING)):
        base = Recipe(2, 1e-4, **settings)
        found[f"public code, {method}"] = _of_public(base, method, images, labels)
        for name, other in (variants | cheaper[method]).items():
            found[f"{name}, {method}"] = _of_ours(dataclasses.replace(base, **other), method, images, labels)
    return found


def _of_public(recipe: Recipe, method: str, images: Tensor, labels: Tensor) -> Parts:
    model = problem.backbone(0, method)
    optimizer = public.optimizer_of(model, recipe)
    return {
        "attack": lambda: public.attacked(model, images, labels, recipe),
        "training": lambda: public.step(model, optimizer, images, labels),
    }


def _of_ours(recipe: Recipe, method: str, images: Tensor, labels: Tensor) -> Parts:
    model = problem.backbone(0, method)
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    index, key = torch.arange(len(images)), torch.zeros(1, dtype=torch.int64)
    draws = index.to(problem.DEVICE), key.to(problem.DEVICE)
    attack = TrainingAttack(model, recipe, recipe.precision)
    learner = Learner(model, recipe, recipe.precision, 1)
    learner.train()
    return {
        "attack": lambda: attack(images, labels, *draws),
        "training": lambda: learner.step(0, images, images, labels),
    }


def times(rounds: int, window: int) -> dict[str, Any]:
    """Seconds per image of each kind and part: over windows of so many batches, all in turns."""
    found = kinds(problem.splits(50))
    calls = {f"{kind}: {part}": [call] for kind, parts in found.items() for part, call in parts.items()}
    measured = interleaved(calls, rounds, window, until_done)

    def seconds(kind: str, part: str) -> dict[str, float]:
        return {what: value / BATCH for what, value in measured.seconds_of(f"{kind}: {part}").items()}

    return {
        "batches": rounds * window,
        "other_cores_busy": measured.other_cores,
        "seconds_per_image": {kind: {part: seconds(kind, part) for part in PARTS} for kind in found},
    }
