"""``roli-fast train``: adversarial transfer learning in two stages, or either, on any timm model."""

import argparse
import contextlib
import dataclasses
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..attacks.norms import NORMS
from ..data import ImageStream, Splits
from ..distributed import rank, world_size
from ..engine import PRECISIONS
from ..files import check_name, write_json
from ..models import METHODS, Normalized, create_model, find_classifier, load_backbone
from ..speed import machine
from ..training import DivergedError, Outcome, Recipe, Rounds, roli
from ..training.processes import by_the_first
from ..training.recipe import AMP_DTYPES, ATTACKS, AUTO, LOSSES, MODES, SCHEDULES
from .errors import RunError, UserError
from .launched import own_device
from .options import (
    Options,
    add_data_arguments,
    load_data,
    new_folder,
    read_arguments,
    users_mistakes,
)
from .train_recipes import method_options, model_options, recipes, settle

INITS = ("roli", "small", "random", "pretrained")
PROBES = ("rounds", "sgd")

# Arguments that may differ when a run is resumed, and are not recorded.
_FREE = ("resume", "output", "workers", "device", "dataset_download", "run")
# Recorded, but may have moved: weights are recognised by their digest, data by that of names and labels.
_PLACES = ("data_dir", "initial_checkpoint")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model_arguments(Options(parser, "model"))
    _add_stage_arguments(Options(parser, "stages"))
    _add_training_arguments(Options(parser, "training"))
    _add_attack_arguments(Options(parser, "attack in training, and in validation"))
    add_data_arguments(parser, "default: digits")
    option = Options(parser, "run")
    option.text("--output", "FOLDER", "folder of the run", type=Path, default=Path("runs/train"))
    option.flag("--resume", "go on where the run in --output was interrupted; begin where there is none")
    option.text("--device", "DEVICE", "cpu, cuda, cuda:1 ... (default: cuda where there is one)")


def _add_model_arguments(option: Options) -> None:
    option.text(
        "--model", "NAME", "one of timm's, or small_resnet, resnet10_tin, hybrid_vit", default="resnet10_tin"
    )
    option.text("--initial-checkpoint", "FILE", "weights of the backbone", type=Path)
    option.flag("--pretrained", "use timm's weights, which are downloaded")
    option.count("--img-size", "PIXELS", "image size for which the backbone is built")
    resize = "resize images to the backbone's size inside the model (default for a Swin or ViT on CIFAR)"
    option.flag("--resize", resize)
    for name in ("--mean", "--std"):
        about = f"{name[2:]} by which pixels are normalised, one for each channel (default: timm's)"
        option.number(name, "X", about, or_zero=name == "--mean", nargs="+")
    drop = "rate of stochastic depth in full finetuning (default: 0; 0.5 for a Swin on the paper's data sets)"
    option.number("--drop-path", "RATE", drop, or_zero=True)
    option.text("--model-kwargs", "NAME=VALUE", "further options of the network", nargs="+", default=[])


def _add_stage_arguments(option: Options) -> None:
    about = (
        "the head that finetuning begins with: roli, probed first (default if the backbone has weights); "
        "small, torch's random one (default otherwise); random, the paper's, with large logits; or "
        "pretrained, the checkpoint's own"
    )
    option.choice("--init", about, INITS)
    option.choice("--method", "what finetuning trains; linear is probing alone", METHODS, default="full")
    option.text(
        "--method-kwargs", "NAME=VALUE", "options of the method, such as rank=8", nargs="+", default=[]
    )
    probe = (
        "how the head is probed: rounds (default) of attacks and convex fits, or the paper's epochs of SGD"
    )
    option.choice("--probe", probe, PROBES)
    option.count("--probe-rounds", "N", f"number of rounds, at most (default: {Rounds.rounds})")
    option.count(
        "--probe-steps", "N", f"number of steps of the attack in each round (default: {Rounds.steps})"
    )
    option.count("--probe-epochs", "N", "epochs of probing by SGD (default: the paper's)")
    option.number("--probe-lr", "LR", "learning rate of probing by SGD (default: the paper's)")
    option.text("--probe-opt", "NAME", "optimiser of probing by SGD (default: momentum, which is SGD)")
    option.number("--probe-weight-decay", "W", "weight decay of probing by SGD (default: 1e-4)", or_zero=True)


def _add_training_arguments(option: Options) -> None:
    """What is not given is the recipe's default."""
    paper = "(default: the paper's for the data set)"
    option.count("--epochs", "N", f"epochs of finetuning {paper}")
    option.count("--patience", "N", "stop after this many epochs without a new best (default: never)")
    option.count("--batch-size", "N", "images in a step, of all processes together (default: 64)")
    option.number("--lr", "LR", "peak learning rate")
    option.number(
        "--lr-base", "LR", f"peak learning rate for a batch of 256, scaled to the batch size {paper}"
    )
    option.text("--opt", "NAME", "optimiser, by timm's name (default: adamw; momentum for linear)")
    option.number("--momentum", "M", "momentum of SGD", or_zero=True, shown=Recipe.momentum)
    decay = "weight decay, but for biases and normalisation layers (default: 0.05; 1e-4 for linear)"
    option.number("--weight-decay", "W", decay, or_zero=True)
    sched = "schedule of the learning rate after the warm-up"
    option.choice("--sched", sched, SCHEDULES, shown=Recipe.sched)
    option.count("--warmup-epochs", "N", f"epochs in which the learning rate grows {paper}", least=0)
    option.number("--min-lr", "LR", "learning rate at the end", or_zero=True, shown=Recipe.min_lr)
    option.number("--clip-grad", "NORM", "norm to which gradients are clipped (default: none)")
    average = (
        "keep a moving average of the weights with this decay, which is at most 1 - (1 + step)^(-2/3) "
        "(default: no average)"
    )
    option.number("--model-ema-decay", "D", average, or_zero=True)
    amp = "autocast's dtype in the training step (default: bfloat16 if the attack is in half precision)"
    option.choice("--amp-dtype", amp, AMP_DTYPES)
    option.flag("--no-channels-last", "keep images and weights in torch's default memory layout")
    option.flag("--sync-bn", "take BatchNorm's statistics over the batches of all processes")
    option.count("--seed", "N", "seed of weights, order and attacks", least=0, default=0)


def _add_attack_arguments(option: Options) -> None:
    """What is not given is the recipe's default."""
    attack = "attack in training; nfgsm is one step from noise"
    option.choice("--attack", attack, ATTACKS, shown=Recipe.attack)
    option.choice("--loss", "cross-entropy on adversarial images, or TRADES", LOSSES, shown=Recipe.loss)
    option.number("--trades-beta", "BETA", "weight of TRADES' divergence", shown=Recipe.trades_beta)
    option.choice("--norm", "norm of the ball", tuple(NORMS), shown=Recipe.norm)
    option.number("--eps", "EPS", "radius of the ball, for pixels in [0, 1] (default: 8/255 in linf)")
    option.number("--step-size", "SIZE", "step size of the training attack (default: eps / 4)")
    option.count("--steps", "N", "number of steps of the training attack", shown=Recipe.steps)
    warmup = "epochs in which eps grows from 0"
    option.count("--eps-warmup-epochs", "N", warmup, least=0, shown=Recipe.eps_warmup_epochs)
    mode = "mode of the model while it is attacked in training"
    option.choice("--attack-mode", mode, MODES, shown=Recipe.attack_mode)
    fastest = "precision of attacks (default: auto, the fastest on the device by a measurement)"
    option.choice("--attack-precision", fastest, (AUTO, *PRECISIONS))
    steps = "number of steps of PGD on validation and test images"
    option.count("--val-steps", "N", steps, shown=Recipe.val_steps)


def run(arguments: argparse.Namespace) -> None:
    with own_device(arguments.device) as device:
        _run(arguments, device)


def _run(arguments: argparse.Namespace, device: torch.device) -> None:
    console = Console(quiet=rank() != 0, width=None if Console().is_terminal else 110)
    if arguments.dataset_download:  # by one of them, for all
        by_the_first(lambda: load_data(arguments))
    splits = load_data(arguments)
    with users_mistakes():
        settle(arguments)
        finetuning, probing = recipes(arguments)
        if isinstance(probing, Rounds) and isinstance(splits.train, ImageStream):
            raise UserError("--probe: got rounds, which need images by number, accepted: sgd for a stream")
        model = _model(arguments, splits, console).to(device)
        by_the_first(lambda: _open(arguments, finetuning, probing))
        _say(console, arguments, splits, model)
        with _run_errors(arguments.output):
            outcome = roli(
                model,
                splits,
                finetuning,
                probing=probing,
                method=arguments.method,
                method_options=method_options(arguments),
                folder=arguments.output,
                resume=arguments.resume,
                workers=arguments.workers,
                sync_bn=arguments.sync_bn,
                progress=True,
            )
    console.print(_table(outcome))
    console.print(_test(outcome, finetuning), highlight=False, soft_wrap=True)
    best = arguments.output / "finetune" / "best.safetensors"
    console.print(f"Model: {best}", soft_wrap=True, markup=False)
    console.print(f"To evaluate it: roli-fast eval {arguments.output}", soft_wrap=True, markup=False)


@contextlib.contextmanager
def _run_errors(folder: Path) -> Iterator[None]:
    """Raises RunError for what ends a run that has begun; a user's mistake stays what it is."""
    try:
        yield
    except DivergedError as error:
        raise RunError(str(error)) from error
    except OSError as error:
        a_mistake = "accepted: " in str(error) and not _has_begun(folder)
        if a_mistake or isinstance(error, (FileNotFoundError, PermissionError)):
            raise
        raise RunError(str(error)) from error
    finally:
        _forget_what_never_began(folder)


def _model(arguments: argparse.Namespace, splits: Splits, console: Console) -> Normalized:
    """The model with its weights, and the head that --init asks for."""
    torch.manual_seed(arguments.seed)
    model = _created(arguments, splits)
    trained_for = getattr(timm.models.get_pretrained_cfg(arguments.model), "num_classes", None)
    has_head = arguments.pretrained and trained_for == len(splits.classes)
    arguments.backbone_sha256 = None
    if arguments.initial_checkpoint is not None:
        has_head = _load(arguments, model, console)
    if arguments.init == "pretrained" and not has_head:
        accepted = "roli, small, random: there is no head for these classes"
        raise UserError(f"--init: got pretrained, accepted: {accepted}")
    if arguments.init != "pretrained":
        find_classifier(model).reset_head(len(splits.classes))
    if arguments.init == "small":
        find_classifier(model).head.reset_parameters()
    return model


def _created(arguments: argparse.Namespace, splits: Splits) -> Normalized:
    image, _ = next(iter(splits.val))
    try:
        return create_model(
            arguments.model,
            len(splits.classes),
            in_chans=len(image),
            mean=arguments.mean,
            std=arguments.std,
            pretrained=arguments.pretrained,
            **model_options(arguments),
        )
    except (TypeError, AssertionError, AttributeError, RuntimeError) as error:  # as networks and timm say it
        said = " ".join(str(error).split())
        raise UserError(f"--model, --model-kwargs: {arguments.model} cannot be built ({said})") from error


def _load(arguments: argparse.Namespace, model: Normalized, console: Console) -> bool:
    """Loads --initial-checkpoint, and shows what was loaded. Returns whether a head was, too."""
    loaded = load_backbone(model, arguments.initial_checkpoint)
    arguments.backbone_sha256 = loaded.sha256
    console.print(f"{arguments.initial_checkpoint}: sha256 {loaded.sha256}", soft_wrap=True, markup=False)
    for name, what in loaded.left_out.items():
        console.print(f"  left out: {name} ({what})", markup=False)
    return loaded.head


def _open(arguments: argparse.Namespace, finetuning: Recipe, probing: Recipe | Rounds | None) -> None:
    """Writes args.json, or, where a run is resumed, compares the arguments with those in it."""
    check_name("--output", arguments.output)
    folder = new_folder("--output", arguments.output)
    given = {n: str(v) if isinstance(v, Path) else v for n, v in vars(arguments).items() if n not in _FREE}
    path = folder / "args.json"
    if path.exists():
        if not arguments.resume:
            raise UserError(f"--output: got {folder}, which has a run, accepted: a new folder, or --resume")
        there, _ = read_arguments(path)
        changed = [n for n in given if n not in _PLACES and there.get(n) != given[n]]
        if changed:
            options = ", ".join(f"--{n.replace('_', '-')} {given[n]} (was {there.get(n)})" for n in changed)
            raise UserError(f"--resume: got {options}, accepted: the run's own arguments")
        return
    if _has_begun(folder):
        raise UserError(
            f"--output: got {folder}, which has a run of roli() in Python, accepted: a new folder"
        )
    about = {"arguments": given} | _about(arguments, finetuning, probing)
    try:
        write_json(path, about)
    except OSError as error:
        raise UserError(f"--output: {error}") from error


def _about(
    arguments: argparse.Namespace, finetuning: Recipe, probing: Recipe | Rounds | None
) -> dict[str, Any]:
    """What follows from the arguments, and versions."""
    return {
        "dataset": arguments.dataset or "digits",
        "model_options": model_options(arguments),
        "method_options": method_options(arguments),
        "finetuning": dataclasses.asdict(finetuning),
        "probing": None if probing is None else dataclasses.asdict(probing),
        "roli_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": machine.commit(),
        "processes": world_size(),
    }


def _forget_what_never_began(folder: Path) -> None:
    """Frees the folder for a corrected command, if this one was refused."""
    if rank() == 0 and not _has_begun(folder):
        (folder / "args.json").unlink(missing_ok=True)


def _has_begun(folder: Path) -> bool:
    """Whether any stage has."""
    return any(folder.glob("*/recipe.json"))


# --- what is shown -------------------------------------------------------------------------------------


def _say(console: Console, arguments: argparse.Namespace, splits: Splits, model: Normalized) -> None:
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    console.print(
        f"{arguments.model}, {parameters:.2f} M parameters; {len(splits.classes)} classes; images: "
        f"{len(splits.train)} train, {len(splits.val)} validation, {len(splits.test)} test",
        highlight=False,
        soft_wrap=True,
    )
    from_scratch = arguments.initial_checkpoint is None and not arguments.pretrained
    given = (arguments.lr or arguments.lr_base) and arguments.epochs
    if from_scratch and not given:
        note = "Random weights: the defaults of --lr and --epochs are for finetuning, and low for these."
        console.print(note, soft_wrap=True)


def _table(outcome: Outcome) -> Table:
    table = Table(caption="Forwards and backwards are images; the rest seconds, but for images a second.")
    columns = ("best epoch", "forwards", "backwards", "attack", "training", "data", "evaluation", "images/s")
    table.add_column("stage")
    for column in columns:
        table.add_column(column, justify="right")
    for name, stage in outcome.stages.items():
        cost = stage.cost
        rate = sum(row["images_per_second"] for row in stage.history) / len(stage.history)
        table.add_row(
            name,
            f"{stage.best + 1}/{len(stage.history)}",
            f"{cost.forwards:,}",
            f"{cost.input_gradients + cost.weight_gradients:,}",
            *(f"{s:.1f}" for s in (cost.attack, cost.training, cost.data, cost.evaluation)),
            f"{rate:.0f}",
        )
    return table


def _test(outcome: Outcome, recipe: Recipe) -> str:
    said = f"Test images: clean {outcome.test.clean} %"
    if outcome.test.label == "clean":
        return said
    return f"{said}, under PGD-{recipe.val_steps} at eps {recipe.eps:.4g} {outcome.test} %"
