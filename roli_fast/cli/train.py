"""``roli-fast train``: adversarial transfer learning in two stages, or either, on any timm model."""

import argparse
import dataclasses
import json
import os
import platform
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..attacks.norms import NORMS
from ..data import Splits
from ..engine import PRECISIONS
from ..evaluation import Accuracy
from ..files import read_json, write
from ..models import METHODS, Normalized, create_model, find_classifier, load_backbone
from ..speed import machine
from ..training import DivergedError, Outcome, Recipe, paper_settings, roli
from ..training.processes import by_the_first, rank
from ..training.recipe import AMP_DTYPES, ATTACKS, AUTO, LOSSES, MODES, PAPER_SETS, SCHEDULES
from .errors import RunError, UserError
from .launched import own_device
from .options import Options, add_data_arguments, load_data, new_folder, pairs, users_mistakes

INITS = ("roli", "random", "pretrained")

# Where the data set is none of the paper's: its settings for CIFAR-10, with a warm-up of a tenth.
_LIKE = "cifar10"

# Options that are the recipe's fields by another name.
_RENAMED = {"attack_precision": "precision", "model_ema_decay": "ema_decay"}
# What may differ when a run goes on.
_FREE = ("resume", "output", "workers", "device", "dataset_download", "run")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_model_arguments(Options(parser, "model"))
    _add_stage_arguments(Options(parser, "stages"))
    _add_training_arguments(Options(parser, "training"))
    _add_attack_arguments(Options(parser, "attack in training, and in validation"))
    add_data_arguments(parser)
    option = Options(parser, "run")
    option.text("--output", "FOLDER", "of the run", type=Path, default=Path("runs/train"))
    option.flag("--resume", "go on where the run in --output was interrupted; begin where there is none")
    option.text("--device", "DEVICE", "cpu, cuda, cuda:1 ... (default: cuda where there is one)")


def _add_model_arguments(option: Options) -> None:
    option.text("--model", "NAME", "timm's, or small_resnet, resnet10_tin", default="resnet10_tin")
    option.text("--initial-checkpoint", "FILE", "weights of its backbone", type=Path)
    option.flag("--pretrained", "timm's weights, which it downloads")
    option.count("--img-size", "PIXELS", "for which the backbone is built")
    option.flag("--resize", "enlarge images to that size inside the model")
    for name in ("--mean", "--std"):
        option.text(name, "X", "of the pixels, per channel (default: timm's)", type=float, nargs="+")
    option.number("--drop-path", "RATE", "stochastic depth in full finetuning")
    option.text("--model-kwargs", "NAME=VALUE", "more of the network's options", nargs="+", default=[])


def _add_stage_arguments(option: Options) -> None:
    about = "the head that finetuning begins with: probed first, random, or the checkpoint's own"
    option.choice("--init", about, INITS, default="roli")
    option.choice("--method", "of finetuning; linear is probing alone", METHODS, default="full")
    option.text("--method-kwargs", "NAME=VALUE", "its options, such as rank=8", nargs="+", default=[])
    option.count("--probe-epochs", "N", "of the first stage (default: the paper's)")
    option.number("--probe-lr", "LR", "its learning rate (default: the paper's)")
    option.text("--probe-opt", "NAME", "its optimiser: SGD", default="momentum")
    option.number("--probe-weight-decay", "W", "its weight decay", open_below=False, default=1e-4)


def _add_training_arguments(option: Options) -> None:
    paper = "(default: the paper's for the data set)"
    option.count("--epochs", "N", f"of finetuning {paper}")
    option.count("--batch-size", "N", "images, of all processes together", default=64)
    option.number("--lr", "LR", "peak learning rate")
    option.number("--lr-base", "LR", f"the same for a batch of 256 {paper}")
    option.text("--opt", "NAME", "timm's name of the optimiser (default: adamw, and SGD for linear)")
    option.number("--momentum", "M", "of SGD", open_below=False, default=0.9)
    option.number(
        "--weight-decay", "W", "of weights, not of biases and norms", open_below=False, default=0.05
    )
    option.choice("--sched", "of the learning rate, after the warm-up", SCHEDULES, default="cosine")
    option.count("--warmup-epochs", "N", paper, least=0)
    option.number("--min-lr", "LR", "at the end", open_below=False, default=0.0)
    option.number("--clip-grad", "NORM", "largest norm of a step's gradients")
    option.number("--model-ema-decay", "D", "average the weights, and keep the average", open_below=False)
    amp = "of the training step (default: bfloat16 where the attack runs in a half precision)"
    option.choice("--amp-dtype", amp, AMP_DTYPES, default=AUTO)
    option.flag("--no-channels-last", "leave images and weights in torch's own layout")
    option.flag("--sync-bn", "BatchNorm over all processes' batches")
    option.count("--seed", "N", "of weights, order and attacks", least=0, default=0)


def _add_attack_arguments(option: Options) -> None:
    option.choice("--attack", "one step from noise is nfgsm", ATTACKS, default="pgd")
    option.choice("--loss", "cross-entropy on adversarial images, or TRADES", LOSSES, default="ce")
    option.number("--trades-beta", "BETA", "weight of TRADES' divergence", default=6.0)
    option.choice("--norm", "of the ball", tuple(NORMS), default="linf")
    option.number("--eps", "EPS", "radius in [0, 1] pixels (default: 8/255)", default=8 / 255)
    option.number("--step-size", "SIZE", "of the training attack (default: eps / 4)")
    option.count("--steps", "N", "of the training attack", default=7)
    option.count("--eps-warmup-epochs", "N", "over which eps grows from 0", least=0, default=0)
    option.choice("--attack-mode", "of the model under attack in training", MODES, default="eval")
    fastest = "of attacks (default: the fastest on the device, measured)"
    option.choice("--attack-precision", fastest, (AUTO, *PRECISIONS), default=AUTO)
    option.count("--val-steps", "N", "of PGD on validation and test images", default=10)


def run(arguments: argparse.Namespace) -> None:
    with own_device(arguments.device) as device:
        _run(arguments, device)


def _run(arguments: argparse.Namespace, device: torch.device) -> None:
    console = Console(quiet=rank() != 0, width=None if Console().is_terminal else 110)
    if arguments.dataset_download:  # by one of them, for all
        by_the_first(lambda: load_data(arguments))
    splits = load_data(arguments)
    with users_mistakes():
        finetuning, probing = _recipes(arguments)
        model = _model(arguments, splits, console).to(device)
        by_the_first(lambda: _open(arguments, finetuning, probing))
        _say(console, arguments, splits, model)
        try:
            outcome = roli(
                model,
                splits,
                finetuning,
                probing=probing,
                method=arguments.method,
                method_options=pairs("--method-kwargs", arguments.method_kwargs),
                folder=arguments.output,
                resume=arguments.resume,
                workers=arguments.workers,
                sync_bn=arguments.sync_bn,
                progress=True,
            )
        except DivergedError as error:
            raise RunError(str(error)) from error
        except OSError as error:
            if isinstance(error, (FileNotFoundError, PermissionError)):
                raise
            raise RunError(str(error)) from error
        finally:
            _forget_what_never_began(arguments.output)
    console.print(_table(outcome))
    console.print(_test(outcome, arguments), highlight=False, soft_wrap=True)
    console.print(f"Model: {arguments.output / 'finetune' / 'best.safetensors'}", soft_wrap=True)


# --- what the options come to --------------------------------------------------------------------------


def _recipes(arguments: argparse.Namespace) -> tuple[Recipe, Recipe | None]:
    """Of finetuning, and of probing, if there is any."""
    if arguments.lr is not None and arguments.lr_base is not None:
        raise UserError("--lr, --lr-base: got both, accepted: one of them")
    if arguments.method == "linear" and arguments.init == "roli":
        arguments.init = "random"  # probing is all there is
    given = vars(arguments)
    names = {f.name for f in dataclasses.fields(Recipe)}
    shared = {_RENAMED.get(n, n): v for n, v in given.items() if _RENAMED.get(n, n) in names}
    shared["channels_last"] = not arguments.no_channels_last
    probed = arguments.init == "roli"
    finetuning = _recipe(
        arguments,
        arguments.method,
        probed,
        shared,
        lr=arguments.lr,
        lr_base=arguments.lr_base,
        **_own_of(arguments),
    )
    if not probed:
        return finetuning, None
    own = {
        "epochs": arguments.probe_epochs,
        "opt": arguments.probe_opt,
        "weight_decay": arguments.probe_weight_decay,
    }
    probe = _recipe(arguments, "linear", probed, shared | own, lr=arguments.probe_lr, lr_base=None)
    return finetuning, probe


def _own_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Optimiser and weight decay of finetuning; of linear probing they are those of the first stage."""
    if arguments.method == "linear":
        return {
            "opt": arguments.opt or arguments.probe_opt,
            "weight_decay": arguments.probe_weight_decay,
        }
    return {"opt": arguments.opt or "adamw"}


def _recipe(
    arguments: argparse.Namespace,
    method: str,
    probed: bool,
    settings: dict[str, Any],
    lr: float | None,
    lr_base: float | None,
    **more: Any,
) -> Recipe:
    """lr_base: for a batch of 256."""
    paper = paper_settings(
        arguments.dataset if arguments.dataset in PAPER_SETS else _LIKE, method, probed=probed
    )
    settings = settings | more
    epochs = settings["epochs"] or paper["epochs"]
    warmup = paper["warmup_epochs"] if arguments.dataset in PAPER_SETS else epochs // 10
    if settings["warmup_epochs"] is None:
        settings["warmup_epochs"] = min(warmup, epochs // 2)
    if lr is None:
        base = lr_base or paper["lr"] * 256 / paper["batch_size"]
        lr = base * settings["batch_size"] / 256
    return Recipe(**(settings | {"epochs": epochs, "lr": lr}))


def _model(arguments: argparse.Namespace, splits: Splits, console: Console) -> Normalized:
    torch.manual_seed(arguments.seed)
    image, _ = next(iter(splits.val))
    options = pairs("--model-kwargs", arguments.model_kwargs)
    if arguments.drop_path is not None:
        options["drop_path_rate"] = arguments.drop_path
    try:
        model = create_model(
            arguments.model,
            len(splits.classes),
            in_chans=len(image),
            img_size=arguments.img_size,
            resize=arguments.resize,
            mean=arguments.mean,
            std=arguments.std,
            pretrained=arguments.pretrained,
            **options,
        )
    except TypeError as error:  # as the network says what it does not know
        raise UserError(f"--model-kwargs: {error}") from error
    trained_for = getattr(timm.models.get_pretrained_cfg(arguments.model), "num_classes", None)
    head = arguments.pretrained and trained_for == len(splits.classes)
    if arguments.initial_checkpoint is not None:
        loaded = load_backbone(model, arguments.initial_checkpoint)
        head = loaded.head
        console.print(f"{arguments.initial_checkpoint}: sha256 {loaded.sha256}", soft_wrap=True)
        for name, what in loaded.left_out.items():
            console.print(f"  left out: {name} ({what})", markup=False)
    if arguments.init == "pretrained" and not head:
        raise UserError("--init: got pretrained, accepted: roli, random: there is no head for these classes")
    if arguments.init != "pretrained":
        find_classifier(model).reset_head(len(splits.classes))
    return model


def _open(arguments: argparse.Namespace, finetuning: Recipe, probing: Recipe | None) -> None:
    """Writes what the run is, or compares with what is there."""
    folder = new_folder("--output", arguments.output)
    given = {n: str(v) if isinstance(v, Path) else v for n, v in vars(arguments).items() if n not in _FREE}
    path = folder / "args.json"
    if path.exists():
        if not arguments.resume:
            raise UserError(f"--output: got {folder}, which has a run, accepted: a new folder, or --resume")
        there = read_json(path)["arguments"]
        changed = [n for n in given if there.get(n) != given[n]]
        if changed:
            options = ", ".join(f"--{n.replace('_', '-')} {given[n]} (was {there.get(n)})" for n in changed)
            raise UserError(f"--resume: got {options}, accepted: the run's own arguments")
        return
    about = {
        "arguments": given,
        "finetuning": dataclasses.asdict(finetuning),
        "probing": None if probing is None else dataclasses.asdict(probing),
        "roli_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": machine.commit(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }
    try:
        write(path, (json.dumps(about, indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"--output: {error}") from error


def _forget_what_never_began(folder: Path) -> None:
    """A command that was refused leaves its folder to the one that puts it right."""
    if rank() == 0 and not any(folder.glob("*/recipe.json")):
        (folder / "args.json").unlink(missing_ok=True)


# --- what is shown -------------------------------------------------------------------------------------


def _say(console: Console, arguments: argparse.Namespace, splits: Splits, model: Normalized) -> None:
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    console.print(
        f"{arguments.model}, {parameters:.2f} M parameters; {len(splits.classes)} classes; images: "
        f"{len(splits.train)} train, {len(splits.val)} validation, {len(splits.test)} test",
        highlight=False,
        soft_wrap=True,
    )


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


def _test(outcome: Outcome, arguments: argparse.Namespace) -> str:
    def percent(accuracy: Accuracy) -> str:
        low, high = accuracy.interval()
        return f"{accuracy.value:.1%} [{low:.1%}, {high:.1%}]"

    said = f"Test images: clean {percent(outcome.test.clean)}"
    if outcome.test.label == "clean":
        return said
    return f"{said}, under PGD-{arguments.val_steps} at eps {arguments.eps:.4g} {percent(outcome.test)}"
