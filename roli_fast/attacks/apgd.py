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
from .losses import Loss, margin, require_classes, targeted_dlr
from .options import AttackOptions, check_options
from .samples import Best, Samples, keep
from .targets import TowardsTargets
from .trial import Trial


@dataclasses.dataclass
class ApgdState(State):
    """best_gradient: (N, ...), the gradient at each best point. history: what the step sizes adapt by."""

    step_size: Tensor
    sparsity: Tensor
    best: Best
    best_gradient: Tensor
    history: Samples


class APGD(GradientAttack):
    """Auto-PGD: PGD with momentum, which chooses its step sizes itself. It starts at a random point with a
    large step; a sample whose loss has stopped rising goes back to its best point and on from there with half
    the step. The result is each sample's best point: one that fools the model, else the highest loss.

    norm, eps, restarts, targeted, bounds, early_stop, precision, generator, eot, fold, output: as in
        :class:`PGD`.
    steps: number of gradient steps in a run, at least 1.
    loss: "ce", "dlr", "margin", or a callable, as in :class:`PGD`.
    rho: a sample's step is halved if its loss rose in no more than this share of the steps since the last
        check.

    In L1, as Croce and Hein (2021) have it, a run goes through balls of radius 3 eps, 2 eps and eps, without
    momentum, and what adapts is also the share of elements that a step moves.
    """

    sparsity = 1.0  # where a run starts; in L1 it then adapts

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
    """Auto-PGD with the targeted DLR loss: a run towards each of the likeliest wrong classes in turn, the
    likeliest first.

    targets: how many classes to aim at; fewer if the model has fewer wrong ones.
    restarts: number of runs for each target.

    Other arguments as in :class:`APGD`, without loss and targeted. The model needs at least 4 classes.
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
        require_classes("targeted dlr", trial.clean_output, 4)

    def loss_target(self, trial: Trial, run: int) -> Tensor:
        return self.pairs(trial, run)

    def merit(self, trial: Trial, rows: Tensor, images: Tensor, output: Tensor) -> Tensor:
        """The margin: unlike the targeted loss, it can be compared between targets."""
        assert trial.labels is not None
        return margin(widened(output), trial.labels[rows])
