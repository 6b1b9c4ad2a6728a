"""PGD with other libraries' steps, where these are different functions."""

import math
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..attacks import PGD
from ..attacks.ascent import Ascent, State
from ..attacks.norms import NORMS, distance
from ..attacks.pgd import MomentumState
from ..ops.reference.shared import over_batch


class OwnStep(PGD):
    """PGD with the step of another library. Here it is that of ART and cleverhans: the step is clamped to the
    box and then projected onto the ball (in L2, the other order gives another point), and in L1 it moves the
    largest element alone.

    decay: weight of the previous direction, as in :class:`roli_fast.attacks.MIFGSM`; None for steps along the
        gradient alone.
    """

    def __init__(self, *arguments: Any, decay: float | None = None, **options: Any):
        self.decay = decay
        super().__init__(*arguments, **options)

    def move(self, ascent: Ascent, state: State, step: int) -> None:
        if self.norm == "linf" and self.decay is None:  # two clamps, in any order
            super().move(ascent, state, step)
            return
        assert isinstance(state, MomentumState)
        assert state.gradient is not None
        gradient = ascent.in_pixels(state.gradient).to(state.adv.dtype)  # its length matters
        if state.momentum is not None:
            self.accumulate_(state.momentum, gradient)
            gradient = state.momentum
        self.step_(state, gradient)
        state.x = ascent.view.prepare(state.adv)

    def accumulate_(self, momentum: Tensor, gradient: Tensor) -> None:
        assert self.decay is not None
        ops.momentum_(momentum, gradient, self.decay)

    def step_(self, state: State, direction: Tensor) -> None:
        share = {"sparsity": 0.0} if self.norm == "l1" else {}
        sizes = state.step_size, math.inf, *self.bounds
        NORMS[self.norm].step_(state.adv, direction, state.clean, *sizes, **share)
        self.into_ball_(state)

    def into_ball_(self, state: State) -> None:
        NORMS[self.norm].project_(state.adv, state.clean, state.eps, *self.bounds)


def shrink_(adv: Tensor, clean: Tensor, eps: float | Tensor) -> None:
    """Moves adv (N, ...) into the L1 ball of radius eps along the line to clean, in place."""
    change = adv - clean
    length = change.abs().flatten(1).sum(dim=1)
    factor = torch.where(length > eps, eps / length, 1.0)
    adv.copy_(clean + change * over_batch(factor, adv))


def unit(gradient: Tensor, norm: str) -> Tensor:
    """Each sample's gradient (N, ...) divided by its norm; a zero gradient stays zero."""
    length = distance(norm, gradient)
    length = torch.where(length > 0, length, 1.0).to(gradient.dtype)
    return gradient / over_batch(length, gradient)
