"""The options that attacks share, and how they refuse others."""

import inspect
from typing import TypedDict

import torch
from torch import Tensor

from ..checks import refuse
from ..engine import Output
from .losses import Loss


class AttackOptions(TypedDict, total=False):
    """Options of every attack, by keyword.

    bounds: the box that pixels lie in; default (0, 1).
    early_stop: a fooled sample leaves the batch (for evaluation). Success stays the same; images and losses
        of fooled samples may differ.
    precision: of the copy that the attack computes with, "fp32", "tf32", "bf16" or "fp16"; success is decided
        by the model itself, at its own.
    generator: source of the random key; default torch's own, so that ``torch.manual_seed`` repeats a run.
    eot: calls that are averaged wherever the copy or the model is asked, for a model whose output is random.
    fold: whether the copy has its BatchNorms folded where that is exact up to rounding.
    output: where in what the model returns the logits are; default, that is the logits. See
        :func:`roli_fast.engine.select`.
    """

    bounds: tuple[float, float]
    early_stop: bool
    precision: str
    generator: torch.Generator | None
    eot: int
    fold: bool
    output: Output


class PGDOptions(AttackOptions, total=False):
    """Options of relatives of :class:`PGD`, which says what they are."""

    restarts: int
    loss: str | Loss
    targeted: bool
    iterate: str
    sparsity: float | Tensor


def check_options(
    attack: object, options: AttackOptions, accepted: type[AttackOptions] = AttackOptions
) -> None:
    """Raises TypeError, which names the class that was called, for what is none of the accepted options:
    unknown, or set by the attack itself."""
    others = [f"{name}={value!r}" for name, value in options.items() if name not in accepted.__annotations__]
    if others:
        called = type(attack)
        parameters = inspect.signature(called).parameters.values()
        own = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        names = ", ".join([*own, *accepted.__annotations__])
        refuse(called.__name__, ", ".join(others), names, TypeError)
