"""Heads: how many steps an attack of rounds needs, how strongly a head is regularised, and what more rounds,
or a few epochs of SGD, give.

``python -m benchmarks.price.heads FILE.json``: the robustness of every head on the 1,000 images that were
held out. What the file has already is left alone.
"""

import functools
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from roli_fast.data import Splits
from roli_fast.files import write_json
from roli_fast.speed import machine
from roli_fast.training import Recipe, Rounds, Trained, probe, train

from ..shared import commit
from . import problem

SETTINGS = [(50, 1), (200, 1), (50, 2)]  # images of each class, eps as a multiple of the problem's
STEPS = (7, 1)
DECAYS = (0.1, 0.3, 3.0, 10.0)  # beside Rounds' own
SIZES = (50, 200)
ROUNDS = 5
SHORT = tuple(itertools.product((1, 2, 3, 5), (0.1, 0.3, 1.0)))  # epochs of SGD, learning rate


Accuracies = list[float]  # clean, robust


def accuracies(row: dict[str, Any]) -> Accuracies:
    return [row["val_clean"], row["val_robust"]]


def probed(size: int, scale: float, rounds: Rounds) -> Trained:
    recipe = Recipe(1, 1.0, **(problem.ATTACK | {"eps": scale * problem.EPS}))
    return probe(problem.backbone(0, "linear"), judged_by_held_out(size), recipe, rounds)


def judged_by_held_out(size: int) -> Splits:
    data = problem.splits(size)
    return Splits(data.train, problem.held_out(), data.test)


def fits(size: int, scale: float, steps: int) -> dict[str, Accuracies]:
    """By weight decay, after the last attack."""
    rows = probed(size, scale, Rounds(steps=steps, other_weight_decays=DECAYS)).history
    return {f"{r['weight_decay']:g}": accuracies(r) for r in rows if r["attacks"] == rows[-1]["attacks"]}


def after_each_round(size: int) -> dict[str, Accuracies]:
    """By attacks so far, at Rounds' own weight decay."""
    rows = probed(size, 1, Rounds(rounds=ROUNDS, tolerance=0, other_weight_decays=())).history
    return {str(row["attacks"]): accuracies(row) for row in rows}


def by_short_sgd(size: int) -> dict[str, Accuracies]:
    """By epochs and learning rate, at the weight decay that twenty epochs chose with 50 images a class."""
    found = {}
    for epochs, lr in SHORT:
        settings = problem.PROBING | {"weight_decay": 1.0, "warmup_epochs": 0}
        model = problem.backbone(0, "linear")
        rows = train(model, judged_by_held_out(size), Recipe(epochs, lr, **settings)).history
        found[f"{epochs} epochs, {lr:g}"] = accuracies(rows[-1])
    return found


def measurements() -> dict[str, Callable[[], dict[str, Accuracies]]]:
    """By what was held apart: of each, clean and robust accuracy."""
    found: dict[str, Callable[[], dict[str, Accuracies]]] = {}
    for (size, scale), steps in itertools.product(SETTINGS, STEPS):
        eps = f"{255 * scale * problem.EPS:g}/255"
        name = f"rounds of {steps} steps, {size} images a class, eps {eps}: by weight decay"
        found[name] = functools.partial(fits, size, scale, steps)
    for size in SIZES:
        found[f"rounds, {size} images a class: by attacks"] = functools.partial(after_each_round, size)
        found[f"SGD, {size} images a class: by epochs and learning rate"] = functools.partial(
            by_short_sgd, size
        )
    return found


def main() -> None:
    file = Path(sys.argv[1])
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    result |= {"machine": machine.describe(problem.DEVICE), "commit": commit()}
    cells = result.setdefault("clean_and_robust", {})
    for name, measure in measurements().items():
        if name not in cells:
            cells[name] = measure()
            print(name, cells[name], flush=True)
            write_json(file, result)


if __name__ == "__main__":
    main()
