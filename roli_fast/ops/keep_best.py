"""The best iterate of each sample."""

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
    """Where value is above best_value, best becomes adv and best_value becomes value, sample by sample, in
    place.

    Moves the winners' bytes only: 8 per float32 element of theirs. A NaN value wins nowhere.

    best: (N, ...) float32 or float64, written. Must not overlap itself or adv.
    best_value: (N,) of best's dtype, written. Must not overlap value.
    adv: (N, ...) of best's dtype.
    value: (N,) of best's dtype.
    active: (N,) bool; the other samples keep their bits.
    """
    _KEEP_BEST.number(best, best_value, adv, value, active)
