"""How the steps of Auto-PGD adapt, sample by sample: their sizes, and in L1 their sparsity and the ball."""

import dataclasses
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import ops
from ..engine import AttackView
from .inputs import to_state
from .norms import NORMS, movable, normal_draws
from .samples import Best, Samples, keep, lowest

if TYPE_CHECKING:
    from .apgd import ApgdState


@dataclasses.dataclass
class LossHistory(Samples):
    """previous: (N, ...), the places before the last step; the rest (N,).

    last_loss: before the last step. rises: in how many steps since the last look the loss rose.
    seen: the best loss at the last look. reduced: whose sizes the last look reduced.
    """

    previous: Tensor
    last_loss: Tensor
    rises: Tensor
    seen: Tensor
    reduced: Tensor


class HalvingSizes:
    """In Linf and L2 (Croce and Hein 2020, algorithm 1): looked at after 22 % of the steps, and then after
    ever fewer. A sample's size halves, and it goes on from its best point, where the loss rose in no more
    than a share rho of the steps since the last look, or neither size nor best loss has changed since.
    """

    first = 2.0  # times eps

    def __init__(self, norm: str, steps: int, rho: float, bounds: tuple[float, float]):
        self._norm, self._rho, self._bounds = NORMS[norm], rho, bounds
        period, least, less = (max(1, int(share * steps)) for share in (0.22, 0.06, 0.03))
        self._periods: dict[int, int] = {}  # how many steps were made since the last look, by the look's step
        look = period
        while look <= steps:
            self._periods[look] = period
            period = max(period - less, least)
            look += period

    def start(self, clean: Tensor, eps: float | Tensor, seed: Tensor, index: Tensor) -> Tensor:
        return self._norm.start(clean, eps, seed, *self._bounds, index=index)

    def history(self, adv: Tensor) -> LossHistory:
        loss = lowest(adv, len(adv))
        none = torch.zeros_like(loss, dtype=torch.bool)
        return LossHistory(adv.clone(), -loss, torch.zeros_like(loss), loss, ~none)

    def begin(self, state: "ApgdState") -> None:
        pass

    def counts(self, step: int) -> bool:
        return True

    def adapt(self, state: "ApgdState", step: int, loss: Tensor) -> None:
        """Before a step, with the loss where the samples are."""
        history, best = state.history, state.best
        assert isinstance(history, LossHistory)
        history.rises = history.rises + (loss > history.last_loss)
        history.last_loss = loss.to(history.last_loss)
        if step == 0:
            history.seen = best.loss
        if step not in self._periods:
            return
        stalled = history.rises <= self._rho * self._periods[step]
        stuck = ~history.reduced & (best.loss <= history.seen)
        halved = stalled | stuck
        state.step_size = torch.where(halved, state.step_size / 2, state.step_size)
        history.rises, history.seen, history.reduced = torch.zeros_like(history.rises), best.loss, halved
        _go_on_from_the_best(state, halved)

    def move(self, view: AttackView, state: "ApgdState", step: int) -> None:
        history, apgd_step_ = state.history, self._norm.apgd_step_
        assert isinstance(history, LossHistory)
        assert apgd_step_ is not None
        mean, std = view.normalization(state.adv)
        apgd_step_(
            state.adv,
            history.previous,
            state.gradient,
            state.clean,
            state.step_size,
            state.eps,
            *self._bounds,
            momentum=0.75 if step > 0 else 1.0,
            out=state.x,
            mean=mean,
            std=std,
        )


@dataclasses.dataclass
class Support(Samples):
    """seen: (N,), how many elements the best point had changed at the last look."""

    seen: Tensor


class SparseSteps:
    """In L1 (Croce and Hein 2021, section 3.3 and algorithm 1, as the authors run them): balls of 3, 2 and
    1 eps, for 30, 30 and 40 % of the steps, of which the last leads from the best point into the next ball.
    Looked at after every 4 % of a ball's steps: a step moves as many elements as the best point has changed,
    over 1.5. Where these have become fewer than 95 % of what they were, the size is the ball's radius again
    and the sample goes on from its best point; elsewhere it shrinks by 1.5, down to a tenth of the radius.
    """

    first = 3.0  # times eps

    def __init__(self, steps: int, bounds: tuple[float, float]):
        self._bounds = bounds
        larger = int(0.3 * steps)
        self._begins = [0, larger, 2 * larger]  # the balls of 3, 2 and 1 eps, the first two maybe empty
        lengths = [larger, larger, steps - 2 * larger]
        self._periods = [max(1, int(0.04 * length)) for length in lengths]

    def start(self, clean: Tensor, eps: float | Tensor, seed: Tensor, index: Tensor) -> Tensor:
        lo, hi = self._bounds
        adv = to_state(clean).add_(normal_draws(clean, seed, index), alpha=hi - lo)
        ops.l1_project_(adv, clean, self._radius(eps, 0), lo, hi)
        return adv

    def history(self, adv: Tensor) -> Support:
        return Support(lowest(adv, len(adv)))

    def begin(self, state: "ApgdState", step: int = 0) -> None:
        """Of a ball, in which the samples are."""
        assert isinstance(state.history, Support)
        state.history.seen = self._support(state, state.adv)
        state.sparsity = self._sparsity(state, state.history.seen)
        state.step_size = torch.zeros_like(state.history.seen) + self._radius(state.eps, step)
        state.best = Best.none_yet(state.adv)

    def counts(self, step: int) -> bool:
        """Whether the ball is the one that samples must be in."""
        return step >= self._begins[2]

    def adapt(self, state: "ApgdState", step: int, loss: Tensor) -> None:
        ball = self._ball(step)
        made = step - self._begins[ball]
        if made == 0 or made % self._periods[ball] > 0:
            return
        assert isinstance(state.history, Support)
        support = self._support(state, state.best.adv)
        radius = torch.zeros_like(support) + self._radius(state.eps, step)
        sparser = support < 0.95 * state.history.seen
        shrunk = torch.maximum(state.step_size / 1.5, 0.1 * radius)
        state.step_size = torch.where(sparser, radius, shrunk)
        state.sparsity = self._sparsity(state, support)
        state.history.seen = support
        _go_on_from_the_best(state, sparser)

    def move(self, view: AttackView, state: "ApgdState", step: int) -> None:
        if self._ball(step + 1) != self._ball(step):
            self._change_ball(view, state, step + 1)
            return
        assert state.gradient is not None
        mean, std = view.normalization(state.adv)
        ops.l1_step_(
            state.adv,
            movable(state.gradient, state.adv, *self._bounds),
            state.clean,
            state.step_size,
            self._radius(state.eps, step),
            *self._bounds,
            sparsity=state.sparsity,
            out=state.x,
            mean=mean,
            std=std,
        )

    def _change_ball(self, view: AttackView, state: "ApgdState", step: int) -> None:
        state.adv.copy_(state.best.adv)
        ops.l1_project_(state.adv, state.clean, self._radius(state.eps, step), *self._bounds)
        state.x = view.prepare(state.adv)
        self.begin(state, step)

    def _ball(self, step: int) -> int:
        return max(ball for ball, begin in enumerate(self._begins) if step >= begin)

    def _radius(self, eps: float | Tensor, step: int) -> float | Tensor:
        return eps * (3 - self._ball(step))

    def _support(self, state: "ApgdState", adv: Tensor) -> Tensor:
        changed = adv != to_state(state.clean)
        return changed.reshape(len(adv), -1).sum(dim=1).to(adv.dtype)

    def _sparsity(self, state: "ApgdState", support: Tensor) -> Tensor:
        return support / max(1, math.prod(state.adv.shape[1:])) / 1.5


def _go_on_from_the_best(state: "ApgdState", where: Tensor) -> None:
    """where: (N,) bool."""
    assert state.gradient is not None
    keep(state.adv, where, state.best.adv)
    state.gradient = state.gradient.to(state.adv.dtype)
    keep(state.gradient, where, state.best_gradient)
