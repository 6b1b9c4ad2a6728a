"""What robustness costs: RoLI and what it is compared with, on the public code's engine and on ours.

``python -m benchmarks.price cells --work FOLDER [--arms ...] [--jobs N]`` trains cell by cell (a data size,
an arm, a learning rate, a seed) and keeps each one's weights; one that is finished is left alone. ``judge``
attacks the cells that count by APGD and AutoAttack. ``times`` measures what an image costs in each kind of
pass, all kinds in turns. ``table`` puts all together: ``--out FILE``; price_pages shows it.
Needs ../shared/data: its robust ResNet-10, to classes of CIFAR-10.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from roli_fast.attacks import PGD, AutoAttack
from roli_fast.data import Splits, StoredImages
from roli_fast.evaluation import Accuracy, Difference, difference, evaluate
from roli_fast.files import write
from roli_fast.models import create_model, find_classifier, finetune, load_backbone
from roli_fast.speed import machine
from roli_fast.speed.timing import OtherLoad, until_done
from roli_fast.training import Cost, Recipe, Rounds, probe, train
from roli_fast.training.attack import TrainingAttack, validation_attack
from roli_fast.training.learner import Learner

from . import real
from .baselines import recipe as public
from .jobs import Perform, run_all

EPS = 4 / 255
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TESTED = 1000 if DEVICE == "cuda" else 250  # images at once
VAL, TEST = 20, 100  # images of each class
# Images of each class, validation's among them, at whose robustness every epoch is looked at, to tell when an
# arm is as robust as another: training is not told of the others, nor charged for them.
HELD_OUT = 100
EPOCHS = 15
RATES = (1e-4, 3e-4, 1e-3)  # of finetuning
DECAYS = (1e-2, 1e-1)  # of probing by SGD
JUDGES: dict[str, tuple[str, ...] | None] = {
    "apgd": ("apgd-ce", "apgd-t"),
    "autoattack": None,
}  # the attacks of each; None: AutoAttack's own
JUDGED = {"apgd": TEST, "autoattack": 20}  # images of each class
ATTACK = {"eps": EPS, "precision": "fp32", "batch_size": 64}
FINETUNING = {"weight_decay": 1e-2, "warmup_epochs": 1, **ATTACK}
PROBING = {"opt": "momentum", "warmup_epochs": 1, **ATTACK}


@dataclasses.dataclass(frozen=True)
class Arm:
    """head: with which training begins: "random", which is torch's own small one; "paper", RoLI's random one;
        "rounds"; "rounds-7", with settings SEVEN_STEPS; "sgd" (20 epochs, the better of DECAYS).
    settings: of the recipe, beside the learning rate. public: whether on the public code's engine.
    epochs: None where the head is all that trains."""

    head: str
    epochs: int | None = EPOCHS
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    public: bool = False


SEVEN_STEPS = {"steps": 7, "weight_decay": 0.3, "other_weight_decays": (0.1, 1.0)}  # of Rounds
ARMS = {
    "Linear, 20 epochs of SGD": Arm("sgd", None),
    "Linear, rounds of PGD-7": Arm("rounds-7", None),
    "Linear, rounds": Arm("rounds", None),
    "RanLI Full-FT": Arm("random"),
    "RanLI Full-FT, the paper's head": Arm("paper"),
    "RoLI Full-FT, 20 epochs of SGD": Arm("sgd"),
    "RoLI Full-FT, rounds of PGD-7": Arm("rounds-7"),
    "RoLI Full-FT, rounds of PGD-7, PGD-2": Arm("rounds-7", settings={"steps": 2, "step_size": EPS / 2}),
    "RoLI Full-FT, rounds": Arm("rounds"),
    "RoLI Full-FT, rounds, N-FGSM": Arm("rounds", settings={"attack": "nfgsm"}),
    "RanLI Full-FT, twice as long": Arm("random", 2 * EPOCHS),
    "RanLI Full-FT, PGD-2": Arm("random", settings={"steps": 2, "step_size": EPS / 2}),
    "RanLI Full-FT, PGD-3": Arm("random", settings={"steps": 3, "step_size": EPS / 2}),
    "RanLI Full-FT, N-FGSM": Arm("random", settings={"attack": "nfgsm"}),
    "RanLI Full-FT, public code": Arm("random", public=True),
}

RANLI, ROUNDS = "RanLI Full-FT", "RoLI Full-FT, rounds"
MAIN = (RANLI, ROUNDS, "RoLI Full-FT, rounds, N-FGSM", "Linear, rounds")
HEADS = ("rounds", "rounds-7", "sgd")
# The public code's engine learns what ours learns, which one size shows; its price is timed.
PUBLIC_SIZE = 50


@functools.cache
def splits(per_class: int) -> Splits:
    """The first images of each class train, the last validate."""
    images, labels = _training_images()
    test, test_labels = real.cifar10("test", TEST)
    names = [str(c) for c in range(10)]

    def rows(first: int, last: int) -> Tensor:
        return torch.cat([(labels == c).nonzero().flatten()[first:last] for c in range(10)])

    parts = [rows(0, per_class), rows(1000 - VAL, 1000)]
    return Splits(
        *(StoredImages(images[r], labels[r], names) for r in parts), StoredImages(test, test_labels, names)
    )


@functools.cache
def held_out() -> StoredImages:
    """Of no size's training images; the last are validation's."""
    images, labels = _training_images()
    rows = torch.cat([(labels == c).nonzero().flatten()[1000 - HELD_OUT : 1000] for c in range(10)])
    return StoredImages(images[rows], labels[rows], [str(c) for c in range(10)])


@functools.cache
def _training_images() -> tuple[Tensor, Tensor]:
    return real.cifar10("train")


def backbone(seed: int, method: str) -> nn.Module:
    torch.manual_seed(seed)
    model = create_model("resnet10_tin", 10)
    load_backbone(model, real.SHARED / "resnet10_tin200_robust.safetensors")
    find_classifier(model).reset_head(10)
    finetune(model, method)
    return model.to(DEVICE)


# --- cells ---------------------------------------------------------------------------------------------

Cell = tuple[dict[str, Any], nn.Module]  # what is said of it, and the model with its best weights


@dataclasses.dataclass(frozen=True)
class Task:
    """A cell to train.

    name: an arm, or one of HEADS. setting: of an arm its learning rate, None for the best of the rates; of a
        head by SGD its weight decay. rates: among which that best one is. needs: what is trained before."""

    size: int
    name: str
    seed: int
    setting: float | None = None
    rates: tuple[float, ...] = ()
    needs: tuple["Task", ...] = ()

    def __str__(self) -> str:
        setting = "" if self.setting is None else f", {self.setting:g}"
        return f"{self.size} {self.name}{setting}, seed {self.seed}"


def chooser(name: str) -> str:
    """The arm whose rate this one takes: for variants of RanLI and RoLI, theirs."""
    return {"random": RANLI, "rounds": ROUNDS, "rounds-7": ROUNDS}.get(ARMS[name].head, name)


def by_importance(name: str) -> tuple[int, bool]:
    return (MAIN.index(name) if name in MAIN else len(MAIN), not ARMS[name].public)


def of_size(arms: Sequence[str] | None, size: int) -> list[str]:
    """Of all arms those that are trained at this size, or of those asked for, all; the main ones first."""
    if arms is None:
        arms = [name for name, arm in ARMS.items() if size == PUBLIC_SIZE or not arm.public]
    return sorted(arms, key=by_importance)


def plan(
    sizes: Sequence[int], arms: Sequence[str] | None, seeds: Sequence[int], rates: Sequence[float]
) -> list[Task]:
    """All heads, what a rate is chosen by (the first seed), the rest: nothing before what it needs."""
    heads: list[Task] = []
    choosing: list[Task] = []
    rest: list[Task] = []
    for size in sorted(sizes):
        for name in of_size(arms, size):
            kind = ARMS[name].head
            if ARMS[name].epochs is None:
                heads += [head for seed in seeds for head in heads_of(size, kind, seed)]
                continue
            heads += [head for seed in sorted({0, *seeds}) for head in heads_of(size, kind, seed)]
            first = heads_of(size, kind, 0)
            choices = tuple(Task(size, chooser(name), 0, lr, needs=first) for lr in rates)
            choosing += choices
            for seed in seeds:
                if seed > 0 or name != chooser(name):
                    needs = heads_of(size, kind, seed) + choices
                    rest.append(Task(size, name, seed, rates=tuple(rates), needs=needs))
    return list(dict.fromkeys(heads + choosing + rest))


def heads_of(size: int, kind: str, seed: int) -> tuple[Task, ...]:
    """From which the best head of a kind is chosen; none where it is random."""
    settings = {"rounds": (None,), "rounds-7": (None,), "sgd": DECAYS}.get(kind, ())
    return tuple(Task(size, kind, seed, setting) for setting in settings)


def place(work: Path, task: Task) -> Path:
    """Of a task whose setting is known."""
    if task.name in HEADS:
        file = task.name if task.setting is None else f"{task.name}-{task.setting:g}"
        return work / str(task.size) / "heads" / str(task.seed) / f"{file}.json"
    return work / str(task.size) / task.name / f"{task.setting:g}-{task.seed}.json"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def save(path: Path, found: dict[str, Any]) -> None:
    write(path, f"{json.dumps(found)}\n".encode())


def train_cell(work: Path, progress: bool, task: Task) -> None:
    """Where it is not there yet. Raises FileNotFoundError where all of a kind that it needs have failed."""
    if task.name not in HEADS and task.setting is None:
        choices = [place(work, Task(task.size, chooser(task.name), 0, lr)) for lr in task.rates]
        lr = float(best_of(choices, "a rate").stem.rpartition("-")[0])
        task = dataclasses.replace(task, setting=lr)
    path = place(work, task)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    found, model = (probed if task.name in HEADS else finetuned)(work, progress, task)
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    write(path.with_suffix(".pt"), lambda file: torch.save(weights, file))
    save(path, found)  # last: it says that the cell is finished


def best_of(paths: Sequence[Path], what: str) -> Path:
    """The first of those that are there that has validated best."""
    there = sorted(path for path in paths if path.exists())
    if not there:
        raise FileNotFoundError(f"{what} was to be chosen from {', '.join(map(str, paths))}: none is there")
    return max(there, key=lambda path: read(path)["validated"])


def probed(work: Path, progress: bool, task: Task) -> Cell:
    data, model = splits(task.size), backbone(task.seed, "linear")
    if task.setting is None:
        rounds = Rounds(**(SEVEN_STEPS if task.name == "rounds-7" else {}))
        done = probe(model, data, Recipe(1, 1.0, seed=task.seed, **ATTACK), rounds, progress=progress)
    else:
        by_sgd = Recipe(20, 0.1, weight_decay=task.setting, seed=task.seed, **PROBING)
        done = train(model, data, by_sgd, progress=progress, title=str(task))
    return described(done.history, done.best, done.cost, model, data), model


def finetuned(work: Path, progress: bool, task: Task) -> Cell:
    arm, data, model = ARMS[task.name], splits(task.size), backbone(task.seed, "full")
    if arm.head == "random":
        find_classifier(model).head.reset_parameters()
    elif arm.head != "paper":
        heads = [place(work, head) for head in heads_of(task.size, arm.head, task.seed)]
        load(model, best_of(heads, "a head"))
    recipe = Recipe(arm.epochs, task.setting, seed=task.seed, **(FINETUNING | arm.settings))
    if not arm.public:
        robust: list[float] = []
        done = train(
            model, data, recipe, progress=progress, title=str(task),
            on_epoch_end=lambda net, _: robust.append(robustness(net, held_out())),
        )  # fmt: skip
        cell = described(done.history, done.best, done.cost, model, data)
        return cell | {"held_out": robust}, model
    history, spent = public.train(model, data, recipe)
    best = max(range(len(history)), key=lambda e: (history[e]["val_robust"], history[e]["val_clean"], -e))
    cost = Cost(spent.forwards, spent.backwards - spent.to_weights, spent.to_weights)
    return described(history, best, cost, model, data), model


def load(model: nn.Module, cell: Path) -> None:
    weights = torch.load(cell.with_suffix(".pt"), map_location="cpu", weights_only=True)
    model.load_state_dict(weights)


def described(
    history: list[dict[str, Any]], best: int, cost: Cost, model: nn.Module, data: Splits
) -> dict[str, Any]:
    pgd = PGD(
        eps=EPS, step_size=EPS / 4, steps=20, iterate="best", early_stop=True,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    parts = zip(data.test.images.split(TESTED), data.test.labels.split(TESTED), strict=True)
    tested = evaluate(model, parts, pgd, strict=False)
    return {
        "device": machine.slug(DEVICE),
        "history": history,
        "best": best,
        "validated": history[best]["val_robust"],
        "cost": dataclasses.asdict(cost),
        "right": {"clean": tested.clean.right.int().tolist(), "pgd20": tested.right.int().tolist()},
    }


def robustness(model: nn.Module, data: StoredImages) -> float:
    """Under validation's attack."""
    attack = validation_attack(Recipe(1, 1.0, **ATTACK), "fp32", torch.Generator().manual_seed(0))
    parts = zip(data.images.split(TESTED), data.labels.split(TESTED), strict=True)
    return evaluate(model, parts, attack, strict=False).value


# --- what withstands stronger attacks ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Judgement:
    """what: one of JUDGES. cell: its file, below the folder of all."""

    what: str
    cell: Path
    needs: ClassVar[tuple["Judgement", ...]] = ()

    def __str__(self) -> str:
        return f"{self.what} of {self.cell.with_suffix('')}"

    def place(self, work: Path) -> Path:
        """Apart from the cells, whose folders are listed."""
        return work / "judged" / self.what / self.cell


def judgements(
    work: Path, sizes: Sequence[int], arms: Sequence[str] | None, seeds: Sequence[int]
) -> list[Judgement]:
    """Of the cells that the table shows: the main arms' first, and the cheaper attack before the dearer."""
    found: dict[tuple[Any, ...], Judgement] = {}
    for size in sorted(sizes):
        cells = chosen(work, size)
        for number, name in enumerate(name for name in sorted(ARMS, key=by_importance) if name in cells):
            for seed, path in cells[name].items():
                if seed in seeds and (arms is None or name in arms):
                    for rank, what in enumerate(JUDGES):
                        order = (name not in MAIN, rank, size, number, seed)
                        found[order] = Judgement(what, path.relative_to(work))
    return [found[order] for order in sorted(found)]


def judge_cell(work: Path, judgement: Judgement) -> None:
    path = judgement.place(work)
    if path.exists():
        return
    data, model = splits(int(judgement.cell.parts[0])).test, backbone(0, "full")
    load(model, work / judgement.cell)
    count = JUDGED[judgement.what]
    rows = torch.cat([(data.labels == c).nonzero().flatten()[:count] for c in data.labels.unique()])
    attack = AutoAttack(eps=EPS, attacks=JUDGES[judgement.what], generator=torch.Generator().manual_seed(0))
    parts = zip(data.images[rows].split(TESTED), data.labels[rows].split(TESTED), strict=True)
    tested = evaluate(model, parts, attack, strict=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(
        path,
        {
            "device": machine.slug(DEVICE),
            "attack": tested.label,
            "notes": tested.notes,
            "rows": rows.tolist(),
            "right": tested.right.int().tolist(),
        },
    )


# --- what an image costs -------------------------------------------------------------------------------

PARTS = ("attack", "training")
Parts = dict[str, Callable[[], object]]


def kinds(data: Splits) -> dict[str, Parts]:
    """Of each engine and what trains: the attack on a batch, and the step that follows."""
    images = data.train.images[:64].float().div(255).to(DEVICE)
    labels = data.train.labels[:64].to(DEVICE)
    variants: dict[str, dict[str, Any]] = {"ours, torch's layout": {"channels_last": False}, "ours": {}}
    variants["ours, N-FGSM"] = {"attack": "nfgsm"}
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
            taken = until_done(call, window) / 64
            if number > 0:  # the first warms up
                seconds[name].append(taken)
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


# --- all together --------------------------------------------------------------------------------------


def row(
    cells: list[dict[str, Any]], heads: list[dict[str, Any]], ranli: list[dict[str, Any]]
) -> dict[str, Any]:
    """Of an arm: cells by seed, the heads they began with, and RanLI's cells."""

    def passes(found: dict[str, Any], epochs: int) -> int:
        rows = found["history"]
        if "cost" not in rows[0]:  # the public code's: all its epochs spend the same
            return Cost(**found["cost"]).passes * epochs // len(rows)
        if "attacks" in rows[0]:  # fits, of which none is known to be the best before all are there
            epochs = len(rows)
        return sum(Cost(**r["cost"]).passes for r in rows[:epochs])

    before = [passes(h, len(h["history"])) for h in heads] if heads else [0] * len(cells)
    found: dict[str, Any] = {"seeds": len(cells)}
    found["devices"] = sorted({c["device"] for c in cells})
    for what in ("clean", "pgd20", *JUDGES):
        by_seed = [statistics.fmean(c["right"][what]) for c in cells if what in c["right"]]
        if by_seed:
            found[what] = {"mean": statistics.fmean(by_seed), "by_seed": by_seed}
    found["passes_to_best"] = [b + passes(c, c["best"] + 1) for b, c in zip(before, cells, strict=True)]
    found["passes_by_epoch"] = [
        [b + passes(c, e + 1) for e in range(len(c["history"]))] for b, c in zip(before, cells, strict=True)
    ]
    found["passes"] = [b + passes(c, len(c["history"])) for b, c in zip(before, cells, strict=True)]
    epochs = [reaching(c, r) for c, r in zip(cells, ranli, strict=True)]
    found["looked_at_held_out"] = all("held_out" in c for c in (*cells, *ranli))
    found["passes_to_ranlis_best"] = [
        None if mine is None else b + passes(c, mine)
        for b, c, (mine, _) in zip(before, cells, epochs, strict=True)
    ]
    found["ranlis_passes_to_it"] = [passes(r, own) for r, (_, own) in zip(ranli, epochs, strict=True)]
    found["best_epochs"] = [c["best"] + 1 for c in cells]
    found["validation"] = [[r["val_robust"] for r in c["history"]] for c in cells]
    if all("held_out" in c for c in cells):
        found["held_out"] = [c["held_out"] for c in cells]
    return found


def reaching(cell: dict[str, Any], ranli: dict[str, Any]) -> tuple[int | None, int]:
    """After how many epochs it is as robust as RanLI ever gets, and RanLI itself: on the images held out,
    where these were looked at in both, else on validation's."""
    looked = all("held_out" in c for c in (cell, ranli))
    mine, others = (
        c["held_out"] if looked else [r["val_robust"] for r in c["history"]] for c in (cell, ranli)
    )
    goal = max(others)
    return next((e for e, robust in enumerate(mine, 1) if robust >= goal), None), others.index(goal) + 1


def chosen(work: Path, size: int) -> dict[str, dict[int, Path]]:
    """Of each arm the cells that count, by seed: of those there are, those with the rate that is best with
    the first seed; of heads the best."""
    found = {}
    for name, arm in ARMS.items():
        cells = _best_heads(work, size, arm.head) if arm.epochs is None else _with_best_rate(work, size, name)
        if cells:
            found[name] = cells
    return found


def _best_heads(work: Path, size: int, kind: str) -> dict[int, Path]:
    seeds = sorted(int(folder.name) for folder in (work / str(size) / "heads").glob("*"))
    files = {seed: [place(work, head) for head in heads_of(size, kind, seed)] for seed in seeds}
    return {seed: best_of(paths, "a head") for seed, paths in files.items() if any(p.exists() for p in paths)}


def _with_best_rate(work: Path, size: int, name: str) -> dict[int, Path]:
    folder = work / str(size) / name
    choices = [sorted((work / str(size) / arm).glob("*-0.json")) for arm in (chooser(name), name)]
    if not choices[1]:
        return {}
    rate = best_of(choices[0] or choices[1], "a rate").stem.rpartition("-")[0]
    found = {int(path.stem.rpartition("-")[2]): path for path in folder.glob(f"{rate}-*.json")}
    return dict(sorted(found.items()))


def judged(work: Path, path: Path) -> dict[str, Any]:
    """A cell, with what withstood stronger attacks, where that is known."""
    cell = read(path)
    for what in JUDGES:
        file = Judgement(what, path.relative_to(work)).place(work)
        if file.exists():
            cell["right"][what] = read(file)["right"]
    return cell


def table(work: Path, size: int) -> dict[str, Any]:
    """Of the cells that are there: of each arm those with its rate, by seed."""
    paths = chosen(work, size)
    cells = {name: {s: judged(work, path) for s, path in of.items()} for name, of in paths.items()}
    heads = {kind: {s: read(path) for s, path in _best_heads(work, size, kind).items()} for kind in HEADS}
    ranli = cells.get(RANLI, {})
    rows = {}
    for name, by_seed in cells.items():
        arm = ARMS[name]
        seeds = [seed for seed in by_seed if seed in ranli]
        if not seeds:
            continue
        begun = [heads[arm.head][s] for s in seeds] if arm.epochs and arm.head in heads else []
        rows[name] = row([by_seed[s] for s in seeds], begun, [ranli[s] for s in seeds])
        rows[name]["lr"] = float(paths[name][seeds[0]].stem.rpartition("-")[0]) if arm.epochs else None
        for what in ("pgd20", *JUDGES):
            gaps = [gap(by_seed[s], ranli[s], what) for s in seeds if _both(by_seed[s], ranli[s], what)]
            if gaps:
                rows[name][f"{what}_minus_ranli"] = gaps
    return rows


def _both(a: dict[str, Any], b: dict[str, Any], what: str) -> bool:
    return what in a["right"] and what in b["right"]


def gap(a: dict[str, Any], b: dict[str, Any], what: str) -> dict[str, float]:
    if a is b:
        return dataclasses.asdict(Difference(0.0, 0.0, 0.0))
    return dataclasses.asdict(difference(*(Accuracy(torch.tensor(c["right"][what]) > 0) for c in (a, b))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("cells", "judge", "times", "table"))
    parser.add_argument("--work", type=Path, default=Path("runs/price"), help="where the cells lie")
    parser.add_argument("--out", type=Path, help="of times and table: a JSON file")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of cells and judge")
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=list(ARMS),
        help=f"default all, the public code's at {PUBLIC_SIZE} images",
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[50], help="images of each class")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--rounds", type=int, default=7, help="of times")
    parser.add_argument("--window", type=int, default=10, help="batches at once, of times")
    given = parser.parse_args()
    if given.what in ("times", "table"):
        if given.out is None:
            parser.error(f"{given.what} needs --out")
        write_result(given)
        return
    if given.jobs < 1:
        parser.error("--jobs: at least 1")
    perform: Perform
    tasks: Sequence[Any]
    if given.what == "cells":
        tasks = plan(given.sizes, given.arms, given.seeds, given.rates)
        perform = functools.partial(train_cell, given.work, given.jobs == 1)
    else:
        tasks = judgements(given.work, given.sizes, given.arms, given.seeds)
        perform = functools.partial(judge_cell, given.work)
    failed = run_all(tasks, perform, given.jobs)
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


def write_result(given: argparse.Namespace) -> None:
    """What was measured goes to what the file has already of other sizes and machines."""
    result = read(given.out) if given.out.exists() else {}
    if given.what == "table":
        sizes = result.get("sizes", {}) | {str(size): table(given.work, size) for size in given.sizes}
        result |= {"eps": EPS, "epochs": EPOCHS, "validation_images": 10 * VAL, "test_images": 10 * TEST}
        result["sizes"] = {size: sizes[size] for size in sorted(sizes, key=int) if sizes[size]}
    elif DEVICE == "cuda":
        result.setdefault("gpu_times", {})[machine.slug(DEVICE)] = times(given.rounds, given.window)
    else:
        result["times"] = times(given.rounds, given.window)
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
