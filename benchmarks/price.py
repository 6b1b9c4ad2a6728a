"""What robustness costs: RoLI and what it is compared with, on the public code's engine and on ours.

``python -m benchmarks.price cells --work FOLDER [--arms ...]`` trains cell by cell (a data size, an arm, a
learning rate, a seed); an interrupted cell goes on, a finished one is read. ``times`` measures what an image
costs in each kind of pass, all kinds in turns. ``table`` puts both together: ``--out FILE`` and a picture.
Needs ../shared/data: its robust ResNet-10, to classes of CIFAR-10.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roli_fast.attacks import PGD
from roli_fast.data import Splits, StoredImages
from roli_fast.evaluation import Accuracy, difference, evaluate
from roli_fast.models import create_model, find_classifier, finetune, load_backbone
from roli_fast.speed import machine
from roli_fast.speed.timing import OtherLoad
from roli_fast.training import Cost, Recipe, Rounds, probe, train
from roli_fast.training.attack import TrainingAttack
from roli_fast.training.learner import Learner

from . import real
from .baselines import recipe as public

EPS = 4 / 255
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VAL, TEST = 20, 100  # images of each class
EPOCHS = 15
RATES = (1e-4, 3e-4, 1e-3)  # of finetuning
DECAYS = (1e-2, 1e-1)  # of probing by SGD
ATTACK = {"eps": EPS, "precision": "fp32", "batch_size": 64}
FINETUNING = {"weight_decay": 1e-2, "warmup_epochs": 1, **ATTACK}
PROBING = {"opt": "momentum", "warmup_epochs": 1, **ATTACK}


@dataclasses.dataclass(frozen=True)
class Arm:
    """head: with which training begins: "random", which is torch's own small one; "paper", RoLI's random one;
        "rounds"; "sgd" (20 epochs, the better of DECAYS).
    settings: of the recipe, beside the learning rate. public: whether on the public code's engine.
    epochs: None where the head is all that trains."""

    head: str
    epochs: int | None = EPOCHS
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    public: bool = False


ARMS = {
    "Linear, 20 epochs of SGD": Arm("sgd", None),
    "Linear, rounds": Arm("rounds", None),
    "RanLI Full-FT": Arm("random"),
    "RanLI Full-FT, the paper's head": Arm("paper"),
    "RoLI Full-FT, 20 epochs of SGD": Arm("sgd"),
    "RoLI Full-FT, rounds": Arm("rounds"),
    "RoLI Full-FT, rounds, PGD-2": Arm("rounds", settings={"steps": 2, "step_size": EPS / 2}),
    "RanLI Full-FT, twice as long": Arm("random", 2 * EPOCHS),
    "RanLI Full-FT, PGD-2": Arm("random", settings={"steps": 2, "step_size": EPS / 2}),
    "RanLI Full-FT, PGD-3": Arm("random", settings={"steps": 3, "step_size": EPS / 2}),
    "RanLI Full-FT, N-FGSM": Arm("random", settings={"attack": "nfgsm"}),
    "RanLI Full-FT, public code": Arm("random", public=True),
}


def splits(per_class: int) -> Splits:
    """The first images of each class train, the last validate."""
    images, labels = real.cifar10("train")
    test, test_labels = real.cifar10("test", TEST)
    names = [str(c) for c in range(10)]

    def rows(first: int, last: int) -> Tensor:
        return torch.cat([(labels == c).nonzero().flatten()[first:last] for c in range(10)])

    parts = [rows(0, per_class), rows(1000 - VAL, 1000)]
    return Splits(
        *(StoredImages(images[r], labels[r], names) for r in parts), StoredImages(test, test_labels, names)
    )


def backbone(seed: int, method: str) -> nn.Module:
    torch.manual_seed(seed)
    model = create_model("resnet10_tin", 10)
    load_backbone(model, real.SHARED / "resnet10_tin200_robust.safetensors")
    find_classifier(model).reset_head(10)
    finetune(model, method)
    return model.to(DEVICE)


# --- cells ---------------------------------------------------------------------------------------------


def finished(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = make()
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(found) + "\n")
        partial.replace(path)
    return json.loads(path.read_text())


def probed(work: Path, data: Splits, size: int, head: str, seed: int) -> dict[str, Any]:
    """A head, and what it has cost. Its weights lie beside the file."""

    def make_with(decay: float | None) -> dict[str, Any]:
        model = backbone(seed, "linear")
        if decay is None:
            done = probe(model, data, Recipe(1, 1.0, seed=seed, **ATTACK), Rounds(), progress=True)
        else:
            by_sgd = Recipe(20, 0.1, weight_decay=decay, seed=seed, **PROBING)
            done = train(model, data, by_sgd, progress=True, title=f"{head} {size} {seed}")
        torch.save(model.state_dict(), folder / f"{name(decay)}.pt")
        return described(done.history, done.best, done.cost, model, data) | {"weights": f"{name(decay)}.pt"}

    def name(decay: float | None) -> str:
        return "rounds" if decay is None else f"sgd-{decay:g}"

    folder = work / str(size) / "heads" / str(seed)
    if head == "rounds":
        return finished(folder / "rounds.json", lambda: make_with(None))
    found = [finished(folder / f"{name(d)}.json", lambda d=d: make_with(d)) for d in DECAYS]
    return max(found, key=lambda f: f["validated"])


def described(
    history: list[dict[str, Any]], best: int, cost: Cost, model: nn.Module, data: Splits
) -> dict[str, Any]:
    pgd = PGD(
        eps=EPS, step_size=EPS / 4, steps=20, iterate="best", early_stop=True,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    parts = zip(data.test.images.split(250), data.test.labels.split(250), strict=True)
    tested = evaluate(model, parts, pgd, strict=False)
    return {
        "history": history,
        "best": best,
        "validated": history[best]["val_robust"],
        "cost": dataclasses.asdict(cost),
        "right": {"clean": tested.clean.right.int().tolist(), "pgd20": tested.right.int().tolist()},
    }


def cell(work: Path, data: Splits, size: int, name: str, lr: float | None, seed: int) -> dict[str, Any]:
    arm = ARMS[name]
    if arm.epochs is None:
        return probed(work, data, size, arm.head, seed)

    def make() -> dict[str, Any]:
        model = backbone(seed, "full")
        if arm.head == "random":
            find_classifier(model).head.reset_parameters()
        elif arm.head != "paper":
            head = probed(work, data, size, arm.head, seed)
            model.load_state_dict(torch.load(work / str(size) / "heads" / str(seed) / head["weights"]))
        recipe = Recipe(arm.epochs, lr, seed=seed, **(FINETUNING | arm.settings))
        title = f"{size} {name}, {lr:g}, {seed}"
        if arm.public:
            history, spent = public.train(model, data, recipe)
            best = max(
                range(len(history)), key=lambda e: (history[e]["val_robust"], history[e]["val_clean"], -e)
            )
            cost = Cost(spent.forwards, spent.backwards - spent.to_weights, spent.to_weights)
            return described(history, best, cost, model, data)
        done = train(model, data, recipe, progress=True, title=title)
        return described(done.history, done.best, done.cost, model, data)

    return finished(work / str(size) / name / f"{lr:g}-{seed}.json", make)


def rate_of(work: Path, data: Splits, size: int, name: str, rates: tuple[float, ...]) -> float | None:
    """The best on validation, with the first seed; for variants of RanLI and RoLI, theirs."""
    if ARMS[name].epochs is None:
        return None
    of = {"random": "RanLI Full-FT", "rounds": "RoLI Full-FT, rounds"}.get(ARMS[name].head, name)
    return max(rates, key=lambda lr: cell(work, data, size, of, lr, 0)["validated"])


# --- what an image costs -------------------------------------------------------------------------------

PARTS = ("attack", "training")
Parts = dict[str, Callable[[], object]]


def kinds(data: Splits) -> dict[str, Parts]:
    """Of each engine and what trains: the attack on a batch, and the step that follows."""
    images = data.train.images[:64].float().div(255).to(DEVICE)
    labels = data.train.labels[:64].to(DEVICE)
    variants: dict[str, dict[str, Any]] = {"ours, torch's layout": {"channels_last": False}, "ours": {}}
    if DEVICE == "cuda":
        variants |= {"ours, tf32": {"precision": "tf32"}, "ours, bf16": {"precision": "bf16"}}
    found: dict[str, Parts] = {}
    for method in ("full", "linear"):
        base = Recipe(2, 1e-4, **(PROBING if method == "linear" else FINETUNING))
        found[f"public code, {method}"] = _of_public(base, method, images, labels)
        for name, settings in variants.items():
            recipe = dataclasses.replace(base, **settings)
            found[f"{name}, {method}"] = _of_ours(recipe, method, images, labels)
    return found


def _of_public(recipe: Recipe, method: str, images: Tensor, labels: Tensor) -> Parts:
    model = backbone(0, method)
    optimizer = public.optimizer_of(model, recipe)
    return {
        "attack": lambda: public.attacked(model, images, labels, recipe),
        "training": lambda: public.step(model, optimizer, images, labels),
    }


def _of_ours(recipe: Recipe, method: str, images: Tensor, labels: Tensor) -> Parts:
    model = backbone(0, method)
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    index, key = torch.arange(64, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    attack = TrainingAttack(model, recipe, recipe.precision)
    learner = Learner(model, recipe, recipe.precision, 1)
    learner.train()
    return {
        "attack": lambda: attack(images, labels, index, key),
        "training": lambda: learner.step(0, images, images, labels),
    }


def times(rounds: int, window: int) -> dict[str, Any]:
    """Seconds per image of each kind and part: medians over windows, all in turns."""
    calls = {(kind, part): call for kind, parts in kinds(splits(50)).items() for part, call in parts.items()}
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in calls}
    load = OtherLoad()
    for number in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            for _ in range(window):
                call()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            if number > 0:  # the first warms up
                seconds[name].append((time.perf_counter() - begin) / window / 64)
    measured: dict[str, dict[str, Any]] = {}
    for (kind, part), found in seconds.items():
        spread = {"median": statistics.median(found), "quartiles": statistics.quantiles(found, n=4)}
        measured.setdefault(kind, {})[part] = spread
    return {
        "other_cores_busy": load.cores(),
        "seconds_per_image": measured,
        "machine": machine.describe(DEVICE),
        "commit": machine.commit()["id"][:10],
    }


# --- both together -------------------------------------------------------------------------------------


def row(cells: list[dict[str, Any]], heads: list[dict[str, Any]], goals: list[float]) -> dict[str, Any]:
    """Of an arm: cells by seed, the heads they began with, and the validation robustness to reach."""

    def passes(found: dict[str, Any], epochs: int) -> int:
        rows = found["history"]
        if "cost" not in rows[0]:  # the public code's: all its epochs spend the same
            return Cost(**found["cost"]).passes * epochs // len(rows)
        return sum(Cost(**r["cost"]).passes for r in rows[:epochs])

    before = [passes(h, len(h["history"])) for h in heads] if heads else [0] * len(cells)
    found: dict[str, Any] = {"seeds": len(cells)}
    for what in ("clean", "pgd20"):
        right = torch.tensor([c["right"][what] for c in cells], dtype=torch.float64)
        found[what] = {"mean": right.mean().item(), "by_seed": right.mean(1).tolist()}
    found["passes_to_best"] = [b + passes(c, c["best"] + 1) for b, c in zip(before, cells, strict=True)]
    found["passes_by_epoch"] = [
        [b + passes(c, e + 1) for e in range(len(c["history"]))] for b, c in zip(before, cells, strict=True)
    ]
    found["passes"] = [b + passes(c, len(c["history"])) for b, c in zip(before, cells, strict=True)]
    reached = [
        next((e + 1 for e, r in enumerate(c["history"]) if r["val_robust"] >= goal), None)
        for c, goal in zip(cells, goals, strict=True)
    ]
    found["passes_to_ranlis_best"] = [
        None if e is None else b + passes(c, e) for b, c, e in zip(before, cells, reached, strict=True)
    ]
    found["best_epochs"] = [c["best"] + 1 for c in cells]
    found["validation"] = [[r["val_robust"] for r in c["history"]] for c in cells]
    return found


def table(work: Path, size: int) -> dict[str, Any]:
    """Of the cells that are there: of each arm those with its rate, by seed."""
    there: dict[str, dict[int, dict[str, Any]]] = {}
    rates: dict[str, float] = {}
    for name, arm in ARMS.items():
        if arm.epochs is None:
            continue
        files = sorted((work / str(size) / name).glob("*.json"))
        read = {tuple(f.stem.rsplit("-", 1)): json.loads(f.read_text()) for f in files}
        of_first = {float(lr): c["validated"] for (lr, seed), c in read.items() if seed == "0"}
        if of_first:
            rates[name] = max(of_first, key=of_first.__getitem__)
            there[name] = {int(s): c for (lr, s), c in read.items() if float(lr) == rates[name]}
    heads = {"rounds": {}, "sgd": {}}
    for folder in sorted((work / str(size) / "heads").glob("*")):
        for kind in heads:
            found = [json.loads(f.read_text()) for f in folder.glob(f"{kind}*.json")]
            if found:
                heads[kind][int(folder.name)] = max(found, key=lambda f: f["validated"])
    goals = {seed: c["validated"] for seed, c in there.get("RanLI Full-FT", {}).items()}
    rows = {}
    for name, arm in ARMS.items():
        cells = heads[arm.head] if arm.epochs is None else there.get(name, {})
        seeds = sorted(seed for seed in cells if seed in goals)
        if not seeds:
            continue
        begun = [heads[arm.head][s] for s in seeds] if arm.epochs and arm.head in heads else []
        rows[name] = row([cells[s] for s in seeds], begun, [goals[s] for s in seeds]) | {
            "lr": rates.get(name)
        }
    if "RanLI Full-FT" in there:
        for name in rows:
            cells = heads[ARMS[name].head] if ARMS[name].epochs is None else there[name]
            rows[name]["pgd20_minus_ranli"] = [
                dataclasses.asdict(
                    difference(
                        *(
                            Accuracy(torch.tensor(c["right"]["pgd20"]) > 0)
                            for c in (cells[s], there["RanLI Full-FT"][s])
                        )
                    )
                )
                for s in sorted(goals)
                if s in cells
            ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("cells", "times", "table"))
    parser.add_argument("--work", type=Path, default=Path("runs/price"), help="where the cells lie")
    parser.add_argument("--out", type=Path, help="of times and table: a JSON file")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[50], help="images of each class")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--rounds", type=int, default=7, help="of times")
    parser.add_argument("--window", type=int, default=10, help="batches at once, of times")
    given = parser.parse_args()
    if given.what == "cells":
        for size in given.sizes:
            data = splits(size)
            for seed in given.seeds:
                for name in given.arms:
                    lr = rate_of(given.work, data, size, name, tuple(given.rates))
                    cell(given.work, data, size, name, lr, seed)
        return
    result = json.loads(given.out.read_text()) if given.out.exists() else {}
    if given.what == "times":
        result["times"] = times(given.rounds, given.window)
    else:
        result |= {"eps": EPS, "epochs": EPOCHS, "validation_images": 10 * VAL, "test_images": 10 * TEST}
        result["sizes"] = {str(size): table(given.work, size) for size in given.sizes}
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
