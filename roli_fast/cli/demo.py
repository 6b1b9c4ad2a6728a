"""``roli-fast demo``: the story of RoLI on real digits, in minutes.

A small network learns the digits 0 to 4 adversarially. That is the robust backbone. The digits 5 to 9 are the
downstream task: linear probing, finetuning from torch's small random head (RanLI), and from the probed one
(RoLI). The digits come with scikit-learn: nothing is downloaded.
"""

import argparse
import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..attacks import PGD, AutoAttack
from ..data import Loader, Splits, StoredImages, digits
from ..evaluation import Evaluation, difference, evaluate
from ..files import write, write_json
from ..models import Normalized, create_model, find_classifier, save_model
from ..report import Gap, Rate, read_run, write_report
from ..report.measure import seeded
from ..report.pictures import against_cost, check_matplotlib, points
from ..training import Outcome, Recipe, Rounds, roli, train
from .errors import UserError
from .options import Options

# In [0, 1] pixels. An eps at which an undefended network is lost and a trained one is not.
_EPS = 0.15
_BACKBONE_DIGITS, _TASK_DIGITS = range(5), range(5, 10)
_AUTOATTACKED = 20  # test images
_QUERIES = 1000  # of its Square: one after another, the official 5,000 would be half of the demo's time
_REPORTED = 20  # test images
_ARMS = ("Linear", "RanLI Full-FT", "RoLI Full-FT")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    option = Options(parser, "demo")
    option.count("--epochs", "N", "epochs of each finetuning", default=8)
    option.count("--seed", "N", "seed of weights, batches and attacks", least=0, default=0)
    option.text("--output", "FOLDER", "folder for picture and results", type=Path, default=Path("runs/demo"))


@dataclasses.dataclass(frozen=True)
class _Arm:
    outcome: Outcome
    pgd: Evaluation
    autoattack: Evaluation


def run(arguments: argparse.Namespace) -> None:
    check_matplotlib()
    try:
        _clear(
            arguments.output, [arguments.output / "pretrain", *(_folder(arguments, name) for name in _ARMS)]
        )
        whole = digits()
    except ImportError as error:
        raise UserError(f"{error}; install what the demo needs: pip install 'roli-fast[demo]'") from error
    except OSError as error:
        raise UserError(f"--output: {error}") from error
    console = Console(width=None if Console().is_terminal else 110)
    backbone_task, task = (_only(whole, kept) for kept in (_BACKBONE_DIGITS, _TASK_DIGITS))
    console.print(
        f"Handwritten digits, 8x8 pixels, Linf, eps {_EPS}. Backbone: {len(backbone_task.train)} images of "
        f"the digits 0 to 4. Task: the digits 5 to 9, {len(task.train)} train, {len(task.val)} validation, "
        f"{len(task.test)} test images.",
        soft_wrap=True,
    )
    backbone = _pretrain(backbone_task, arguments)
    arms = {name: _arm(name, backbone, task, arguments) for name in _ARMS}
    console.print(_table(arms))
    console.print(_verdicts(arms), soft_wrap=True)
    _save(arguments, arms)
    runs = [read_run(_folder(arguments, name), name) for name in _ARMS]
    picture = arguments.output / "demo.png"
    write(picture, against_cost(runs, {name: Rate.of(arm.pgd) for name, arm in arms.items()}).png)
    described = "scikit-learn's handwritten digits 5 to 9"
    page = write_report(
        runs, task, arguments.output / "report", images=_REPORTED, data=described, progress=True
    )
    where = {"Picture": picture, "Numbers": arguments.output / "demo.json", "Report": page}
    console.print("\n".join(f"{what}: {path}" for what, path in where.items()), soft_wrap=True)


def _clear(out: Path, folders: list[Path]) -> None:
    """A new folder, or one without the runs of an earlier demo, which has left a mark."""
    mark = out / ".roli-fast-demo"
    there = [folder for folder in folders if folder.exists()]
    if there and not mark.exists():
        raise UserError(f"--output: got {out}, whose {there[0].name} is no demo's, accepted: another folder")
    out.mkdir(parents=True, exist_ok=True)
    mark.touch()
    for folder in there:
        shutil.rmtree(folder)


def _only(splits: Splits, kept: range) -> Splits:
    """The images of these classes, numbered anew."""

    def chosen(images: Any) -> StoredImages:
        rows = (images.labels >= kept.start) & (images.labels < kept.stop)
        names = [images.classes[c] for c in kept]
        return StoredImages(images.images[rows], images.labels[rows] - kept.start, names)

    return Splits(*map(chosen, splits))


def _recipe(arguments: argparse.Namespace, epochs: int, lr: float, **more: Any) -> Recipe:
    return Recipe(
        epochs=epochs,
        lr=lr,
        batch_size=64,
        warmup_epochs=min(2, epochs - 1),
        eps=_EPS,
        seed=arguments.seed,
        precision="fp32",
        **more,
    )


def _pretrain(task: Splits, arguments: argparse.Namespace) -> Normalized:
    """The robust backbone."""
    torch.manual_seed(arguments.seed)
    model = create_model(
        "small_resnet", len(task.classes), in_chans=1, mean=(0.305,), std=(0.376,), channels=(16, 32, 64, 64)
    )
    recipe = _recipe(arguments, 2 * arguments.epochs, 3e-3)
    train(
        model,
        task,
        recipe,
        folder=arguments.output / "pretrain",
        progress=True,
        title="backbone, digits 0 to 4",
    )
    save_model(model, arguments.output / "backbone.safetensors")
    return model


def _arm(name: str, backbone: Normalized, task: Splits, arguments: argparse.Namespace) -> _Arm:
    model = copy.deepcopy(backbone)
    torch.manual_seed(arguments.seed)
    classifier = find_classifier(model)
    classifier.reset_head(len(task.classes))
    # torch's small one: from the paper's, whose logits are large, RanLI ends 12 points less robust (seed 0).
    classifier.head.reset_parameters()
    outcome = roli(
        model,
        task,
        _recipe(arguments, arguments.epochs, 1e-3),
        probing=None if name.startswith("RanLI") else Rounds(),
        method="linear" if name == "Linear" else "full",
        folder=_folder(arguments, name),
        progress=True,
    )
    pgd = PGD(eps=_EPS, step_size=_EPS / 8, steps=20, iterate="best", early_stop=True, generator=seeded())
    autoattack = AutoAttack(eps=_EPS, queries=_QUERIES, generator=seeded())
    images, labels = _all(task)
    some = [(images[:_AUTOATTACKED], labels[:_AUTOATTACKED])]
    robust = evaluate(model, [(images, labels)], pgd)
    return _Arm(outcome, robust, evaluate(model, some, autoattack, progress=True))


def _folder(arguments: argparse.Namespace, arm: str) -> Path:
    return arguments.output / arm.split()[0].lower()


def _all(task: Splits) -> tuple[Tensor, Tensor]:
    """All test images, and their labels."""
    images, labels, _ = next(iter(Loader(task.test, len(task.test))))
    return images, labels


def _table(arms: dict[str, _Arm]) -> Table:
    table = Table(
        caption=f"Test accuracies in %, with 95 % intervals; AutoAttack on {_AUTOATTACKED} images, "
        f"its Square with {_QUERIES:,} queries. Passes through the network: forward 1, backward to the "
        "input 1, to input and weights 2."
    )
    table.add_column("arm", no_wrap=True)
    for column in ("clean", "PGD-20", "AutoAttack", "stage", "passes", "seconds"):
        table.add_column(column, justify="right")
    for name, arm in arms.items():
        shown = [str(arm.pgd.clean), str(arm.pgd), str(arm.autoattack)]
        for stage, trained in arm.outcome.stages.items():
            cost = trained.cost
            table.add_row(name, *shown, stage, f"{cost.passes:,}", f"{cost.seconds:.1f}")
            name, shown = "", ["", "", ""]
    return table


def _verdicts(arms: dict[str, _Arm]) -> str:
    """RoLI against the others, and what is noise."""
    gaps = []
    ours = arms["RoLI Full-FT"].pgd
    for other in _ARMS[:2]:
        theirs = arms[other].pgd
        found = {"clean": difference(ours.clean, theirs.clean), "PGD-20": difference(ours, theirs)}
        gaps += [Gap(f"RoLI minus {other}", w, d.value, d.low, d.high) for w, d in found.items()]
    return "\n".join(map(points, gaps))


def _save(arguments: argparse.Namespace, arms: dict[str, _Arm]) -> None:
    results = {
        "epochs": arguments.epochs,
        "seed": arguments.seed,
        "eps": _EPS,
        "arms": {
            name: {
                "clean": arm.pgd.clean.summary(),
                "pgd20": arm.pgd.summary(),
                "autoattack": arm.autoattack.summary(),
                "stages": {s: dataclasses.asdict(t.cost) for s, t in arm.outcome.stages.items()},
            }
            for name, arm in arms.items()
        },
    }
    write_json(arguments.output / "demo.json", results)
