"""AutoAttack beside pyautoattack: strength sample by sample, time and what is spent, in one run.

``python -m benchmarks.autoattack PROBLEM ... --out FILE``; needs ../shared/data and pyautoattack. For every
seed and batch of a problem, all sides take their turns, so that whatever disturbs the machine disturbs all;
each finished turn is in the file, and a run that was interrupted goes on there. The judge of all is the
problem's model in float32.
"""

import argparse
import importlib
import json
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from roli_fast.attacks import AutoAttack, predict, verify
from roli_fast.evaluation import Accuracy
from roli_fast.speed import machine
from roli_fast.speed.timing import OtherLoad

from . import real
from .shared import commit
from .strength import compared

OURS, BF16, THEIRS = "ours", "ours-bf16", "pyautoattack"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


Loaded = tuple[nn.Module, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """load: the model, images (N, C, H, W) in [0, 1], labels, and the images' indices in their data set.
    sides: who is compared with THEIRS. batch: images at once on a CPU; a GPU takes all at once."""

    load: Callable[[], Loaded]
    eps: float
    sides: tuple[str, ...] = (OURS, THEIRS)
    seeds: tuple[int, ...] = (0, 1, 2)
    batch: int = 100


def first_of_each(labels: Tensor, count: int) -> Tensor:
    """Indices of the first images of each class, classes in turns: every batch is balanced."""
    by_class = [(labels == c).nonzero().flatten()[:count] for c in labels.unique().tolist()]
    return torch.stack(by_class, dim=1).flatten()


def trades() -> Loaded:
    images, labels = real.mnist()
    chosen = first_of_each(labels, 50)
    return real.trades_mnist(), images[chosen], labels[chosen], chosen


def resnet4b() -> Loaded:
    images, labels = real.cifar10("test", 20)
    chosen = first_of_each(labels, 20)
    return real.resnet4b_cifar10(), images[chosen].float() / 255, labels[chosen], chosen


def resnet10(which: str) -> Loaded:
    """Which of the network's 200 classes the images' 100 are is not recorded: what it says of the clean ones
    counts."""
    model, images = real.resnet10_tiny_imagenet(which), real.tiny_imagenet("val", 1)[0].float() / 255
    return model, images, predict(model, images).argmax(dim=1), torch.arange(len(images))


PROBLEMS = {
    "trades_mnist_smallcnn": Problem(trades, 0.3),
    "resnet4b_cifar10": Problem(resnet4b, 2 / 255),
    "resnet10_tin200_robust": Problem(lambda: resnet10("robust"), 4 / 255, (OURS, BF16, THEIRS), batch=50),
    "resnet10_tin200_standard": Problem(
        lambda: resnet10("standard"), 4 / 255, (OURS, BF16, THEIRS), batch=50
    ),
}


class Counted(nn.Module):
    """A model that counts the samples which go through it, and those whose gradient is asked for."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.forwards, self.gradients = model, 0, 0

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += len(images)
        self.gradients += len(images) if images.requires_grad else 0
        return self.model(images)


def turn(
    side: str, model: nn.Module, images: Tensor, labels: Tensor, eps: float, seed: int
) -> dict[str, Any]:
    """One side's attack on one batch. quiet: whether its time says something."""
    load = OtherLoad()
    if side == THEIRS:
        from pyautoattack import AutoAttack as Theirs

        counted = Counted(model).eval()
        begin = time.perf_counter()
        with torch.random.fork_rng():  # it seeds torch's generator
            attack = Theirs(counted, norm="Linf", eps=eps, seed=seed, version="standard", device=DEVICE)
            adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
        spent = {"forwards": counted.forwards, "gradients": counted.gradients}
        notes: tuple[str, ...] = ()
    else:
        generator = torch.Generator(DEVICE).manual_seed(seed)
        precision = "bf16" if side == BF16 else "fp32"
        begin = time.perf_counter()
        result = AutoAttack(eps=eps, precision=precision, generator=generator).run(model, images, labels)
        adversarial, notes = result.adversarial, result.notes
        spent = {"forwards": result.forwards, "gradients": result.gradients}
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    seconds, others = time.perf_counter() - begin, load.cores()
    checked = verify(model, images, adversarial.detach(), labels, "linf", eps)
    assert (checked.in_box & checked.in_ball).all()
    right = (predict(model, images).argmax(1) == labels) & ~checked.success
    found = {"right": [int(r) for r in right], "seconds": seconds, "notes": notes, **spent}
    found["quiet"] = others is not None and others < 0.1
    return found | {"commit": commit()}


def measure(
    name: str, problem: Problem, entry: dict[str, Any], save: Callable[[int], None], again: bool
) -> None:
    """again: whether what is finished is measured once more, and replaced turn by turn."""
    if THEIRS in problem.sides:
        importlib.import_module("pyautoattack")  # what is missing is missing before anything is measured
    model, images, labels, indices = problem.load()
    model, images, labels = model.to(DEVICE), images.to(DEVICE), labels.to(DEVICE)
    entry["indices"] = indices.tolist()
    turns = entry["turns"]
    batch = problem.batch if DEVICE == "cpu" else len(images)
    parts = list(zip(images.split(batch), labels.split(batch), strict=True))
    todo = [(s, b, side) for s in problem.seeds for b in range(len(parts)) for side in problem.sides]
    for seed, batch, side in track(todo, name):
        key = f"{side}, seed {seed}, batch {batch}"
        if again or key not in turns:
            turns[key] = turn(side, model, *parts[batch], problem.eps, seed)
            save(len(parts))


def summary(problem: Problem, turns: dict[str, Any], batches: int) -> dict[str, Any]:
    """Over the seeds of which all batches are finished."""

    def of(side: str, seed: int) -> list[dict[str, Any]]:
        return [turns.get(f"{side}, seed {seed}, batch {batch}", {}) for batch in range(batches)]

    seeds = [seed for seed in problem.seeds if all(all(of(side, seed)) for side in problem.sides)]

    def accuracies(side: str) -> list[Accuracy]:
        return [Accuracy(torch.tensor([r > 0 for t in of(side, s) for r in t["right"]])) for s in seeds]

    def spent(side: str, what: str) -> float:
        return sum(t[what] for seed in seeds for t in of(side, seed))

    found: dict[str, Any] = {"eps": problem.eps, "seeds": seeds, "sides": {}}
    for side in problem.sides if seeds else ():
        ratios = [
            theirs["seconds"] / own["seconds"]
            for seed in seeds
            for own, theirs in zip(of(side, seed), of(THEIRS, seed), strict=True)
            if own["quiet"] and theirs["quiet"]
        ]
        found["sides"][side] = {what: spent(side, what) for what in ("forwards", "gradients")}
        if ratios:
            found["sides"][side]["times faster"] = {"median": statistics.median(ratios), "of": ratios}
        if side != THEIRS:
            found["sides"][side] |= compared(accuracies(side), accuracies(THEIRS)) | {
                "discordant": [
                    {
                        "seed": seed,
                        "only ours fooled": (~a.right & b.right).nonzero().flatten().tolist(),
                        "only theirs fooled": (a.right & ~b.right).nonzero().flatten().tolist(),
                    }
                    for seed, a, b in zip(seeds, accuracies(side), accuracies(THEIRS), strict=True)
                ]
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problems", nargs="+", choices=PROBLEMS)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file; what is finished there stays")
    parser.add_argument("--no-bf16", action="store_true", help="for a processor that emulates it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--again", action="store_true", help="measure what is finished once more")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # pyautoattack reports every batch
    result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in arguments.problems:
        problem = replace(PROBLEMS[name], seeds=tuple(arguments.seeds))
        if arguments.no_bf16:
            problem = replace(problem, sides=tuple(side for side in problem.sides if side != BF16))
        entry = result.setdefault(name, {"turns": {}})
        if arguments.again or "machine" not in entry:
            entry["machine"] = machine.describe(DEVICE)

        def save(batches: int, entry: dict[str, Any] = entry, problem: Problem = problem) -> None:
            entry["found"] = summary(problem, entry["turns"], batches)
            partial = arguments.out.with_suffix(".partial")
            partial.write_text(json.dumps(result, indent=1))
            partial.replace(arguments.out)

        measure(name, problem, entry, save, arguments.again)


if __name__ == "__main__":
    main()
