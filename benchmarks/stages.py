"""RoLI's two stages by the clock, beside the public code's: probing and finetuning, validation included.

``python -m benchmarks.stages SUBJECT ... --out FILE``. The public recipe is 20 epochs of each stage. What one
epoch takes is measured, of ours the first, in which graphs are recorded, and later ones; rounds are measured
as a whole. "total" is what these add up to for all epochs. resnet10 needs ../shared/data; swin_base has
random weights and images, whose labels are its own predictions.
"""

import argparse
import copy
import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from roli_fast.attacks import predict
from roli_fast.data import Splits, StoredImages
from roli_fast.files import write_json
from roli_fast.models import create_model, finetune
from roli_fast.speed import machine
from roli_fast.speed.timing import OtherLoad
from roli_fast.training import Recipe, probe, train

from .baselines import recipe as public
from .price import problem
from .shared import commit

EPOCHS = 20  # of each stage
METHODS = {"probing": "linear", "finetuning": "full"}
OURS = {
    "PGD-7, fp32": {"precision": "fp32"},
    "PGD-7, bf16": {"precision": "bf16"},
    "N-FGSM, bf16": {"precision": "bf16", "attack": "nfgsm"},
}
Ends = list[float]


@dataclass(frozen=True)
class Subject:
    """model: of a seed and a method, on the device. epochs: how many of ours are measured."""

    model: Callable[[int, str], nn.Module]
    splits: Callable[[], Splits]
    eps: float
    epochs: int
    ours: tuple[str, ...] = tuple(OURS)


@functools.cache
def _swin() -> nn.Module:
    torch.manual_seed(0)
    return create_model("swin_base_patch4_window7_224", 10).to(problem.DEVICE)


def swin(seed: int, method: str) -> nn.Module:
    model = copy.deepcopy(_swin())
    finetune(model, method)
    return model


def random_splits() -> Splits:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (320, 3, 224, 224), dtype=torch.uint8, generator=generator)
    batches = images.to(problem.DEVICE).split(64)
    labels = torch.cat([predict(_swin(), batch.float() / 255).argmax(1) for batch in batches]).cpu()
    names = [str(c) for c in range(10)]
    parts = [StoredImages(images[rows], labels[rows], names) for rows in (slice(0, 256), slice(256, 320))]
    return Splits(*parts, parts[1])


SUBJECTS = {
    "resnet10": Subject(problem.backbone, lambda: problem.splits(200), problem.EPS, 5),
    "swin_base": Subject(swin, random_splits, 0.2 / 255, 3, tuple(OURS)[1:]),
}


def measure(subject: Subject) -> dict[str, Any]:
    load, splits = OtherLoad(), subject.splits()
    base = Recipe(1, 1e-4, eps=subject.eps, batch_size=64, precision="fp32", warmup_epochs=0)
    sgd = replace(base, opt="momentum", lr=0.1)

    def of_public(stage: str, recipe: Recipe) -> Ends:
        model = subject.model(0, METHODS[stage])
        public.train(model, Splits(*(few(part) for part in splits)), recipe)  # what only a first batch costs
        return ends(lambda note: public.train(model, splits, recipe, note))

    found: dict[str, Any] = {"images": len(splits.train), "validation images": len(splits.val)}
    epochs = {"probing": of_public("probing", sgd), "finetuning": of_public("finetuning", base)}
    total = EPOCHS * sum(seconds[-1] for seconds in epochs.values())
    found["public code"] = {**epochs, "total": total}
    for name in subject.ours:
        recipe = replace(base, epochs=subject.epochs, **OURS[name])  # type: ignore[arg-type]
        model = subject.model(0, "linear")
        begin = _now()
        rounds = probe(model, splits, recipe)
        seconds = {"probing": [_now() - begin]}
        finetune(model, "full")
        seconds["finetuning"] = ends(lambda note, m=model, r=recipe: train(m, splits, r, on_epoch_end=note))
        first, *later = seconds["finetuning"]
        each = (later[-1] - first) / len(later)
        total = seconds["probing"][0] + first + (EPOCHS - 1) * each
        found[name] = {
            **seconds,
            "rounds": rounds.history[-1]["attacks"],
            "features and fits": sum(row["cost"]["training"] for row in rounds.history),
            "an epoch later": each,
            "total": total,
            "times cheaper": found["public code"]["total"] / total,
            "times cheaper, without recording": found["public code"]["total"]
            / (seconds["probing"][0] + EPOCHS * each),
        }
        del model
    return found | {"other_cores_busy": load.cores()}


def few(images: Any) -> StoredImages:
    return StoredImages(images.images[:64], images.labels[:64], images.classes)


def ends(run: Callable[[Callable[..., None]], object]) -> Ends:
    """When each epoch ended, in seconds from the beginning."""
    found: Ends = []
    begin = _now()
    run(lambda *_: found.append(_now() - begin))
    return found


def _now() -> float:
    if problem.DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("subjects", nargs="+", choices=SUBJECTS)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file; other subjects in it stay")
    given = parser.parse_args()
    for name in given.subjects:
        result = json.loads(given.out.read_text()) if given.out.exists() else {}
        about = {"machine": machine.describe(problem.DEVICE), "commit": commit()}
        result[name] = about | measure(SUBJECTS[name])
        write_json(given.out, result)
        print(name, json.dumps(result[name], indent=1))


if __name__ == "__main__":
    main()
