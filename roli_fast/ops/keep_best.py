"""Keeping the best iterate of each sample."""

from torch import Tensor

from . import checks
from .registry import define

_KEEP_BEST = define(
    "keep_best",
    "keep_best_(Tensor(a!) best, Tensor(b!) best_value, Tensor adv, Tensor value, Tensor? active=None) -> ()",
    check=checks.keep_best,
)


def keep_best_(
    best: Tensor, best_value: Tensor, adv: Tensor, value: Tensor, *, active: Tensor | None = None
) -> None:
    """Keeps the better result of each sample, in place: where value is above best_value, best becomes adv and
    best_value becomes value.

    Only the samples that improve are moved, at 8 bytes per float32 element. A NaN value never counts as
    better.

    best: (N, ...) float32 or float64, written. Must not overlap itself or adv.
    best_value: (N,) of best's dtype, written. Must not overlap value.
    adv: (N, ...) of best's dtype.
    value: (N,) of best's dtype.
    active: (N,) bool; all other samples stay as they are, bit for bit.
    """
    _KEEP_BEST.number(best, best_value, adv, value, active)
