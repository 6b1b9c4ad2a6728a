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
    """What :class:`HalvingSizes` remembers of each sample.

    previous: (N, ...), the point before the last step.
    last_loss: (N,), the loss before the last step.
    rises: (N,), in how many steps since the last check the loss rose.
    seen: (N,), the best loss at the last check.
    reduced: (N,) bool, whether the last check halved the step.
    """

    previous: Tensor
    last_loss: Tensor
    rises: Tensor
    seen: Tensor
    reduced: Tensor


class HalvingSizes:
    """The step sizes in Linf and L2 (Croce and Hein 2020, algorithm 1). The loss is checked after 22 % of the
    steps, and then at ever shorter intervals. A check halves a sample's step and sends it back to its best
    point in two cases: the loss rose in no more than a share rho of the steps since the last check, or
    neither step nor best loss has changed since then.
    """

    first = 2.0  # times eps

    def __init__(self, norm: str, steps: int, rho: float, bounds: tuple[float, float]):
        self._norm, self._rho, self._bounds = NORMS[norm], rho, bounds
        period, least, less = (max(1, int(share * steps)) for share in (0.22, 0.06, 0.03))
        # By the step before which the loss is checked: how many steps there are since the last check.
        self._periods: dict[int, int] = {}
        check = period
        while check <= steps:
            self._periods[check] = period
            period = max(period - less, least)
            check += period

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
        """Called before each step, with the loss (N,) at the points where the samples are."""
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
    """What :class:`SparseSteps` remembers of each sample.

    seen: (N,), in how many elements the best point differed from the clean image at the last check.
    """

    seen: Tensor


class SparseSteps:
    """The step sizes in L1 (Croce and Hein 2021, section 3.3 and algorithm 1, as in the authors' code). A run
    goes through balls of radius 3 eps, 2 eps and eps, with 30, 30 and 40 % of the steps; the last step in a
    ball is the projection of the best point onto the next.

    After every 4 % of a ball's steps, sparsity and size are chosen anew. From then on a step moves as many
    elements as differ between the sample's best point and the clean image, divided by 1.5. If that number has
    fallen below 95 % of what it was, the size becomes the ball's radius and the sample goes back to its best
    point; if not, the size is divided by 1.5, but stays at least a tenth of the radius.
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
        """Begins a ball, in which the samples are already."""
        assert isinstance(state.history, Support)
        state.history.seen = self._support(state, state.adv)
        state.sparsity = self._sparsity(state, state.history.seen)
        state.step_size = torch.zeros_like(state.history.seen) + self._radius(state.eps, step)
        state.best = Best.none_yet(state.adv)

    def counts(self, step: int) -> bool:
        """Whether the points of this step lie in the ball of radius eps, so that they may be a result."""
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
