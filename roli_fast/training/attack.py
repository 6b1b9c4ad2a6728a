"""The attack inside a training loop."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks import NFGSM, PGD, TPGD
from ..attacks.ascent import Perturbed
from ..engine.buffers import buffers_kept
from ..engine.modes import device_of
from .recipe import Recipe

_ROUNDS = 3  # of timing


class TrainingAttack:
    """Makes a recipe's adversarial images while a model trains, without asking whether they succeed and
    without waiting for the device.

    precision: the recipe's, or what :func:`fastest_precision` found.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, precision: str):
        self._model, self._recipe = model, recipe
        self._live = _Live(model)
        # Sizes that grow during warm-up are tensors, so that a captured CUDA graph follows their values.
        size = partial(torch.tensor, device=device_of(model)) if recipe.eps_warmup_epochs > 0 else float
        self._attack = _attack(recipe, precision, size)
        full = _attack(recipe, precision, float).sizes()
        self._growing = [(t, full[n]) for n, t in self._attack.sizes().items() if isinstance(t, Tensor)]

    def grow(self, epoch: float) -> None:
        """Sets eps and step size for this point of training. epoch: how many epochs it has lasted."""
        for size, full in self._growing:
            size.fill_(full * min(1.0, epoch / self._recipe.eps_warmup_epochs))

    def __call__(self, images: Tensor, labels: Tensor, index: Tensor, key: Tensor) -> Perturbed:
        """images: (N, ...) in [0, 1], float or uint8. key: (1,) int64 of this batch's draws."""
        given = None if isinstance(self._attack, TPGD) else labels
        if self._recipe.attack_mode == "eval":
            return self._attack.perturb(self._model, images, given, index=index, key=key, checked=True)
        with buffers_kept(self._model.modules()):  # such as running statistics
            return self._attack.perturb(self._live, images, given, index=index, key=key, checked=True)


class _Live(nn.Module):
    """The model itself, in its current mode: since it is not registered here, an attack neither copies it nor
    changes its mode. A function would do, but an attack asks it for its output's shape in every call."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self._unregistered = [model]

    def forward(self, x: Tensor) -> Any:
        return self._unregistered[0](x)


def _attack(recipe: Recipe, precision: str, size: Callable[[float], Any]) -> PGD:
    """size: makes eps and step size of the recipe's numbers."""
    if recipe.attack == "nfgsm":
        return NFGSM(recipe.norm, size(recipe.eps), precision=precision)
    kind = TPGD if recipe.loss == "trades" else PGD
    return kind(
        recipe.norm, size(recipe.eps), size(recipe.attack_step), steps=recipe.steps, precision=precision
    )


def validation_attack(recipe: Recipe, precision: str, generator: torch.Generator) -> PGD | None:
    """The PGD of validation and test; None if training has no attack."""
    if recipe.attack == "none":
        return None
    return PGD(
        recipe.norm,
        recipe.eps,
        recipe.eps / 4,
        recipe.val_steps,
        iterate="best",
        early_stop=True,
        precision=precision,
        generator=generator,
    )


def fastest_precision(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe) -> str:
    """Which of fp32, tf32 and bf16 is the fastest for a gradient of the attack on this device, by the median
    of a few interleaved measurements. images: a batch in [0, 1]."""
    names = ("fp32", "bf16") if images.device.type == "cpu" else ("fp32", "tf32", "bf16")
    step = {n: PGD(recipe.norm, recipe.eps, recipe.attack_step, steps=1, precision=n) for n in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(_ROUNDS + 2):  # the first two calls of a graph are slower
        for name, attack in list(step.items()):
            try:
                seconds[name].append(_seconds(partial(attack, model, images, labels), images.device))
            except (ValueError, torch.OutOfMemoryError):  # its range, or the memory, does not hold it
                if len(step) == 1:
                    raise
                del step[name], seconds[name]
    return min(seconds, key=lambda name: statistics.median(seconds[name][2:]))


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else (lambda: None)
    wait()
    begin = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - begin
