"""An early stop beside a whole run, as validation meets them: evaluate() of 200 images, call after call.

``python -m benchmarks.early_stop --out FILE``; needs ../shared/data. On a GPU, the first calls record graphs:
all calls are in the file, in milliseconds, beside those of other commits.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import nn

from roli_fast.attacks import PGD
from roli_fast.data import Loader
from roli_fast.evaluation import evaluate
from roli_fast.files import write_json
from roli_fast.speed import machine
from roli_fast.speed.timing import OtherLoad
from roli_fast.training import Recipe, probe

from .price import problem
from .shared import commit

CALLS, STEPS = 8, 10
PRECISIONS = ("fp32", "bf16")


def measure(model: nn.Module, loader: Loader, precision: str) -> dict[str, list[float]]:
    """The two take turns."""
    attacks = {
        kind: PGD(
            eps=problem.EPS,
            step_size=problem.EPS / 4,
            steps=STEPS,
            iterate="best",
            early_stop=kind == "stops",
            precision=precision,
        )
        for kind in ("stops", "stays")
    }
    milliseconds: dict[str, list[float]] = {kind: [] for kind in attacks}
    for _ in range(CALLS):
        for kind, attack in attacks.items():
            begin = time.perf_counter()
            evaluate(model, loader, attack)
            if problem.DEVICE == "cuda":
                torch.cuda.synchronize()
            milliseconds[kind].append(round(1e3 * (time.perf_counter() - begin), 1))
    return milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file; other commits in it stay")
    given = parser.parse_args()
    load, splits = OtherLoad(), problem.splits(50)
    model = problem.backbone(0, "linear")
    probe(model, splits, Recipe(1, 1e-4, eps=problem.EPS, batch_size=64, precision="fp32"))
    loader = Loader(splits.val, 64, workers=0)
    found = {precision: measure(model, loader, precision) for precision in PRECISIONS}
    result = json.loads(given.out.read_text()) if given.out.exists() else {}
    about = {"machine": machine.describe(problem.DEVICE), "other_cores_busy": load.cores()}
    result[f"at {commit()}"] = about | {"milliseconds": found}
    write_json(given.out, result)
    print(found)


if __name__ == "__main__":
    main()
