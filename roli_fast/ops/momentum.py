"""Accumulating gradients."""

from torch import Tensor

from . import checks
from .registry import define

_MOMENTUM = define(
    "momentum",
    "momentum_(Tensor(a!) momentum, Tensor grad, float decay=1.0) -> ()",
    check=checks.momentum,
)


def momentum_(momentum: Tensor, grad: Tensor, decay: float = 1.0) -> None:
    """Accumulates a gradient, divided by its mean magnitude, in place: MI-FGSM (Dong et al. 2018, eq. 6).

    Equivalent, per sample, to ``momentum.copy_(decay * momentum + grad / grad.abs().mean())``. It takes two
    passes: the sum, in float64, and then the update. In float32 at least 12 bytes per element have to be
    moved; this op moves 16. Backends agree within two units in the last place of the result or of a summand;
    for a float64 momentum, within sqrt(n) units more, for samples of n elements.

    momentum: (N, ...) float32 or float64, written. Must not overlap itself or grad.
    grad: (N, ...) any float dtype. NaN counts as 0. If a sample has infinite elements, these count as +-1 and
        its finite ones as 0. A zero gradient adds nothing.
    decay: a number >= 0.
    """
    _MOMENTUM.number(momentum, grad, decay)
