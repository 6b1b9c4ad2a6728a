"""The options that attacks share, and how they refuse others."""

import inspect
from typing import TypedDict

import torch
from torch import Tensor

from ..checks import refuse
from ..engine import Output
from .losses import Loss


class AttackOptions(TypedDict, total=False):
    """Options of every attack, by keyword; :class:`PGD` says what they are."""

    bounds: tuple[float, float]
    early_stop: bool
    precision: str
    generator: torch.Generator | None
    eot: int
    fold: bool
    output: Output


class PGDOptions(AttackOptions, total=False):
    """Further options that variants of :class:`PGD` take, by keyword; :class:`PGD` says what they are."""

    restarts: int
    loss: str | Loss
    targeted: bool
    iterate: str
    sparsity: float | Tensor


def check_options(
    attack: object, options: AttackOptions, accepted: type[AttackOptions] = AttackOptions
) -> None:
    """Raises TypeError for options that are unknown or that the attack sets itself. The message names the
    class that was called."""
    others = [f"{name}={value!r}" for name, value in options.items() if name not in accepted.__annotations__]
    if others:
        called = type(attack)
        parameters = inspect.signature(called).parameters.values()
        own = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        names = ", ".join([*own, *accepted.__annotations__])
        refuse(called.__name__, ", ".join(others), names, TypeError)
