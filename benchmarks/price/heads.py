"""Heads probed by rounds: how many steps an attack needs there, and how strongly a head is regularised.

``python -m benchmarks.price.heads FILE.json``: for each size and eps, the robustness of
every fit on the 1,000 images that were held out. What the file has already is left alone.
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

from roli_fast.data import Splits
from roli_fast.files import write_json
from roli_fast.speed import machine
from roli_fast.training import Recipe, Rounds, probe

from . import problem

SETTINGS = [(50, 1), (200, 1), (50, 2)]  # images of each class, eps as a multiple of the problem's
STEPS = (7, 1)
DECAYS = (0.1, 0.3, 3.0, 10.0)  # beside Rounds' own


def fits(size: int, scale: float, steps: int) -> dict[str, Any]:
    """By weight decay: clean and robust accuracy after the last attack."""
    data = problem.splits(size)
    recipe = Recipe(1, 1.0, **(problem.ATTACK | {"eps": scale * problem.EPS}))
    done = probe(
        problem.backbone(0, "linear"),
        Splits(data.train, problem.held_out(), data.test),
        recipe,
        Rounds(steps=steps, other_weight_decays=DECAYS),
    )
    last = [row for row in done.history if row["attacks"] == done.history[-1]["attacks"]]
    return {f"{row['weight_decay']:g}": [row["val_clean"], row["val_robust"]] for row in last}


def main() -> None:
    file = Path(sys.argv[1])
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    result |= {"machine": machine.describe(problem.DEVICE), "commit": machine.commit()["id"][:10]}
    cells = result.setdefault("clean_and_robust_by_weight_decay", {})
    for (size, scale), steps in itertools.product(SETTINGS, STEPS):
        name = f"{size} images a class, eps {255 * scale * problem.EPS:g}/255, {steps} steps"
        if name not in cells:
            cells[name] = fits(size, scale, steps)
            print(name, cells[name], flush=True)
            write_json(file, result)


if __name__ == "__main__":
    main()
