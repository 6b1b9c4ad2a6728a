"""``roli-fast eval``: clean and robust accuracy of a model, overall and per class, with intervals."""

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from .. import __version__
from ..attacks import PGD, Attack, AutoAttack
from ..attacks.norms import NORMS
from ..data import Splits
from ..distributed import rank
from ..engine import PRECISIONS
from ..evaluation import Accuracy, Evaluation, evaluate
from ..files import read_json, write_json
from ..models import load_model
from ..training.stage_checks import check_fits
from .errors import UserError
from .launched import own_device
from .options import (
    DATA_OPTIONS,
    Options,
    add_data_arguments,
    check_eps,
    check_names,
    load_data,
    new_folder,
    read_arguments,
    refuse_without_effect,
    sampled,
    users_mistakes,
)

ATTACKS = ("pgd", "autoattack")
_SHOWN = 20  # classes in the table; the file has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    about = "a file of save_model, or the folder of a run of train, whose data and eps are then the default"
    parser.add_argument("model", metavar="MODEL", help=about, type=Path)
    add_data_arguments(parser, "default: the run's; a file has none")
    option = Options(parser, "evaluation")
    option.choice("--split", "split whose images are used", ("test", "val", "train"), default="test")
    option.count("--images", "N", "number of images, evenly spaced in the split (default: all)")
    option.text(
        "--attacks",
        "ATTACK",
        f"attacks, of {', '.join(ATTACKS)}; none for clean accuracy alone",
        nargs="*",
        default=["pgd"],
    )
    option.choice("--norm", "norm of the ball (default: the run's, or linf)", tuple(NORMS))
    option.number(
        "--eps", "EPS", "radius, for pixels in [0, 1] (default: the run's in its norm, or 8/255 in linf)"
    )
    option.number("--step-size", "SIZE", "step size of PGD (default: eps / 4)")
    option.count("--steps", "N", "number of steps of PGD (default: 10)")
    option.count("--restarts", "N", "number of random starts of PGD (default: 1)")
    option.choice("--version", "version of AutoAttack (default: standard)", ("standard", "plus", "rand"))
    option.choice(
        "--precision",
        "precision of the search; success is decided by the model itself",
        tuple(PRECISIONS),
        default="fp32",
    )
    option.count("--batch-size", "N", "number of images in a batch", default=100)
    option.count("--seed", "N", "seed of the attacks", least=0, default=0)
    option.text("--device", "DEVICE", "cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    where = "folder for the results (default: eval in the run's folder; runs/eval for a file)"
    option.text("--output", "FOLDER", where, type=Path)
    option.flag(
        "--save-adversarial", "keep the adversarial images in --output, where an interrupted run goes on"
    )


def run(arguments: argparse.Namespace) -> None:
    check_names("--attacks", arguments.attacks, ATTACKS)
    _settle(arguments)
    with own_device(arguments.device) as device:
        _run(arguments, device)


def _settle(arguments: argparse.Namespace) -> None:
    """Fills in defaults; raises UserError for an option without effect."""
    refuse_without_effect(
        arguments,
        [
            (("step_size", "steps", "restarts"), "pgd" in arguments.attacks, "--attacks pgd"),
            (("version",), "autoattack" in arguments.attacks, "--attacks autoattack"),
            (("norm", "eps", "save_adversarial"), bool(arguments.attacks), "an attack"),
        ],
    )
    arguments.steps, arguments.restarts = arguments.steps or 10, arguments.restarts or 1
    arguments.version = arguments.version or "standard"


def _run(arguments: argparse.Namespace, device: torch.device) -> None:
    with users_mistakes():
        path = _model_file(arguments)
        model = load_model(path).to(device)
    if arguments.dataset is None and not arguments.model.is_dir():
        raise UserError("--dataset: got none, accepted: that of MODEL's images; a run's folder has its own")
    splits = load_data(arguments)
    with users_mistakes():
        batches = sampled(splits, arguments, device)
        check_fits(model, next(iter(batches))[0][0], len(splits.classes))
        notes = _of_other_data(path, splits)
    folder = new_folder("--output", arguments.output, "eval.json")
    console = Console(quiet=rank() != 0)
    ball = f", {arguments.norm}, eps {arguments.eps:.4g}" if arguments.attacks else ""
    plain: dict[str, Any] = {"soft_wrap": True, "highlight": False, "markup": False}
    console.print(f"{path}: {batches.images} {arguments.split} images{ball}", **plain)
    found: dict[str, Evaluation] = {}
    with users_mistakes():  # what shows only under attack, such as another number of classes
        for name, attack in _attacks(arguments).items():
            # Each seed has its own adversarial images.
            own = name if arguments.seed == 0 else f"{name}-seed-{arguments.seed}"
            kept = folder / own if arguments.save_adversarial and attack is not None else None
            found[name] = evaluate(model, batches, attack, folder=kept, progress=True)
    labels = batches.labels
    accuracies = {"clean": next(iter(found.values())).clean} | {
        n: e for n, e in found.items() if n != "clean"
    }
    if rank() == 0:  # before anything is printed, which may fail after hours of attacks
        saved = _json(arguments, path, found, accuracies, labels, splits.classes)
        write_json(folder / "eval.json", saved | {"notes": notes})
    console.print(_table(accuracies, labels, splits.classes, arguments))
    notes += [f"{name}: {note}" for name, evaluation in found.items() for note in evaluation.notes]
    for line in (*notes, f"Numbers: {folder / 'eval.json'}"):
        console.print(line, **plain)


def _of_other_data(model: Path, splits: Splits) -> list[str]:
    """A note where the file lies in a run's folder, and the run trained on other images."""
    try:
        trained = dict(read_json(model.parent / "recipe.json")).get("data")
    except (TypeError, ValueError):  # no run's folder
        return []
    if trained in (None, splits.fingerprint()):
        return []
    return [
        "the run trained and validated on other images than this data set's, or other views of them: "
        "those that are tested here may be among its own"
    ]


def _model_file(arguments: argparse.Namespace) -> Path:
    """The model's file. If MODEL is a run's folder, options that were not given are as in the run."""
    given = arguments.model
    if not given.exists():
        raise UserError(
            f"MODEL: got {given}, which is not there, accepted: a run's folder, or a model's file"
        )
    there: dict[str, Any] = {}
    if given.is_dir():
        settled = given / "args.json"
        if not settled.exists():
            raise UserError(f"MODEL: got {given}, which holds no run of train, accepted: a run, or a file")
        there, recipe = read_arguments(settled)
        there |= {name: recipe.get(name) for name in ("norm", "eps")}
        arguments.output = arguments.output or given / "eval"
        given = given / "finetune" / "best.safetensors"
    arguments.output = arguments.output or Path("runs/eval")
    same_data = arguments.dataset in (None, there.get("dataset") or "digits")
    for name in ("dataset", *DATA_OPTIONS) if same_data else ():
        if getattr(arguments, name) is None:
            setattr(arguments, name, there.get(name))
    balls = {"linf": 8 / 255, there.get("norm"): there.get("eps")}
    arguments.norm = arguments.norm or there.get("norm", "linf")
    arguments.eps = arguments.eps or balls.get(arguments.norm)
    if arguments.eps is None:
        raise UserError(f"--eps: got none in {arguments.norm}, accepted: a radius, such as 0.5 in l2")
    check_eps(arguments.norm, arguments.eps)
    return given


def _attacks(arguments: argparse.Namespace) -> dict[str, Attack | None]:
    if not arguments.attacks:
        return {"clean": None}

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(arguments.seed)

    made: dict[str, Attack] = {
        "pgd": PGD(
            arguments.norm,
            arguments.eps,
            arguments.step_size or arguments.eps / 4,
            arguments.steps,
            restarts=arguments.restarts,
            iterate="best",
            early_stop=True,
            precision=arguments.precision,
            generator=generator(),
        ),
        "autoattack": AutoAttack(
            arguments.norm,
            arguments.eps,
            arguments.version,
            precision=arguments.precision,
            generator=generator(),
        ),
    }
    return {name: made[name] for name in arguments.attacks}


def _per_class(accuracy: Accuracy, labels: Tensor, classes: tuple[str, ...]) -> dict[str, Accuracy]:
    """The accuracy of each class that has images."""
    present = labels.unique().tolist()
    return {classes[c]: Accuracy(accuracy.right[labels == c]) for c in present}


def _table(
    accuracies: dict[str, Accuracy], labels: Tensor, classes: tuple[str, ...], arguments: argparse.Namespace
) -> Table:
    titles = {"pgd": f"PGD-{arguments.steps}", "autoattack": "AutoAttack"}
    table = Table(caption="Accuracies in %, with 95 % Wilson intervals.")
    table.add_column("class")
    table.add_column("images", justify="right")
    for name in accuracies:
        table.add_column(titles.get(name, name), justify="right")
    columns = {name: _per_class(accuracy, labels, classes) for name, accuracy in accuracies.items()}
    last = columns[list(columns)[-1]]
    worst = sorted(last, key=lambda c: last[c].value)[:_SHOWN]
    for name in last:  # in the order of the labels
        if name in worst:
            cells = (str(column[name]) for column in columns.values())
            table.add_row(escape(name), str(len(last[name].right)), *cells)
    if len(last) > len(worst):
        table.add_row(f"... the {len(worst)} worst of {len(last)} classes", "", *[""] * len(columns))
    table.add_section()
    table.add_row("all", str(len(labels)), *map(str, accuracies.values()))
    return table


def _json(
    arguments: argparse.Namespace,
    path: Path,
    found: dict[str, Evaluation],
    accuracies: dict[str, Accuracy],
    labels: Tensor,
    classes: tuple[str, ...],
) -> dict[str, Any]:
    return {
        "model": str(path),
        "dataset": arguments.dataset or "digits",
        "split": arguments.split,
        **({"norm": arguments.norm, "eps": arguments.eps} if arguments.attacks else {}),
        "versions": {"roli_fast": __version__, "torch": torch.__version__},
        "accuracies": {
            name: accuracy.summary()
            | {"classes": {c: a.summary() for c, a in _per_class(accuracy, labels, classes).items()}}
            for name, accuracy in accuracies.items()
        },
        "attacks": {
            name: {
                "label": e.label,
                "after": {stage: e.after(stage).value for stage in e.stages},
                "notes": e.notes,
                "forwards": e.forwards,
                "gradients": e.gradients,
                "seconds": e.seconds,
            }
            for name, e in found.items()
        },
    }
