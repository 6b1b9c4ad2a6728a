"""How a stage trains: what is fixed before it begins."""

import dataclasses
from typing import Any

from timm.optim import get_optimizer_info, list_optimizers

from ..attacks.norms import NORMS
from ..checks import check_choice, check_count, check_flag, check_number, plain, refuse
from ..engine import PRECISIONS

ATTACKS = ("pgd", "nfgsm", "none")
LOSSES = ("ce", "trades")
MODES = ("eval", "train")
AUTO = "auto"
AMP_DTYPES = (AUTO, "float32", "bfloat16", "float16")
SCHEDULES = ("cosine", "none")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of one stage. Names are timm's where it has them.

    epochs: passes over the training images.
    lr: the peak learning rate, for the global batch.
    batch_size: of all processes together.
    opt, momentum, weight_decay: of ``timm.optim.create_optimizer_v2``; "momentum" is SGD without Nesterov's
        term, as in RoLI's probing. Biases and norms do not decay.
    sched: "cosine", from the peak to min_lr over the epochs that are left after warmup_epochs, in which it
        grows with every batch; or "none", constant after the warm-up.
    clip_grad: largest norm of all gradients together; None for any.
    attack: in training: "pgd"; "nfgsm" (one step from noise of 2 eps); "none" for normal training.
    loss: "ce", cross-entropy on adversarial images; "trades" (Zhang et al. 2019): on clean images, plus
        trades_beta times the divergence of the adversarial images' probabilities, which its attack increases.
    norm, eps: of the ball, in pixels of [0, 1]. In another norm than linf, eps has to be given.
    step_size, steps: of "pgd"; the default size is eps / 4.
    eps_warmup_epochs: over which eps and step size grow from 0.
    attack_mode: in which mode the model is attacked in training: "eval"; "train" uses the batch's BatchNorm
        statistics and dropout, leaves the running statistics alone, and attacks the model itself, not a copy.
    precision: of the attacks' copies: "fp32", "tf32", "bf16", "fp16"; "auto" for the fastest on the device of
        fp32, tf32 and bf16, measured once.
    amp_dtype: of autocast in the training step: "float32" for none, "bfloat16", "float16" (with loss
        scaling); "auto" for bfloat16 where the attack runs in a half precision.
    channels_last: whether images and the model are laid out so.
    ema_decay: of an average of the weights, which then is what is validated and kept; None for none. At
        most 1 - (1 + step)^(-2/3), as timm's warm-up has it: 0.998 is reached after 11,000 steps.
    val_steps: of the PGD on validation images.
    patience: training ends when validation has not been better than its best for so many epochs, since
        robust overfitting (Rice et al. 2020) makes what follows worse; None for all epochs.
    seed: of order, augmentation, attacks, dropout. In one process on the CPU, a run repeats bit for bit
        where precision is given, and not what a measurement finds.

    Raises ValueError or TypeError for what does not fit.
    """

    epochs: int
    lr: float
    batch_size: int = 64
    opt: str = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.05
    sched: str = "cosine"
    warmup_epochs: int = 0
    min_lr: float = 0.0
    clip_grad: float | None = None
    attack: str = "pgd"
    loss: str = "ce"
    trades_beta: float = 6.0
    norm: str = "linf"
    eps: float = 8 / 255
    step_size: float | None = None
    steps: int = 7
    eps_warmup_epochs: int = 0
    attack_mode: str = "eval"
    precision: str = AUTO
    amp_dtype: str = AUTO
    channels_last: bool = True
    ema_decay: float | None = None
    val_steps: int = 10
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        for name in ("epochs", "batch_size", "steps", "val_steps"):
            check_count(name, getattr(self, name))
        if self.patience is not None:
            check_count("patience", self.patience)
        for name in ("warmup_epochs", "eps_warmup_epochs"):
            check_count(name, getattr(self, name), 0)
        check_count("seed", self.seed, 0, 2**63 - 1)
        for name in ("momentum", "weight_decay", "min_lr", "trades_beta"):
            check_number(name, getattr(self, name), 0)
        for name in ("lr", "eps"):
            check_number(name, getattr(self, name), above=0)
        for name in ("step_size", "clip_grad"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        if self.ema_decay is not None:
            check_number("ema_decay", self.ema_decay, 0, below=1)
        check_flag("channels_last", self.channels_last)
        if self.norm == "linf" and self.eps > 1:
            refuse("eps", self.eps, "at most 1 in linf, the width of the box, such as 8/255")
        if not isinstance(self.opt, str) or self.opt.lower() not in list_optimizers():
            refuse("opt", repr(self.opt), "one of timm.optim.list_optimizers()")
        if get_optimizer_info(self.opt.lower()).second_order:
            refuse("opt", repr(self.opt), "an optimiser that needs no second derivatives")
        check_choice("attack", self.attack, ATTACKS)
        check_choice("loss", self.loss, LOSSES)
        check_choice("sched", self.sched, SCHEDULES)
        check_choice("norm", self.norm, tuple(NORMS))
        if self.norm != "linf" and self.eps == Recipe.eps and self.attack != "none":
            refuse("eps", f"linf's default in {self.norm}", "a radius in that norm, such as 0.5 in l2")
        check_choice("attack_mode", self.attack_mode, MODES)
        check_choice("precision", self.precision, (AUTO, *PRECISIONS))
        check_choice("amp_dtype", self.amp_dtype, AMP_DTYPES)
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            refuse("warmup_epochs", self.warmup_epochs, f"fewer than the {self.epochs} epochs")
        if self.eps_warmup_epochs >= self.epochs:
            refuse("eps_warmup_epochs", self.eps_warmup_epochs, f"fewer than the {self.epochs} epochs")
        if self.min_lr > self.lr:
            refuse("min_lr", self.min_lr, f"at most lr, which is {self.lr:g}")
        if self.loss == "trades" and self.attack != "pgd":
            refuse("loss", f"'trades' with attack={self.attack!r}", "attack='pgd', whose steps TRADES takes")
        if self.attack_mode == "train" and self.precision not in (AUTO, "fp32", "tf32"):
            refuse("precision", f"{self.precision!r} with attack_mode='train'", "fp32, tf32: it has no copy")

    @property
    def attack_step(self) -> float:
        return self.eps / 4 if self.step_size is None else self.step_size


# --- what the public code of the paper is configured with

# Base learning rates, for a batch of 256; where there are two, from a random and from a probed head.
_BASE_LR: dict[str, dict[str, tuple[float, float]]] = {
    "cifar10": {"linear": (0.05, 0.05), "bias": (0.005, 0.005), "vpt": (0.5, 0.5), "adapter": (0.05, 0.05),
                "lora": (0.01, 0.001), "full": (5e-4, 1e-4)},
    "cifar100": {"linear": (0.1, 0.1), "bias": (0.005, 0.005), "vpt": (0.5, 0.5), "adapter": (0.005, 0.05),
                 "lora": (0.05, 0.001), "full": (5e-4, 1e-4)},
    "caltech256": {"linear": (0.5, 0.5), "bias": (0.001, 1e-5), "vpt": (0.05, 0.05), "adapter": (0.005, 5e-4),
                   "lora": (0.001, 1e-4), "full": (5e-4, 1e-4)},
    "cub200": {"linear": (1.0, 1.0), "bias": (0.005, 5e-4), "vpt": (0.05, 0.05), "adapter": (0.05, 0.05),
               "lora": (0.005, 0.005), "full": (5e-4, 1e-4)},
    "stanford_dogs": {"linear": (1.0, 1.0), "bias": (0.001, 5e-5), "vpt": (0.05, 0.05),
                      "adapter": (0.005, 1e-4), "lora": (0.005, 0.001), "full": (5e-4, 5e-5)},
}  # fmt: skip
_EPOCHS = {"cifar10": 20, "cifar100": 20, "caltech256": 40, "cub200": 60, "stanford_dogs": 40}
PAPER_SETS = tuple(_EPOCHS)


def paper_settings(dataset: str, method: str, *, probed: bool) -> dict[str, Any]:
    """RoLI's settings for one of its data sets and a finetuning method ("linear" for its probing), as
    arguments of :class:`Recipe`: epochs, warm-up, optimiser, and the learning rate for a batch of 64.

    probed: whether finetuning begins from a probed head. Source: the configurations of the public code (Hua
    et al. 2024), whose weight decay is not in effect there.
    """
    check_choice("dataset", dataset, PAPER_SETS)
    check_choice("method", method, tuple(_BASE_LR[dataset]))
    return {
        "epochs": _EPOCHS[dataset],
        "warmup_epochs": 10,
        "opt": "momentum" if method == "linear" else "adamw",
        "lr": _BASE_LR[dataset][method][probed] * 64 / 256,
        "batch_size": 64,
    }


def paper_options(dataset: str, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """RoLI's settings for one of its data sets and a finetuning method: those of a Swin, as arguments of
    :func:`roli_fast.models.create_model`, and of the method, where they differ from the default, as arguments
    of :func:`roli_fast.models.finetune`. Source: as for :func:`paper_settings`."""
    check_choice("dataset", dataset, PAPER_SETS)
    return (
        {"drop_path_rate": 0.5} if method == "full" else {},
        {"tokens": 20} if (dataset, method) == ("cub200", "vpt") else {},
    )
