"""A robust backbone of 3 M parameters from a few thousand images, to be finetuned from.

    python examples/robust_pretraining.py --data-dir tiny-imagenet-100 --out runs/backbone \\
        --stem resnet10_tin200_robust.safetensors

A vision transformer on the first stages of a small robust ResNet, whose weights it begins with and trains on.
An interrupted run goes on. --out gets best.safetensors, which load_backbone takes, and card.json, which says
how it came about and what it withstands.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from roli_fast.attacks import PGD, AutoAttack
from roli_fast.data import Loader, load
from roli_fast.evaluation import evaluate
from roli_fast.files import write_json
from roli_fast.models import create_model, find_classifier, load_backbone
from roli_fast.training import Recipe, train

EPS = 4 / 255
SIZE = 64  # pixels a side
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def begin_with_stem(model, checkpoint):
    """Gives a hybrid_vit the first stages of a resnet10_tin's weights."""
    resnet = create_model("resnet10_tin", 200)
    load_backbone(resnet, checkpoint)
    stem = find_classifier(model).backbone.patch_embed.backbone
    theirs = find_classifier(resnet).backbone.state_dict()
    stem.load_state_dict({name: theirs[name] for name in stem.state_dict()})


def measured(model, images, *, steps=20, autoattack_images=1000):
    """Accuracies on test images, with 95 % intervals."""
    pgd = PGD(eps=EPS, step_size=EPS / 4, steps=steps, iterate="best", early_stop=True)
    attacks = {f"pgd{steps}": (pgd, len(images)), "autoattack": (AutoAttack(eps=EPS), autoattack_images)}
    found = {}
    for name, (attack, count) in attacks.items():
        rows = torch.linspace(0, len(images) - 1, min(count, len(images))).round().long().tolist()
        tested = evaluate(model, Loader(images.select(rows), 500), attack)
        found.setdefault("clean", tested.clean.summary())
        found[name] = tested.summary()
    return found


def main(splits, out, *, stem=None, seed=0, network=None, test=None, **settings):
    """splits: of load(). stem: a file of resnet10_tin's weights; None: random. test: of measured()."""
    out = Path(out)
    optimisation = {"epochs": 60, "lr": 1e-3, "batch_size": 128, "weight_decay": 0.05, "warmup_epochs": 5}
    attack = {"eps": EPS, "steps": 2, "step_size": EPS / 2}
    recipe = Recipe(**optimisation | attack | {"clip_grad": 1.0, "ema_decay": 0.998, "seed": seed} | settings)
    torch.manual_seed(seed)
    model = create_model("hybrid_vit", len(splits.classes), **{"drop_path_rate": 0.1} | (network or {}))
    if stem is not None:
        begin_with_stem(model, stem)
    trained = train(
        model.to(DEVICE), splits, recipe, folder=out, resume=True, progress=True, title="pretrain"
    )
    card = {
        "network": dataclasses.asdict(find_classifier(model).architecture),
        "images": {part: len(images) for part, images in zip(splits._fields, splits, strict=True)},
        "recipe": dataclasses.asdict(recipe),
        "precision": trained.precision,
        "device": DEVICE,
        "best_epoch": trained.best + 1,
        "validation": [{name: row[name] for name in ("val_clean", "val_robust")} for row in trained.history],
        "cost": dataclasses.asdict(trained.cost),
        "test": measured(trained.model, splits.test, **(test or {})),
    }
    write_json(out / "card.json", card)
    print(", ".join(f"{name} {found['value']:.1%}" for name, found in card["test"].items()))
    return card


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="class folders in train/ and val/")
    parser.add_argument("--out", required=True)
    parser.add_argument("--stem", metavar="FILE", help="weights of resnet10_tin; default random")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    main(
        load("folder", given.data_dir, input_size=SIZE, crop_pct=0.89),
        given.out,
        stem=given.stem,
        seed=given.seed,
        epochs=given.epochs,
        lr=given.lr,
        weight_decay=given.weight_decay,
    )
