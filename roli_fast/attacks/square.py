"""The Square Attack (Andriushchenko et al., Square Attack: a query-efficient black-box adversarial attack via
random search, ECCV 2020; in L1 Croce and Hein, Mind the Box, ICML 2021)."""

import bisect
import dataclasses
import math
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..checks import check_count, check_flag, check_number, refuse
from .attack import Attack
from .inputs import to_state
from .losses import Loss, get_loss
from .norms import uniform_draws
from .options import AttackOptions, check_options
from .samples import Samples, keep, lowest
from .square_moves import Mass, Stripes
from .trial import Trial

# The share of the pixels in a square halves after so many of 10,000 queries (section 4 of the paper).
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

# Draws of so many queries are made at once: one query's are too few to be worth a call.
_TOGETHER = 64


@dataclasses.dataclass
class SquareState(Samples):
    """clean, best: (N, C, H, W), float32 or float64. loss: (N,), at the best.
    index: (N,) int64, each sample's place in the data set.
    draws: uniform in (0, 1): first (N, ...) for the start, then (N, _TOGETHER, ...) for the next queries.
    """

    clean: Tensor
    labels: Tensor
    eps: float | Tensor
    index: Tensor
    best: Tensor
    loss: Tensor
    draws: Tensor


class Square(Attack):
    """The Square Attack: random search, without gradients. Each query changes a random square of the image,
    by as much as the ball allows, and the change is kept if it raises the loss. A sample that fools the model
    leaves.

    norm, eps, restarts, targeted, bounds, precision, generator, eot, fold, output: as in :class:`PGD`. eps
        has to be finite.
    queries: number of queries for each sample in a run; the one for the starting point is not counted.
    loss: as in :class:`PGD`.
    p_init: the first squares' share of the image's pixels, above 0 and up to 1. It is halved several times
        during a run.
    rescale_schedule: when to halve it. The authors' schedule is for 10,000 queries: if True, it is scaled to
        ``queries``; if False, it is followed as it is, so that fewer queries see only its beginning
        (AutoAttack does so).

    Images are (N, C, H, W). early_stop is always True.
    """

    follows_gradients = False

    def __init__(
        self,
        norm: str = "linf",
        eps: float | Tensor = 8 / 255,
        queries: int = 5000,
        restarts: int = 1,
        loss: str | Loss = "margin",
        *,
        targeted: bool = False,
        p_init: float = 0.8,
        rescale_schedule: bool = False,
        **options: Unpack[AttackOptions],
    ):
        check_options(self, options)
        check_count("queries", queries)
        check_flag("rescale_schedule", rescale_schedule)
        check_number("p_init", p_init, most=1, above=0)
        if isinstance(eps, float) and math.isinf(eps):
            refuse("eps", eps, "a finite number: squares go to the ball's surface")
        if not options.setdefault("early_stop", True):
            refuse("early_stop", False, "True: a sample that is fooled needs no more queries")
        self.queries, self.p_init, self.rescale_schedule, self.loss = queries, p_init, rescale_schedule, loss
        self._loss = get_loss(loss)
        super().__init__(norm, eps, restarts=restarts, targeted=targeted, **options)

    @cached_property
    def _moves(self) -> Stripes | Mass:
        return Stripes(self.bounds) if self.norm == "linf" else Mass(self.norm, self.bounds)

    def prepare(self, trial: Trial) -> None:
        if trial.images.dim() != 4:
            refuse("images", f"shape {tuple(trial.images.shape)}", "(N, C, H, W), in which there are squares")
        super().prepare(trial)

    def search(self, trial: Trial, rows: Tensor, run: int) -> None:
        state = self._begin_run(trial, rows, run)
        for query in range(self.queries + 1):
            if query > 0 and (query - 1) % _TOGETHER == 0:
                state.draws = self._draws(trial, state, run, 1 + (query - 1) // _TOGETHER)
            tried = state.best.clone() if query == 0 else self._proposal(state, query - 1)
            loss, output = trial.oracle.loss(trial.oracle.view.prepare(tried), state.labels)
            trial.spend(len(rows), forwards=1)
            fooled = self.fooled(output, state.labels)
            better = (loss > state.loss) | fooled
            keep(state.best, better, tried)
            state.loss = torch.where(better, loss, state.loss)
            if fooled.any():
                fooled[fooled.clone()] = trial.judge(rows[fooled], state.best[fooled])
                rows, state = rows[~fooled], state.take(~fooled)
                if len(rows) == 0:
                    return
        trial.judge(rows, state.best)

    def _begin_run(self, trial: Trial, rows: Tensor, run: int) -> SquareState:
        labels, index = trial.labels_of(rows), trial.index[rows]
        assert labels is not None
        clean = trial.oracle.laid_out(to_state(trial.images_of(rows)))
        eps = trial.size_of(self.eps, rows)
        draws = self._drawn(trial, clean, index, run, 0, self._moves.start_draws(clean.shape))
        best = self._moves.start(clean, eps, draws)
        return SquareState(clean, labels, eps, index, best, lowest(clean, len(clean)), draws)

    def _draws(self, trial: Trial, state: SquareState, run: int, part: int) -> Tensor:
        """Random numbers for the next queries, (N, _TOGETHER, draws of a query)."""
        each = self._moves.draws(state.clean.shape)
        draws = self._drawn(trial, state.clean, state.index, run, part, _TOGETHER * each)
        return draws.reshape(len(draws), _TOGETHER, each)

    def _drawn(self, trial: Trial, clean: Tensor, index: Tensor, run: int, part: int, count: int) -> Tensor:
        """Random numbers (N, count), uniform in (0, 1)."""
        seed = trial.seed(run, part)
        assert seed is not None
        like = torch.empty(len(clean), count, dtype=clean.dtype, device=clean.device)
        return uniform_draws(like, seed, index).add_(1).div_(2)

    def _proposal(self, state: SquareState, query: int) -> Tensor:
        """What to try next (N, C, H, W). query: its number, from 0."""
        of_10_000 = query * 10_000 // self.queries if self.rescale_schedule else query
        share = self.p_init / 2 ** bisect.bisect_left(_HALVED_AFTER, of_10_000)
        side = self._moves.side(share, *state.clean.shape[2:])
        draws = state.draws[:, query % _TOGETHER]
        return self._moves.move(state.best, state.clean, state.eps, side, draws)
