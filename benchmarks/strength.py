"""How strong the attacks are: PGD beside torchattacks' at the same settings, and bf16 beside fp32.

``python -m benchmarks.strength peers resnet-precision vit-precision --out FILE``; needs the real images and
checkpoints of ../shared/data, and torchattacks for "peers". Every comparison is paired: the same images, the
caller's model in float32 as the judge, differences with a bootstrap's interval.
"""

import argparse
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from roli_fast.attacks import PGD, predict, verify
from roli_fast.data import Splits, StoredImages
from roli_fast.evaluation import Accuracy, difference
from roli_fast.models import Normalized
from roli_fast.speed import machine
from roli_fast.training import Recipe, train

from . import real
from .shared import commit

SEEDS = (0, 1, 2)
BATCH = 100
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Craft = Callable[[Tensor, Tensor], Tensor]


def withstood(
    model: nn.Module, images: Tensor, labels: Tensor, craft: Craft, eps: float, what: str
) -> Accuracy:
    """Which images are right when clean and stay so."""
    right = []
    for x, y in track(list(zip(images.split(BATCH), labels.split(BATCH), strict=True)), what):
        checked = verify(model, x, craft(x, y), y, "linf", eps)
        assert (checked.in_ball & checked.in_box).all()
        right.append(((predict(model, x).argmax(1) == y) & ~checked.success).cpu())
    return Accuracy(torch.cat(right))


def compared(ours: list[Accuracy], theirs: list[Accuracy]) -> dict[str, Any]:
    """Seed by seed, and all seeds as one paired sample."""
    together = difference(*(Accuracy(torch.cat([a.right for a in side])) for side in (ours, theirs)))
    return {
        "ours": [a.value for a in ours],
        "theirs": [a.value for a in theirs],
        "flips": [int((a.right != b.right).sum()) for a, b in zip(ours, theirs, strict=True)],
        "flips_between_seeds": [int((a.right != b.right).sum()) for a, b in itertools.pairwise(theirs)],
        "difference": {"value": together.value, "low": together.low, "high": together.high},
        "images": len(ours[0].right),
    }


def peers() -> dict[str, Any]:
    """40-step PGD from a random start, ours and torchattacks'."""
    import torchattacks

    x, y = real.mnist()
    cifar, cifar_labels = real.cifar10("test", 100)
    problems = {
        "trades_mnist_smallcnn": (real.trades_mnist(), x, y, 0.3, 0.01),
        "resnet4b_cifar10": (real.resnet4b_cifar10(), cifar.float() / 255, cifar_labels, 2 / 255, 0.25 / 255),
    }
    found = {}
    for name, (model, images, labels, eps, step) in problems.items():
        sides: dict[str, list[Accuracy]] = {"ours": [], "torchattacks": []}
        for seed in SEEDS:
            torch.manual_seed(seed)
            ours = PGD(eps=eps, step_size=step, steps=40)
            theirs = torchattacks.PGD(model, eps=eps, alpha=step, steps=40)
            for side, craft in {"ours": functools.partial(ours, model), "torchattacks": theirs}.items():
                what = f"{name}, {side}, seed {seed}"
                sides[side].append(withstood(model, images, labels, craft, eps, what))
        settings = {"eps": eps, "step_size": step, "steps": 40}
        found[name] = settings | compared(sides["ours"], sides["torchattacks"])
    return found


def small_vit() -> nn.Module:
    """Trained here against PGD-2 at 8/255."""
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=32, patch_size=4, embed_dim=128, depth=4, num_heads=4, num_classes=10)
    model = Normalized(vit, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)).to(DEVICE)
    images, labels = real.cifar10("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    training, validation = (StoredImages(images[rows], labels[rows]) for rows in (order[500:], order[:500]))
    recipe = Recipe(
        epochs=5,
        lr=1e-3,
        batch_size=128,
        eps=8 / 255,
        step_size=5 / 255,
        steps=2,
        val_steps=2,
        precision="fp32",
    )
    train(model, Splits(training, validation, validation), recipe, progress=True)
    return model.eval()


def resnet_precision() -> dict[str, Any]:
    model, images = real.resnet10_tiny_imagenet(), real.tiny_imagenet("val", 10)[0].float() / 255
    # What it says of a clean image counts.
    return {"resnet10_tin200_robust": _precisions(model, images, predict(model, images).argmax(1))}


def vit_precision() -> dict[str, Any]:
    images, labels = real.cifar10("test", 50)
    return {"small ViT": _precisions(small_vit(), images.float() / 255, labels)}


def _precisions(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """PGD-10 at 8/255 with the gradients of a bf16 copy, beside those of a float32 one."""
    model, images, labels = model.to(DEVICE), images.to(DEVICE), labels.to(DEVICE)
    sides: dict[str, list[Accuracy]] = {"bf16": [], "fp32": []}
    for seed in SEEDS:
        for side in sides:
            attack = PGD(generator=torch.Generator(DEVICE).manual_seed(seed), precision=side)
            craft = functools.partial(attack, model)
            sides[side].append(withstood(model, images, labels, craft, 8 / 255, f"{side}, seed {seed}"))
    clean = torch.cat([predict(model, x).argmax(1) for x in images.split(BATCH)]) == labels
    return {"clean": clean.double().mean().item()} | compared(sides["bf16"], sides["fp32"])


if __name__ == "__main__":
    parts = {"peers": peers, "resnet-precision": resnet_precision, "vit-precision": vit_precision}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=parts, default=list(parts))
    parser.add_argument("--out", type=Path, required=True, help="a JSON file; other parts in it stay")
    arguments = parser.parse_args()
    result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for part in arguments.parts:
        about = {"machine": machine.describe(DEVICE), "commit": commit()}
        result[part] = about | {"models": parts[part]()}
        arguments.out.write_text(json.dumps(result, indent=1))
