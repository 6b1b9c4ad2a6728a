"""Turns the options of ``roli-fast train`` into a recipe for each stage, and refuses those without effect."""

import argparse
import dataclasses
from typing import Any

from timm.optim import get_optimizer_info, list_optimizers

from ..distributed import is_joined
from ..training import Recipe, Rounds, paper_options, paper_settings
from ..training.recipe import PAPER_SETS
from .errors import UserError
from .options import Effects, pairs, refuse_without_effect, size_effect

# Other data sets than the paper's get its settings for CIFAR-10, with a tenth of the epochs as warm-up.
_LIKE = "cifar10"

# Options that are the recipe's fields by another name.
_RENAMED = {"attack_precision": "precision", "model_ema_decay": "ema_decay"}
# Defaults of linear probing by SGD, in the first stage or as the only one.
_PROBING: dict[str, Any] = {"opt": "momentum", "weight_decay": 1e-4}


def settle(arguments: argparse.Namespace) -> None:
    """Fills in which head finetuning begins with; raises UserError for an option without effect."""
    weights = arguments.initial_checkpoint is not None or arguments.pretrained
    if arguments.init == "roli" and not weights:
        accepted = "it with --initial-checkpoint FILE or --pretrained; small, random"
        raise UserError(f"--init: got roli for a backbone of random weights, accepted: {accepted}")
    if arguments.init is None:
        arguments.init = "roli" if weights and arguments.method != "linear" else "small"
    if arguments.lr is not None and arguments.lr_base is not None:
        raise UserError("--lr, --lr-base: got both, accepted: one of them")
    if arguments.drop_path is not None and arguments.drop_path >= 1:
        raise UserError(f"--drop-path: got {arguments.drop_path:g}, accepted: a rate from 0 on and below 1")
    of_network = pairs("--model-kwargs", arguments.model_kwargs)
    if arguments.drop_path is not None and "drop_path_rate" in of_network:
        raise UserError("--drop-path: got another one in --model-kwargs, accepted: one of them")
    refuse_without_effect(arguments, _effects(arguments))


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options of :func:`roli_fast.models.create_model`. By default, as in the paper: images of CIFAR are
    resized for a Swin or ViT, and a Swin has its stochastic depth."""
    options = {"img_size": arguments.img_size, "resize": arguments.resize}
    options |= pairs("--model-kwargs", arguments.model_kwargs)
    if arguments.drop_path is not None:
        options["drop_path_rate"] = arguments.drop_path
    if arguments.dataset in PAPER_SETS and arguments.model.startswith("swin"):
        options = paper_options(arguments.dataset, arguments.method)[0] | options
    if arguments.dataset in ("cifar10", "cifar100") and arguments.model.startswith(("swin", "vit")):
        options["resize"] |= arguments.img_size is None
    return options


def method_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options of :func:`roli_fast.models.finetune`."""
    given = pairs("--method-kwargs", arguments.method_kwargs)
    if arguments.dataset in PAPER_SETS:
        return paper_options(arguments.dataset, arguments.method)[1] | given
    return given


def _effects(arguments: argparse.Namespace) -> Effects:
    by_sgd = ("probe_epochs", "probe_lr", "probe_opt", "probe_weight_decay")
    sgd = arguments.probe == "sgd"
    linear = arguments.method == "linear"
    by_rounds = _is_probed_by_rounds(arguments)
    probed = "a head that is probed (--init roli with --initial-checkpoint or --pretrained; --method linear)"
    attacked = ("norm", "eps", "eps_warmup_epochs", "attack_mode", "attack_precision", "val_steps")
    attack = arguments.attack or Recipe.attack
    # Rounds have an attack of their own, or none.
    by_epochs = (
        *("epochs", "patience", "lr", "lr_base", "opt", "momentum", "weight_decay", "sched", "min_lr"),
        *("warmup_epochs", "clip_grad", "model_ema_decay", "amp_dtype", "loss", "eps_warmup_epochs"),
        *("steps", "step_size", "attack_mode", *(() if attack == "none" else ("attack",))),
    )
    return [
        (("pretrained",), arguments.initial_checkpoint is None, "no --initial-checkpoint"),
        (("probe",), linear or _is_probed(arguments), probed),
        (("probe_rounds", "probe_steps"), sgd or by_rounds, probed),
        (("probe_rounds", "probe_steps"), not sgd, "--probe rounds"),
        (("probe_rounds", "probe_steps"), attack != "none", "an --attack"),
        (by_sgd, sgd and _is_probed(arguments), "--probe sgd, --init roli and another method than linear"),
        (by_epochs, sgd or not linear, "--probe sgd, or another method than linear"),
        (("drop_path",), arguments.method == "full", "--method full"),
        (("momentum",), _has_momentum(arguments), "an --opt that has one"),
        (("min_lr",), arguments.sched != "none", "--sched cosine"),
        (("steps", "step_size"), attack == "pgd", "--attack pgd"),
        (attacked, attack != "none", "an --attack"),
        (("trades_beta",), arguments.loss == "trades", "--loss trades"),
        (("sync_bn",), is_joined(), "torchrun"),
        size_effect(arguments),
    ]


def _is_probed(arguments: argparse.Namespace) -> bool:
    """Whether there are two stages."""
    return arguments.init == "roli" and arguments.method != "linear"


def _is_probed_by_rounds(arguments: argparse.Namespace) -> bool:
    return arguments.probe != "sgd" and (_is_probed(arguments) or arguments.method == "linear")


def _has_momentum(arguments: argparse.Namespace) -> bool:
    """Whether an optimiser that is used has a momentum. The recipe refuses unknown ones."""
    used = [arguments.opt or (_PROBING["opt"] if arguments.method == "linear" else Recipe.opt)]
    if _is_probed(arguments):
        used.append(arguments.probe_opt or _PROBING["opt"])
    return any(o.lower() not in list_optimizers() or get_optimizer_info(o.lower()).has_momentum for o in used)


def recipes(arguments: argparse.Namespace) -> tuple[Recipe, Recipe | Rounds | None]:
    """The settings of finetuning, and those of probing; None for the latter if there is no probing, or if it
    is the only stage and trained by SGD. What was not given is as in the paper for the data set, or else the
    recipe's default."""
    fields = {f.name for f in dataclasses.fields(Recipe)}
    named = {_RENAMED.get(name, name): value for name, value in vars(arguments).items()}
    given = {name: value for name, value in named.items() if name in fields and value is not None}
    given["channels_last"] = not arguments.no_channels_last
    probed = _is_probed(arguments)
    finetuning = _recipe(arguments, arguments.method, probed, given, arguments.lr_base)
    if _is_probed_by_rounds(arguments):
        own = {"rounds": arguments.probe_rounds, "steps": arguments.probe_steps}
        return finetuning, Rounds(**{name: value for name, value in own.items() if value is not None})
    if not probed:
        return finetuning, None
    in_epochs = ("epochs", "patience", "warmup_epochs", "eps_warmup_epochs")
    finetunings_own = (*in_epochs, "lr", "opt", "weight_decay")
    own = {name: getattr(arguments, f"probe_{name}") for name in ("epochs", "lr", "opt", "weight_decay")}
    shared = {name: value for name, value in given.items() if name not in finetunings_own}
    own = {name: value for name, value in own.items() if value is not None}
    return finetuning, _recipe(arguments, "linear", probed, shared | own, None)


def _recipe(
    arguments: argparse.Namespace, method: str, probed: bool, given: dict[str, Any], lr_base: float | None
) -> Recipe:
    """lr_base: learning rate for a batch of 256; None for the paper's."""
    known = arguments.dataset in PAPER_SETS
    paper = paper_settings(arguments.dataset if known else _LIKE, method, probed=probed)
    settings = (_PROBING if method == "linear" else {"opt": Recipe.opt}) | given
    settings.setdefault("epochs", paper["epochs"])
    settings.setdefault("batch_size", paper["batch_size"])
    warmup = paper["warmup_epochs"] if known else settings["epochs"] // 10
    settings.setdefault("warmup_epochs", min(warmup, settings["epochs"] // 2))
    base = lr_base or paper["lr"] * 256 / paper["batch_size"]
    settings.setdefault("lr", base * settings["batch_size"] / 256)
    return Recipe(**settings)
