"""The settings of a training stage, and those of RoLI's public code."""

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
    """The settings of one training stage. Where timm has a setting, its name is used.

    epochs: number of passes over the training images.
    lr: the peak learning rate, for batches of batch_size.
    batch_size: images in a step, of all processes together.
    opt, momentum, weight_decay: as in ``timm.optim.create_optimizer_v2``; "momentum" is SGD with momentum but
        without Nesterov's, as in RoLI's probing. Biases and normalisation layers get no weight decay.
    sched: how the learning rate goes on after the warm-up: "cosine" falls from lr to min_lr; "none" stays
        at lr.
    warmup_epochs: over these, the learning rate grows to lr, step by step.
    min_lr: the learning rate at the end of "cosine".
    clip_grad: the norm to which a step's gradients are clipped, all together; None for no clipping.
    attack: what training images are attacked with: "pgd", "nfgsm" (one step from noise of 2 eps), or "none".
    loss: "ce", cross-entropy on adversarial images; or "trades" (Zhang et al. 2019), cross-entropy on clean
        images plus trades_beta times the KL divergence between the probabilities for clean and adversarial
        images. With "trades", the attack increases that divergence.
    norm, eps: the ball that attacks stay in; eps is in pixel units, with pixels in [0, 1]. In l2 and l1, eps
        has to be given.
    step_size, steps: of "pgd"; the default step size is eps / 4.
    eps_warmup_epochs: over these, eps and step size grow from 0.
    attack_mode: the mode of the model while it is attacked in training. "eval"; or "train", where BatchNorm
        uses the batch's statistics and dropout is active, running statistics and other buffers do not change,
        and the attack computes in the model itself instead of a copy.
    precision: what attacks compute in: "fp32", "tf32", "bf16", "fp16", "torch" (see
        :class:`roli_fast.attacks.PGD`); or "auto", which measures once which of fp32, tf32 and bf16 is the
        fastest on the device.
    amp_dtype: what autocast computes in, in the training step: "float32" (no autocast), "bfloat16",
        "float16" (with loss scaling); or "auto", bfloat16 if the attack runs in a half precision, else
        float32.
    channels_last: whether images and weights are in channels-last memory layout. Not on CPUs where oneDNN
        would get gradients wrong, those of strided 1x1 convolutions of few channels: the run then says so.
    ema_decay: decay of an exponential moving average of the weights, which is then validated and kept instead
        of the weights themselves; None for no average. During timm's warm-up the decay is no more than
        1 - (1 + step)^(-2/3), which reaches 0.998 after 11,000 steps.
    val_steps: number of steps of the PGD on validation and test images.
    patience: training ends when this many epochs have not improved on the best validation result: once robust
        overfitting sets in (Rice et al. 2020), further epochs make it worse. None trains for all epochs.
    seed: from which order, augmentation, attacks and dropout derive. On the CPU, with one process and a
        precision other than "auto", a run repeats bit for bit.

    Raises ValueError or TypeError for settings that are not accepted or exclude each other.
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
        self._check_numbers()
        self._check_choices()
        self._check_combinations()

    def _check_numbers(self) -> None:
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

    def _check_choices(self) -> None:
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

    def _check_combinations(self) -> None:
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            refuse("warmup_epochs", self.warmup_epochs, f"fewer than the {self.epochs} epochs")
        if self.eps_warmup_epochs >= self.epochs:
            refuse("eps_warmup_epochs", self.eps_warmup_epochs, f"fewer than the {self.epochs} epochs")
        if self.min_lr > self.lr:
            refuse("min_lr", self.min_lr, f"at most lr, which is {self.lr:g}")
        if self.loss == "trades" and self.attack != "pgd":
            refuse("loss", f"'trades' with attack={self.attack!r}", "attack='pgd', whose steps TRADES takes")
        if self.attack_mode == "train" and self.precision != AUTO and PRECISIONS[self.precision].is_half:
            refuse(
                "precision",
                f"{self.precision!r} with attack_mode='train'",
                "fp32, tf32, torch: it has no copy",
            )

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
    """RoLI's settings, as keyword arguments of :class:`Recipe`: epochs, warm-up, optimiser, batch size and
    learning rate.

    dataset: one of the paper's: "cifar10", "cifar100", "caltech256", "cub200", "stanford_dogs".
    method: of finetuning; "linear" for the probing.
    probed: whether finetuning begins from a probed head.

    Source: the configurations in the paper's public code (Hua et al. 2024). Their weight decay is left out,
    since that code does not apply it.

    Raises ValueError for another dataset or method.
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
    """RoLI's settings of the network and of the finetuning method, as far as they differ from the defaults:
    keyword arguments of :func:`roli_fast.models.create_model` (for a Swin), and of
    :func:`roli_fast.models.finetune`. Arguments and source as in :func:`paper_settings`."""
    check_choice("dataset", dataset, PAPER_SETS)
    return (
        {"drop_path_rate": 0.5} if method == "full" else {},
        {"tokens": 20} if (dataset, method) == ("cub200", "vpt") else {},
    )
