"""Auto-PGD (Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks, ICML 2020; in L1 Croce and Hein, Mind the Box, ICML 2021)."""

import dataclasses
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..checks import check_count, check_number
from ..engine import widened
from .apgd_sizes import HalvingSizes, SparseSteps
from .ascent import Ascent, Batch, GradientAttack, State
from .losses import Loss, margin, targeted_dlr
from .options import AttackOptions, check_options
from .samples import Best, Samples, keep
from .targets import TowardsTargets
from .trial import Trial


@dataclasses.dataclass
class ApgdState(State):
    """best_gradient: at the best places. history: by which the steps' sizes adapt."""

    step_size: Tensor
    sparsity: Tensor
    best: Best
    best_gradient: Tensor
    history: Samples


class APGD(GradientAttack):
    """Auto-PGD: steps with momentum from a random start. Where the loss no longer rises, they go on from the
    best point with half the size. Kept of each sample is a point that fools the model, else the highest loss.

    norm, eps, restarts, targeted, bounds, early_stop, precision, generator, eot, fold, output: as in
        :class:`PGD`.
    steps: gradient steps of a run, at least 1.
    loss: "ce", "dlr", "margin", or a callable, as in :class:`PGD`.
    rho: a step's size halves where the loss rose in no more than this share of the steps since it was last
        looked at.

    In L1 a run goes through balls of 3, 2 and 1 eps without momentum, and the sparsity of its steps adapts.
    """

    sparsity = 1.0  # in L1, that of the best point so far

    def __init__(
        self,
        norm: str = "linf",
        eps: float | Tensor = 8 / 255,
        steps: int = 100,
        restarts: int = 1,
        loss: str | Loss = "ce",
        *,
        targeted: bool = False,
        rho: float = 0.75,
        **options: Unpack[AttackOptions],
    ):
        check_options(self, options)
        check_number("rho", rho, most=1, above=0)
        self.rho = rho
        super().__init__(norm, eps, steps, loss, restarts=restarts, targeted=targeted, **options)

    @cached_property
    def _sizes(self) -> HalvingSizes | SparseSteps:
        if self.norm == "l1":
            return SparseSteps(self.steps, self.bounds)
        return HalvingSizes(self.norm, self.steps, self.rho, self.bounds)

    @property
    def step_size(self) -> float | Tensor:  # type: ignore[override]
        return self._sizes.first * self.eps

    def begin(self, ascent: Ascent, batch: Batch) -> ApgdState:
        assert batch.seed is not None
        clean = ascent.laid_out(batch.clean)
        adv = self._sizes.start(clean, batch.eps, batch.seed, batch.sample_index)
        size = torch.zeros(len(adv), dtype=adv.dtype, device=adv.device) + batch.step_size
        state = ApgdState(
            target=batch.target,
            labels=batch.labels,
            clean=clean,
            adv=adv,
            x=ascent.view.prepare(adv),
            gradient=None,
            eps=batch.eps,
            step_size=size,
            sparsity=torch.ones_like(size),
            best=Best.none_yet(adv),
            best_gradient=torch.zeros_like(adv),
            history=self._sizes.history(adv),
        )
        self._sizes.begin(state)
        return state

    def look(self, state: State, step: int, loss: Tensor, output: Tensor) -> Tensor:
        assert isinstance(state, ApgdState)
        fooled = self.fooled(output, state.labels)
        if not self._sizes.counts(step):
            fooled = torch.zeros_like(fooled)
        better = state.best.offer(state.adv, fooled, loss)
        if step < self.steps:
            assert state.gradient is not None
            keep(state.best_gradient, better, state.gradient.to(state.adv.dtype))
            self._sizes.adapt(state, step, loss)
        return fooled

    def move(self, ascent: Ascent, state: State, step: int) -> None:
        assert isinstance(state, ApgdState)
        self._sizes.move(ascent.view, state, step)


class APGDT(TowardsTargets, APGD):
    """Auto-PGD towards one class after another, the likeliest first, by the targeted DLR loss.

    targets: how many classes, fewer where the model has fewer others. restarts: of each.
    The rest as in :class:`APGD`, without loss and targeted. The model needs at least 4 classes.
    """

    def __init__(
        self,
        norm: str = "linf",
        eps: float | Tensor = 8 / 255,
        steps: int = 100,
        targets: int = 9,
        *,
        restarts: int = 1,
        rho: float = 0.75,
        **options: Unpack[AttackOptions],
    ):
        check_options(self, options)
        check_count("targets", targets)
        self.targets = targets
        super().__init__(norm, eps, steps, restarts, targeted_dlr, rho=rho, **options)

    @property
    def is_single(self) -> bool:
        return False

    def prepare(self, trial: Trial) -> None:
        assert trial.labels is not None
        targeted_dlr(trial.clean_output[:1], torch.stack([trial.labels[:1]] * 2, dim=1))  # enough classes?

    def loss_target(self, trial: Trial, run: int) -> Tensor:
        return self.pairs(trial, run)

    def merit(self, trial: Trial, rows: Tensor, images: Tensor, output: Tensor) -> Tensor:
        """The margin, which has all targets in it."""
        assert trial.labels is not None
        return margin(widened(output), trial.labels[rows])
