"""The fast adaptive boundary attack (Croce and Hein, Minimally distorted Adversarial Examples with a Fast
Adaptive Boundary Attack, ICML 2020)."""

import dataclasses

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..checks import check_count, check_number
from ..ops.reference.shared import over_batch
from .ascent import has_direction
from .attack import Attack
from .hyperplane import to_hyperplane
from .inputs import check_lengths, to_state
from .norms import DUAL, distance, normal_draws, uniform_draws
from .options import AttackOptions, check_options
from .samples import Samples
from .targets import TowardsTargets
from .trial import Trial


@dataclasses.dataclass
class FabState(Samples):
    """clean, adv: (N, ...), float32 or float64.
    pairs: (N, 2) int64, label and target class; None for FAB without targets.
    within: (N,) float64, the distance that an image has to stay below to be the sample's best so far.
    """

    clean: Tensor
    labels: Tensor
    pairs: Tensor | None
    adv: Tensor
    within: Tensor


class FAB(Attack):
    """The fast adaptive boundary attack, which looks for the adversarial image nearest to the clean one. Each
    step goes to the linearised decision boundary of the nearest class, with a pull towards the clean image;
    a sample that fools the model goes part of the way back to the clean image. The result is the nearest
    image within eps that fools the model.

    norm, bounds, early_stop, precision, generator, eot, fold, output: as in :class:`PGD`. With early_stop, a
        sample leaves at its first adversarial image within eps.
    eps: as in :class:`PGD`; infinity accepts an image at any distance.
    steps: number of steps in a run, at least 1.
    restarts: number of runs, of which the first starts at the clean image and the others at random.
    alpha_max: the greatest weight of the pull towards the clean image, from 0 to 1.
    eta: the factor by which a step overshoots the boundary, at least 1.
    beta: the share of its distance to the clean image that a sample keeps when it goes back, above 0 and up
        to 1.

    In a result, ``loss`` is minus the distance from the clean image, and minus infinity where no adversarial
    image was found. A step needs the gradients of all classes; where these are many, use :class:`FABT`.

    Raises ValueError for precision="fp16", whose loss scaling changes the gradient's length.
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
        """The target's logit minus the label's, (N,). target: (N, 2) int64, label and target class."""
        label, other = (output.gather(1, classes[:, None])[:, 0] for classes in target.unbind(dim=1))
        return other - label

    def merit(self, trial: Trial, rows: Tensor, images: Tensor, output: Tensor) -> Tensor:
        """Minus the distance: of the images that fool the model, the nearest is the best."""
        far = distance(self.norm, to_state(images) - to_state(trial.images[rows]))
        return torch.where(self.fooled(output, trial.labels_of(rows)), -far, -torch.inf)

    def prepare(self, trial: Trial) -> None:
        """Images that are misclassified as they are need no change."""
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
            state.adv = torch.where(over_batch(crossed, back), back, state.adv)
            if self.early_stop and found.any():
                rows, state = rows[~found], state.take(~found)
                if len(rows) == 0:
                    return

    def _begin_run(self, trial: Trial, rows: Tensor, run: int) -> FabState:
        labels = trial.labels_of(rows)
        assert labels is not None
        clean = to_state(trial.images_of(rows)).contiguous()  # steps work on flat rows
        eps = torch.zeros(len(rows), dtype=torch.float64, device=clean.device) + trial.size_of(self.eps, rows)
        found = torch.where(trial.fooled[rows], -trial.loss[rows].double(), torch.inf)
        within = torch.minimum(eps.nextafter(eps + 1), found)
        adv = clean
        if run % self.restarts > 0:
            seed = trial.seed(run)
            assert seed is not None
            lo, hi = self.bounds
            reach = torch.where(within.isfinite(), within, hi - lo) / 2
            adv = self._random_start(clean, reach, seed, trial.index[rows]).clamp_(lo, hi)
        return FabState(clean, labels, self._pairs(trial, rows, run), adv, within)

    def _pairs(self, trial: Trial, rows: Tensor, run: int) -> Tensor | None:
        return None

    def _random_start(self, clean: Tensor, reach: Tensor, seed: Tensor, index: Tensor) -> Tensor:
        """Random points at the distance ``reach`` (N,) from the clean images."""
        draws = uniform_draws if self.norm == "linf" else normal_draws
        way = draws(clean, seed, index)
        return clean + way * over_batch((reach / distance(self.norm, way)).to(clean.dtype), clean)

    def _nearest_boundary(self, trial: Trial, state: FabState) -> tuple[Tensor, Tensor]:
        """Of the class whose linearised boundary is nearest: how far its logit is below the label's (N,), and
        the gradient (N, ...) of its logit minus the label's with respect to pixels."""
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
            found = torch.where(over_batch(nearer, found), gradient.to(found.dtype), found)

        x = trial.oracle.view.prepare(state.adv)
        classes = trial.oracle.eager.of_each_class(x, state.labels, visit).shape[1]
        trial.spend(len(x), forwards=1, gradients=classes)
        return gap, found

    def _stepped(self, state: FabState, gap: Tensor, gradient: Tensor) -> Tensor:
        """The samples after a step (algorithm 1): a weighted mean of two points beyond the linearised
        boundary, one reached from where the sample is and one from the clean image. The second weighs more
        the shorter the way to it is, up to alpha_max."""
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
        """(N,) bool: which samples fool the attack's copy of the model."""
        output = trial.oracle.output(trial.oracle.view.prepare(state.adv))
        trial.spend(len(output), forwards=1)
        return self.fooled(output, state.labels)

    def _judge(self, trial: Trial, rows: Tensor, state: FabState, crossed: Tensor) -> Tensor:
        """Has the model judge the images that seem adversarial and nearer than all before. Returns (N,) bool:
        which of them fool it."""
        far = distance(self.norm, state.adv - state.clean)
        found = crossed & (far < state.within)
        if found.any():
            found[found.clone()] = trial.judge(rows[found], state.adv[found])
            state.within = torch.where(found, far, state.within)
        return found


class FABT(TowardsTargets, FAB):
    """The fast adaptive boundary attack towards each of the likeliest wrong classes in turn, the likeliest
    first. A step needs one gradient, however many classes there are.

    targets: how many classes to aim at; fewer if the model has fewer wrong ones.
    restarts: number of runs for each target.

    Other arguments as in :class:`FAB`.
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

    def _pairs(self, trial: Trial, rows: Tensor, run: int) -> Tensor | None:
        return self.pairs(trial, run)[rows]

    def _nearest_boundary(self, trial: Trial, state: FabState) -> tuple[Tensor, Tensor]:
        assert state.pairs is not None
        gradient, difference, _ = trial.oracle.gradient(trial.oracle.view.prepare(state.adv), state.pairs)
        trial.spend(len(gradient), forwards=1, gradients=1)
        return -difference, trial.oracle.in_pixels(gradient)
