"""``roli-fast transfer``: what the theory of transferred robustness says of a backbone and a data set."""

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .. import __version__
from ..attacks import PGD, Attack, AutoAttack
from ..data import Sample
from ..evaluation import (
    TRANSFERRED,
    Advice,
    Difference,
    Sensitivity,
    Transfer,
    advise,
    advise_between,
    advise_without_head,
    sensitivity,
    sensitivity_attack,
    transfer,
    transferred,
)
from ..files import write_json
from ..models import split
from .errors import UserError
from .options import (
    Options,
    add_data_arguments,
    check_eps,
    chosen_device,
    load_data,
    new_folder,
    sampled,
    users_mistakes,
)
from .transfer_subjects import Subject, check_subjects, load_subjects
from .transfer_tables import print_bounds, print_robustness, print_sensitivity, print_transferred, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    files = "files of save_model; several, such as probed and finetuned models, are compared"
    parser.add_argument("files", metavar="MODEL", help=files, nargs="*", type=Path)
    option = Options(parser, "a backbone, instead of files")
    option.text("--model", "NAME", "one of timm's, or small_resnet, resnet10_tin, hybrid_vit")
    option.text(
        "--checkpoint", "FILE", "weights of the backbone; a head that does not fit is left out", type=Path
    )
    option.count("--img-size", "PIXELS", "image size for which the backbone is built (default: its own)")
    option.flag("--resize", "resize images to the backbone's size inside the model")
    channels = "by which pixels are normalised, one for each channel (default: timm's for the model)"
    option.number("--mean", "X", channels, or_zero=True, nargs="+")
    option.number("--std", "X", channels, nargs="+")
    add_data_arguments(parser, "required")
    option = Options(parser, "evaluation")
    of = "split whose images are used; keep test images for what was chosen by the advice"
    option.choice("--split", of, ("val", "test"), default="val")
    option.count("--images", "N", "number of images, at most, evenly spaced in the split", default=1000)
    option.count("--batch-size", "N", "number of images in a batch", default=100)
    option.number("--eps", "EPS", "Linf radius, for pixels in [0, 1] (default: 8/255)")
    option.count("--steps", "N", "number of steps of FeaturePGD and PGD", default=20)
    option.flag("--autoattack", "also attack with AutoAttack, which takes long")
    option.count("--seed", "N", "seed of the attacks", least=0, default=0)
    option.text("--device", "DEVICE", "cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    option.text("--output", "FOLDER", "folder for the results", type=Path, default=Path("runs/transfer"))


def run(arguments: argparse.Namespace) -> None:
    check_subjects(arguments)
    if arguments.dataset is None:
        raise UserError("--dataset: got none, accepted: the data set of the new task, such as cifar10")
    arguments.eps = arguments.eps or 8 / 255
    check_eps("linf", arguments.eps)
    device = chosen_device(arguments.device)
    splits = load_data(arguments)
    with users_mistakes():
        batches = sampled(splits, arguments, device)
        image = next(iter(batches))[0][:1]
        subjects = load_subjects(arguments, image, len(splits.classes), device)
    folder = new_folder("--output", arguments.output, "transfer.json")

    console = Console(width=None if Console().is_terminal else 140)
    say(
        console,
        f"{arguments.dataset}, {arguments.split}: {batches.images} images. Linf, eps {arguments.eps:.4g}. "
        "All is estimated, nothing certified.",
    )
    with users_mistakes():  # what shows only under attack, such as a model without gradients
        found = {subject.name: _looked_at(subject, batches, arguments, console) for subject in subjects}
    headed = {name: run for name, run in found.items() if isinstance(run, Transfer)}
    print_sensitivity(console, {name: _sensitivity(run) for name, run in found.items()})
    if headed:
        print_robustness(console, headed, {s.name: s.method for s in subjects})
        print_bounds(console, headed)
    comparison = _compared(subjects, headed)
    if comparison is not None:
        print_transferred(console, comparison[0])
    advice = {"comparison": comparison[1]} if comparison else {n: _advice(run) for n, run in found.items()}
    for name, advised in advice.items():
        say(console, f"Advice ({name}): {advised.text}")
    _save(folder, arguments, batches, subjects, found, comparison, advice)
    say(console, f"Numbers: {folder / 'transfer.json'}")


def _looked_at(
    subject: Subject, batches: Sample, arguments: argparse.Namespace, console: Console
) -> Transfer | Sensitivity:
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(arguments.seed)

    eps, steps = arguments.eps, arguments.steps
    moving = sensitivity_attack(eps, steps, generator())
    say(console, f"{subject.name} ...")
    if not subject.head:
        return sensitivity(split(subject.model)[0], batches, moving, progress=True)
    # Steps that reach any point of the ball and come back from its edge (Madry et al. 2018).
    pgd = PGD(eps=eps, step_size=2.5 * eps / steps, steps=steps, iterate="best", generator=generator())
    attacks: list[Attack] = [pgd]
    if arguments.autoattack:
        attacks.append(AutoAttack(eps=eps, generator=generator()))
    return transfer(subject.model, batches, moving, attacks, progress=True)


def _sensitivity(found: Transfer | Sensitivity) -> Sensitivity:
    return found.sensitivity if isinstance(found, Transfer) else found


def _advice(found: Transfer | Sensitivity) -> Advice:
    return advise(found) if isinstance(found, Transfer) else advise_without_head(found)


def _compared(
    subjects: list[Subject], headed: dict[str, Transfer]
) -> tuple[dict[str, Difference | None], Advice] | None:
    """Transferred accuracy and robustness, None where undefined, and advice: where there are probed and
    finetuned models."""
    probed, finetuned = (
        [headed[s.name] for s in subjects if s.method == method and s.head] for method in ("linear", "full")
    )
    if not probed or not finetuned:
        return None
    accuracies = {
        "accuracy": ([run.clean for run in probed], [run.clean for run in finetuned]),
        "robustness": ([run.robust for run in probed], [run.robust for run in finetuned]),
    }
    gaps = {
        name: transferred(*groups) if any(a.value > 0 for a in groups[1]) else None
        for name, groups in accuracies.items()
    }
    return gaps, advise_between(probed, finetuned)


def _save(
    folder: Path,
    arguments: argparse.Namespace,
    batches: Sample,
    subjects: list[Subject],
    found: dict[str, Transfer | Sensitivity],
    comparison: tuple[dict[str, Difference | None], Advice] | None,
    advice: dict[str, Advice],
) -> None:
    saved: dict[str, Any] = {
        "certified": False,
        "dataset": arguments.dataset,
        "split": arguments.split,
        "images": batches.images,
        "eps": arguments.eps,
        "seed": arguments.seed,
        "versions": {"roli_fast": __version__, "torch": torch.__version__},
        "models": {s.name: {"method": s.method, "head": s.head} | _summary(found[s.name]) for s in subjects},
        "advice": {name: dataclasses.asdict(advised) for name, advised in advice.items()},
    }
    if comparison is not None:
        saved["transferred"] = {"formula": TRANSFERRED} | {n: _interval(g) for n, g in comparison[0].items()}
    write_json(folder / "transfer.json", saved, allow_nan=False)


def _summary(found: Transfer | Sensitivity) -> dict[str, Any]:
    return found.summary() if isinstance(found, Transfer) else {"sensitivity": found.summary()}


def _interval(gap: Difference | None) -> dict[str, Any] | None:
    if gap is None:
        return None
    return {"value": gap.value, "interval": [gap.low, gap.high if math.isfinite(gap.high) else None]}
