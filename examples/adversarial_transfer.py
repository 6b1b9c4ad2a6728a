"""Which head to finetune a backbone from, on real images: linear probing, RanLI and RoLI of every finetuning
method, cell by cell.

    python examples/adversarial_transfer.py --data-dir cifar10-12k --out runs/transfer \\
        --backbones robust=resnet10_tin200_robust.safetensors standard=resnet10_tin200_standard.safetensors

Another network than resnet10_tin, here robust_pretraining.py's, which was trained at 64x64 pixels, to which
it enlarges CIFAR's, and which all methods have a place in:

    ... --model hybrid_vit --img-size 64 --methods bias vpt adapter lora full

A cell is a backbone, a method and a seed. Each has its own folder: a cell that was interrupted goes on, and
one that is finished is read. The table of what is there, with intervals over seeds and images, is written
after each: several processes may share --out, each with seeds of its own (--seeds 0, --seeds 1, ...).
"""

import argparse
import dataclasses
import hashlib
import json
import math
from pathlib import Path

import torch

from roli_fast.attacks import PGD
from roli_fast.data import Loader, Splits, load
from roli_fast.evaluation import evaluate
from roli_fast.files import write_json
from roli_fast.models import METHODS, create_model, find_classifier, finetune, load_backbone, load_model
from roli_fast.training import Recipe, probe, train

EPS = 4 / 255
RESAMPLES = 2000
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Peak learning rates of AdamW, from a random and from a probed head alike.
LR = {"bias": 3e-3, "vpt": 1e-2, "adapter": 3e-3, "lora": 3e-3, "full": 3e-4}
NAMES = {"bias": "Bias", "vpt": "VPT", "adapter": "Adapter", "lora": "LoRA", "full": "Full-FT"}
# Method, and whether it begins with the probed head; probing comes first.
ARMS = {"Linear": ("linear", True)} | {
    f"{'RoLI' if probed else 'RanLI'} {name}": (method, probed)
    for method, name in NAMES.items()
    for probed in (False, True)
}


def recipe(method, epochs, seed, **settings):
    given = {"eps": EPS, "weight_decay": 1e-2, "warmup_epochs": min(1, epochs - 1), "seed": seed} | settings
    return Recipe(epochs, LR[method], 64, **given)


def some(images, per_class):
    """The first images of each class."""
    rows = [(images.labels == c).nonzero().flatten()[:per_class] for c in range(len(images.classes))]
    return images.select(torch.cat(rows).sort().values.tolist())


def few(splits, images_per_class, val_per_class, test_per_class):
    counts = (images_per_class, val_per_class, test_per_class)
    return Splits(*(some(images, count) for images, count in zip(splits, counts, strict=True)))


def run_cell(folder, arm, network, checkpoint, splits, epochs, seed, **settings):
    """Measures a cell that is not there yet."""
    done = folder / "cell.json"
    if done.exists():
        return
    method, probed = ARMS[arm]
    torch.manual_seed(seed)
    if probed and method != "linear":
        model = load_model(folder.parent / "Linear" / "best.safetensors")
    else:
        model = create_model(num_classes=len(splits.classes), **network)
        if checkpoint is not None:
            load_backbone(model, checkpoint)
        find_classifier(model).reset_head(len(splits.classes))
    finetune(model.to(DEVICE), method)
    title = f"{folder.parent.parent.name} {arm} {seed}"
    kept = {"folder": folder, "resume": True, "progress": True, "title": title}
    if method == "linear":
        trained = probe(model, splits, Recipe(1, 1.0, 64, **{"eps": EPS, "seed": seed} | settings), **kept)
    else:
        trained = train(model, splits, recipe(method, epochs, seed, **settings), **kept)
    attack = PGD(eps=EPS, step_size=EPS / 4, steps=20, iterate="best", early_stop=True,
                 generator=torch.Generator().manual_seed(seed))  # fmt: skip
    found = evaluate(model, Loader(splits.test, 200), attack)
    cell = {
        "arm": arm,
        "device": DEVICE,
        "seed": seed,
        "best_epoch": trained.best + 1,
        "validation": [row["val_robust"] for row in trained.history],
        "right": {"clean": found.clean.right.tolist(), "pgd20": found.right.tolist()},
        "cost": dataclasses.asdict(trained.cost) | {"passes": trained.cost.passes},
    }
    write_json(done, cell)


def bind(out, about):
    """Cells of other settings or of other files would be taken for finished."""
    kept = out / "settings.json"
    if kept.exists() and json.loads(kept.read_text()) != json.loads(json.dumps(about)):
        raise ValueError(f"out: got {out}, whose cells have other settings, accepted: another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(kept, about)


def finished(out, backbones):
    """The cells that are there, whichever process measured them."""
    cells = [
        json.loads(path.read_text()) | {"backbone": backbone}
        for backbone in backbones
        for path in (out / backbone).glob("*/*/cell.json")
    ]
    return sorted(cells, key=lambda cell: cell["seed"])


def interval(cells, what):
    """Mean over seeds, with a 95 % interval from resampling seeds and images."""
    right = torch.tensor([cell["right"][what] for cell in cells], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    seeds, images = right.shape
    means = torch.stack(
        [
            right[torch.randint(seeds, (seeds,), generator=generator)][
                :, torch.randint(images, (images,), generator=generator)
            ].mean()
            for _ in range(RESAMPLES)
        ]
    )
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"mean": right.mean().item(), "interval": [low, high]}


def table(cells, backbones):
    """Rows by backbone and arm, from what is there."""
    rows = []
    for backbone in backbones:
        for arm in ARMS:
            group = [c for c in cells if (c["backbone"], c["arm"]) == (backbone, arm)]
            if group:
                costs = [c["cost"] for c in group]
                rows.append(
                    {"backbone": backbone, "arm": arm, "seeds": [c["seed"] for c in group]}
                    | {what: interval(group, what) for what in ("clean", "pgd20")}
                    | {
                        "best_epochs": [c["best_epoch"] for c in group],
                        "validation": [c["validation"] for c in group],
                        "passes": math.fsum(c["passes"] for c in costs) / len(costs),
                    }
                )
    return rows


def show(row):
    def percent(found):
        low, high = found["interval"]
        return f"{found['mean']:.1%} [{low:.1%}, {high:.1%}]"

    return (
        f"{row['backbone']:>9} {row['arm']:<14} clean {percent(row['clean'])} PGD-20 {percent(row['pgd20'])}"
    )


def main(
    splits, backbones, out, *, network=None, methods=("bias", "full"), images_per_class=50, val_per_class=20,
    test_per_class=100, seeds=(0, 1, 2), epochs=10, **settings,
):  # fmt: skip
    """splits: of load(). backbones: files by name, None for random weights. network: of create_model()."""
    splits = few(splits, images_per_class, val_per_class, test_per_class)
    network, out = network or {"name": "resnet10_tin"}, Path(out)
    about = {
        "network": network,
        "eps": EPS,
        "images_per_class": images_per_class,
        "epochs": epochs,
        "lr": LR,
        "val_images": len(splits.val),
        "test_images": len(splits.test),
        **settings,
    }
    contents = {name: file and Path(file).read_bytes() for name, file in backbones.items()}
    sha256 = {name: content and hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    bind(out, about | {"backbones": sha256})
    for seed in seeds:
        for backbone, checkpoint in backbones.items():
            for arm in (arm for arm, (method, _) in ARMS.items() if method in ("linear", *methods)):
                folder = out / backbone / str(seed) / arm
                folder.mkdir(parents=True, exist_ok=True)
                run_cell(folder, arm, network, checkpoint, splits, epochs, seed, **settings)
                rows = table(finished(out, backbones), backbones)
                write_json(out / "table.json", about | {"rows": rows})
    for row in rows:
        print(show(row))
    return rows


def methods_of_a_vit(splits, *, epochs=2, **settings):
    """Every finetuning method on a small ViT with random weights: that it trains, and no more. The loss of
    each epoch, and how many parameters there are and have moved."""
    found = {}
    for method in METHODS:
        torch.manual_seed(0)
        vit = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
        model = create_model("vit_tiny_patch16_224", len(splits.classes), **vit)
        finetune(model.to(DEVICE), method)
        before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        trained = train(model, splits, Recipe(epochs, 2e-3, 64, eps=EPS, steps=2, val_steps=2, **settings))
        moved = sum(not torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
        found[method] = {
            "loss": [row["train_loss"] for row in trained.history],
            "trainable_tensors": len(before),
            "moved_tensors": moved,
            "trainable_parameters": sum(p.numel() for p in before.values()),
        }
        print(f"{method:>8}: {found[method]}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="class folders in train/ and test/")
    parser.add_argument("--backbones", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--model", default="resnet10_tin", help="the backbones' network")
    parser.add_argument("--model-kwargs", type=json.loads, default={}, metavar="JSON", help="its options")
    parser.add_argument("--img-size", type=int, help="to which it enlarges the images; default as they are")
    parser.add_argument("--out", required=True)
    parser.add_argument("--methods", nargs="+", default=["bias", "full"], choices=list(NAMES))
    parser.add_argument("--images-per-class", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--vit", action="store_true", help="every method on a small ViT, too")
    given = parser.parse_args()
    whole = load("folder", given.data_dir)
    if given.vit:
        found = methods_of_a_vit(few(whole, given.images_per_class, 20, 20))
        Path(given.out).mkdir(parents=True, exist_ok=True)
        write_json(Path(given.out) / "vit.json", found)
    network = {"name": given.model, **given.model_kwargs}
    if given.img_size:
        network |= {"img_size": given.img_size, "resize": True}
    main(
        whole,
        dict(pair.split("=", 1) for pair in given.backbones),
        given.out,
        network=network,
        methods=given.methods,
        images_per_class=given.images_per_class,
        seeds=given.seeds,
        epochs=given.epochs,
    )
