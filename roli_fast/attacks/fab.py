"""The fast adaptive boundary attack (Croce and Hein, Minimally distorted Adversarial Examples with a Fast
Adaptive Boundary Attack, ICML 2020)."""

import dataclasses

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..checks import check_count, check_number
from .ascent import has_direction
from .attack import Attack
from .hyperplane import to_hyperplane
from .inputs import check_lengths, to_state
from .norms import DUAL, distance, normal_draws, uniform_draws
from .options import AttackOptions, check_options
from .samples import Samples, per_sample
from .targets import TowardsTargets
from .trial import Trial


@dataclasses.dataclass
class FabState(Samples):
    """clean, adv: (N, ...), float32 or float64. pairs: (N, 2) int64, label and target class; None without.

    within: (N,) float64, a distance below which an image that fools the model is the best so far.
    """

    clean: Tensor
    labels: Tensor
    pairs: Tensor | None
    adv: Tensor
    within: Tensor


class FAB(Attack):
    """Looks for the adversarial image nearest to the clean one: steps to the linearised boundary of the
    nearest class, held back towards the clean image, and back again where the model is fooled. Kept is the
    nearest image that fools the model within eps.

    norm, eps, bounds, early_stop, precision, generator, eot, fold, output: as in :class:`PGD`. An eps of
        infinity looks at any distance; with early_stop a sample leaves at its first image within eps.
    steps: of a run, at least 1. restarts: runs, of which all but the first start at random.
    alpha_max: how strongly a step is held back, from 0 to 1. eta: how far it goes beyond the boundary, at
        least 1. beta: how much of the way remains after going back, above 0 and up to 1.

    In a result, ``loss`` is minus the distance; minus infinity where nothing was found. Each step needs the
    gradients of all classes: with many of them, :class:`FABT` is the one to take.
    """

    def __init__(
        self,
        norm: str = "linf",
        eps: float | Tensor = 8 / 255,
        steps: int = 100,
        restarts: int = 1,
        *,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        **options: Unpack[AttackOptions],
    ):
        check_options(self, options)
        check_count("steps", steps)
        check_number("alpha_max", alpha_max, 0, 1)
        check_number("eta", eta, 1)
        check_number("beta", beta, most=1, above=0)
        check_lengths(options.get("precision", "fp32"))
        self.steps, self.alpha_max, self.eta, self.beta = steps, alpha_max, eta, beta
        super().__init__(norm, eps, restarts=restarts, **options)

    @property
    def draws(self) -> bool:  # type: ignore[override]
        return self.restarts > 1

    def objective(self, output: Tensor, target: Tensor) -> Tensor:
        """How far the target's logit is above the label's; target: (N, 2), label and target class."""
        label, other = (output.gather(1, classes[:, None])[:, 0] for classes in target.unbind(dim=1))
        return other - label

    def merit(self, trial: Trial, rows: Tensor, images: Tensor, output: Tensor) -> Tensor:
        """Nearer is better, and nothing else is."""
        far = distance(self.norm, to_state(images) - to_state(trial.images[rows]))
        return torch.where(self.fooled(output, trial.labels_of(rows)), -far, -torch.inf)

    def prepare(self, trial: Trial) -> None:
        """What is misclassified needs no change."""
        trial.offer(trial.rows, trial.adversarial.clone(), trial.clean_output)

    def search(self, trial: Trial, rows: Tensor, run: int) -> None:
        rows = rows[trial.loss[rows] < 0]
        if len(rows) == 0:
            return
        state = self._begin_run(trial, rows, run)
        for step in range(self.steps):
            gap, gradient = self._nearest_boundary(trial, state)
            if step == 0:
                trial.directed[rows] |= has_direction(gradient)
            state.adv = self._stepped(state, gap, gradient)
            crossed = self._crossed(trial, state)
            found = self._judge(trial, rows, state, crossed)
            back = state.clean + self.beta * (state.adv - state.clean)
            state.adv = torch.where(per_sample(crossed, back), back, state.adv)
            if self.early_stop and found.any():
                rows, state = rows[~found], state.take(~found)
                if len(rows) == 0:
                    return

    def _begin_run(self, trial: Trial, rows: Tensor, run: int) -> FabState:
        labels = trial.labels_of(rows)
        assert labels is not None
        clean = to_state(trial.images_of(rows)).contiguous()  # flat rows are what it is about
        eps = torch.zeros(len(rows), dtype=torch.float64, device=clean.device) + trial.size_of(self.eps, rows)
        found = torch.where(trial.fooled[rows], -trial.loss[rows].double(), torch.inf)
        within = torch.minimum(eps.nextafter(eps + 1), found)
        adv = clean
        if self._starts_at_random(run):
            seed = trial.seed(run)
            assert seed is not None
            lo, hi = self.bounds
            reach = torch.where(within.isfinite(), within, hi - lo) / 2
            adv = self._random_start(clean, reach, seed, trial.index[rows]).clamp_(lo, hi)
        return FabState(clean, labels, self._pairs(trial, rows, run), adv, within)

    def _starts_at_random(self, run: int) -> bool:
        return run > 0

    def _pairs(self, trial: Trial, rows: Tensor, run: int) -> Tensor | None:
        return None

    def _random_start(self, clean: Tensor, reach: Tensor, seed: Tensor, index: Tensor) -> Tensor:
        """At this distance (N,) from the clean images."""
        draws = uniform_draws if self.norm == "linf" else normal_draws
        way = draws(clean, seed, index)
        return clean + way * per_sample((reach / distance(self.norm, way)).to(clean.dtype), clean)

    def _nearest_boundary(self, trial: Trial, state: FabState) -> tuple[Tensor, Tensor]:
        """How far the logit of the class whose boundary is the nearest is below the label's, (N,), and the
        gradient of that difference with respect to pixels (N, ...)."""
        nearest = torch.full_like(state.within, torch.inf)
        gap = torch.zeros_like(nearest)
        found = torch.zeros_like(state.adv)

        def visit(c: int, difference: Tensor, gradient: Tensor) -> None:
            nonlocal nearest, gap, found
            gradient = trial.oracle.in_pixels(gradient)
            steepness = distance(DUAL[self.norm], gradient).clamp(min=1e-12)
            far = torch.where(state.labels == c, torch.inf, difference.abs() / steepness)
            nearer = far < nearest
            nearest = torch.where(nearer, far, nearest)
            gap = torch.where(nearer, -difference.double(), gap)
            found = torch.where(per_sample(nearer, found), gradient.to(found.dtype), found)

        x = trial.oracle.view.prepare(state.adv)
        classes = trial.oracle.eager.of_each_class(x, state.labels, visit).shape[1]
        trial.spend(len(x), forwards=1, gradients=classes)
        return gap, found

    def _stepped(self, state: FabState, gap: Tensor, gradient: Tensor) -> Tensor:
        """Beyond the linearised boundary from where the samples are and from the clean image, and between
        these two points the nearer to the second the shorter its way is (algorithm 1)."""
        lo, hi = self.bounds
        clean, adv, w = (t.flatten(1) for t in (state.clean, state.adv, gradient.to(state.adv.dtype)))
        gap = gap.to(adv.dtype)
        with torch.autocast(adv.device.type, enabled=False):
            gap_of_clean = gap + torch.linalg.vecdot(w, adv - clean)
            points, gaps = torch.cat([adv, clean]), torch.cat([gap, gap_of_clean])
            here, there = to_hyperplane(self.norm, points, torch.cat([w, w]), gaps, lo, hi).chunk(2)
        near, far = (distance(self.norm, way).clamp(min=1e-8) for way in (here, there))
        alpha = (near / (near + far)).clamp(max=self.alpha_max).to(adv.dtype)[:, None]
        found = (adv + self.eta * here) * (1 - alpha) + (clean + self.eta * there) * alpha
        return found.clamp_(lo, hi).reshape(state.adv.shape)

    def _crossed(self, trial: Trial, state: FabState) -> Tensor:
        """(N,) bool, where the view is fooled."""
        output = trial.oracle.output(trial.oracle.view.prepare(state.adv))
        trial.spend(len(output), forwards=1)
        return self.fooled(output, state.labels)

    def _judge(self, trial: Trial, rows: Tensor, state: FabState, crossed: Tensor) -> Tensor:
        """Has the model judge what seems nearer than all before: (N,) bool, where it agrees."""
        far = distance(self.norm, state.adv - state.clean)
        found = crossed & (far < state.within)
        if found.any():
            found[found.clone()] = trial.judge(rows[found], state.adv[found])
            state.within = torch.where(found, far, state.within)
        return found


class FABT(TowardsTargets, FAB):
    """The fast adaptive boundary attack towards the boundary of one class after another, the likeliest
    first: one gradient a step.

    targets: how many classes, fewer where the model has fewer others. restarts: of each.
    The rest as in :class:`FAB`.
    """

    def __init__(
        self,
        norm: str = "linf",
        eps: float | Tensor = 8 / 255,
        steps: int = 100,
        targets: int = 9,
        *,
        restarts: int = 1,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        **options: Unpack[AttackOptions],
    ):
        check_count("targets", targets)
        self.targets = targets
        super().__init__(norm, eps, steps, restarts, alpha_max=alpha_max, eta=eta, beta=beta, **options)

    def _starts_at_random(self, run: int) -> bool:
        return run % self.restarts > 0

    def _pairs(self, trial: Trial, rows: Tensor, run: int) -> Tensor | None:
        return self.pairs(trial, run)[rows]

    def _nearest_boundary(self, trial: Trial, state: FabState) -> tuple[Tensor, Tensor]:
        assert state.pairs is not None
        gradient, difference, _ = trial.oracle.gradient(trial.oracle.view.prepare(state.adv), state.pairs)
        trial.spend(len(gradient), forwards=1, gradients=1)
        return -difference, trial.oracle.in_pixels(gradient)
