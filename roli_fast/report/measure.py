"""The numbers of a report: how many images stay right under attacks of growing eps, and whether these numbers
can be believed."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks import PGD, Attack, AutoAttack, FeaturePGD
from ..attacks.inputs import as_floats
from ..attacks.losses import cross_entropy
from ..attacks.norms import NORMS
from ..checks import check_choice, check_number, refuse
from ..engine.modes import Model, eval_mode, gradients
from ..evaluation import Accuracy, Evaluation, Transfer, evaluate, transfer
from .examples import Example, Shown, find_examples

Batches = Sequence[tuple[Tensor, Tensor]]
Tell = Callable[[str], None]

# Of the eps in question, where accuracy is measured besides 0 and the whole box: densest where it falls.
SHARES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5)
STEPS = 20  # of PGD, each 2.5 eps / STEPS: any point of the ball is within reach, and from its edge back
STARTS = 5  # random ones, beside a single one

# What random search is compared with, shorter than the official 100 steps and 5,000 queries.
ENSEMBLE = ("apgd-ce", "apgd-t", "square")
ENSEMBLE_STEPS, QUERIES = 30, 500


@dataclasses.dataclass(frozen=True)
class Rate:
    """An accuracy: its value, its 95 % interval (Wilson), and which of the images are right."""

    value: float
    low: float
    high: float
    right: list[bool]

    @classmethod
    def of(cls, accuracy: Accuracy) -> "Rate":
        return cls(accuracy.value, *accuracy.interval(), accuracy.right.tolist())

    @property
    def accuracy(self) -> Accuracy:
        return Accuracy(torch.tensor(self.right))


@dataclasses.dataclass(frozen=True)
class Point:
    """The accuracy at one eps.

    alone: under the attack at this eps only.
    carried: the successes at every smaller eps count too, since those images also lie in this ball.
    """

    eps: float
    alone: Rate
    carried: Rate


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """What APGD and then Square, which uses no gradients, achieved at the eps in question.

    stages: "clean", and the attacks.
    broken_by: how many images each stage made wrong, by its name.
    only_square: how many images withstood all of the report's attacks by gradients, but not Square.
    """

    label: str
    stages: list[str]
    broken_by: dict[str, int]
    only_square: int
    robust: Rate
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Gradients:
    """For how many clean images the gradient of the loss with respect to the pixels is zero everywhere, or
    NaN or infinite somewhere."""

    images: int
    zero: int
    not_finite: int


@dataclasses.dataclass(frozen=True)
class TransferFound:
    """What :func:`roli_fast.evaluation.transfer` says about the model.

    summary: :meth:`roli_fast.evaluation.Transfer.summary`, in which the robust images are those of the whole
        report.
    distance: per image, how far its features moved.
    radius: per image, how far its features may move by the criterion; None for infinite.
    kept: per image, whether it was right and withstood all attacks.
    right: per image, whether it was right without an attack.
    explanation: of the contradictions.
    """

    summary: dict[str, Any]
    distance: list[float]
    radius: list[float | None]
    kept: list[bool]
    right: list[bool]
    explanation: str


@dataclasses.dataclass(frozen=True)
class Measured:
    """All that a report measures about a model. ``dataclasses.asdict`` makes it fit for JSON.

    images: how many were attacked.
    norm, eps: the ball in question.
    points: the accuracy by eps, in ascending order: at 0, at shares of eps that go past twice its value, and
        at the eps whose ball around any image holds the whole box.
    restarts: the accuracy at eps by number of random starts, with the same key: 1 and :data:`STARTS`.
    robust: the share of images that withstood all attacks at eps.
    transfer: None if there is no analysis, for the reason given in no_transfer: the model has no gradient, or
        no linear head that can be told apart.
    """

    images: int
    norm: str
    eps: float
    attack: str
    points: list[Point]
    restarts: dict[int, Rate]
    ensemble: Ensemble
    gradients: Gradients
    robust: Rate
    transfer: TransferFound | None
    no_transfer: str | None
    examples: list[Example]
    forwards: int
    backwards: int

    @property
    def clean(self) -> Rate:
        return self.points[0].alone

    @property
    def at_eps(self) -> Point:
        return next(p for p in self.points if p.eps == self.eps)


@dataclasses.dataclass(frozen=True)
class Found:
    """The numbers, and what is not a number: the examples with their pixels, and the transfer analysis
    itself. In the analysis, the robust images are those that withstood all attacks of the report."""

    numbers: Measured
    shown: list[Shown]
    transfer: Transfer | None


def steps_of(norm: str, eps: float, shape: Sequence[int]) -> list[float]:
    """The eps at which accuracy is measured, ascending and without 0. For images of this shape (C, H, W), the
    last ball holds the whole box."""
    whole = whole_box(norm, shape)
    return sorted({*(share * eps for share in SHARES if share * eps < whole), eps, max(whole, eps)})


def whole_box(norm: str, shape: Sequence[int]) -> float:
    """The radius at which a ball around any image in [0, 1] holds every other image: 1 in Linf."""
    pixels = math.prod(shape)
    return {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}[norm]


def measure(
    model: Model,
    batches: Batches,
    *,
    norm: str = "linf",
    eps: float,
    classes: Sequence[str],
    tell: Tell = lambda what: None,
) -> Found:
    """Attacks a model at growing eps, and looks for signs that the measured robustness is too high.

    model: maps images (N, C, H, W) in [0, 1] to logits (N, classes), in eval mode. It is left as it was.
    batches: (images, labels) on the model's device, the same at each pass.
    norm: "linf", "l2" or "l1".
    eps: the one that the model was trained for, for pixels in [0, 1].
    classes: their names.
    tell: called with a description of what is measured next; :func:`count_of` says how often.

    Raises ValueError for a norm, eps or batches that do not fit, and for logits that are NaN.
    """
    check_choice("norm", norm, tuple(NORMS))
    check_number("eps", eps, above=0)
    if not batches:
        refuse("batches", "none", "at least one")
    return _Measuring(model, batches, norm, float(eps), tell).measured(classes)


def count_of(norm: str, eps: float, shape: Sequence[int]) -> int:
    """How often :func:`measure` calls tell."""
    return len(steps_of(norm, eps, shape)) + 6


class _Measuring:
    def __init__(self, model: Model, batches: Batches, norm: str, eps: float, tell: Tell):
        self._batches, self._norm, self._eps, self._tell = batches, norm, eps, tell
        images, labels = (first[:1] for first in batches[0])
        self._shape = images.shape[1:]
        self._no_gradient = _input_gradient(model, as_floats(images), labels) is None
        self._model: Model = _ZeroGradient(model) if self._no_gradient else model
        self._forwards = self._backwards = 0

    def measured(self, classes: Sequence[str]) -> Found:
        points = self._points()
        at_eps = next(p for p in points if p.eps == self._eps)
        several = self._evaluated(f"{STARTS} starts", self._pgd(self._eps, restarts=STARTS))
        by_gradients = at_eps.carried.accuracy.right & several.right
        ensemble = self._ensemble(by_gradients)
        robust = Accuracy(by_gradients & torch.tensor(ensemble.robust.right))
        self._tell("gradients")
        directions = look_at_gradients(self._model, self._batches)
        self._tell("examples")
        shown = find_examples(self._model, self._batches, self._pgd(self._eps, stops=False), classes)
        self._tell("transfer")
        moved, reason = self._transfer(robust)
        numbers = Measured(
            images=sum(len(labels) for _, labels in self._batches),
            norm=self._norm,
            eps=self._eps,
            attack=self._pgd(self._eps).label,
            points=points,
            restarts={1: at_eps.alone, STARTS: Rate.of(several)},
            ensemble=ensemble,
            gradients=directions,
            robust=Rate.of(robust),
            transfer=None if moved is None else _transfer_found(moved),
            no_transfer=reason,
            examples=[example for example, _ in shown],
            forwards=self._forwards,
            backwards=self._backwards,
        )
        return Found(numbers, shown, moved)

    def _points(self) -> list[Point]:
        """The accuracy at each eps. Every eps is attacked anew, so that it shows if the attack is worse at a
        larger one."""
        clean = self._evaluated("clean", None)
        points, carried = [Point(0.0, Rate.of(clean), Rate.of(clean))], clean.right
        for eps in steps_of(self._norm, self._eps, self._shape):
            alone = self._evaluated(f"eps {eps:.3g}", self._pgd(eps))
            carried = carried & alone.right
            points.append(Point(eps, Rate.of(alone), Rate.of(Accuracy(carried))))
        return points

    def _pgd(self, eps: float, restarts: int = 1, stops: bool = True) -> PGD:
        return PGD(
            self._norm,
            eps,
            2.5 * eps / STEPS,
            STEPS,
            restarts=restarts,
            iterate="best",
            early_stop=stops,
            generator=seeded(),
        )

    def _evaluated(self, what: str, attack: Attack | None) -> Evaluation:
        self._tell(what)
        found = evaluate(self._model, self._batches, attack, strict=False)
        self._forwards += found.forwards
        self._backwards += found.gradients
        return found

    def _ensemble(self, by_gradients: Tensor) -> Ensemble:
        """by_gradients: (N,) bool, the images that withstood the other attacks by gradients."""
        attack = AutoAttack(
            self._norm,
            self._eps,
            attacks=ENSEMBLE,
            steps=ENSEMBLE_STEPS,
            queries=QUERIES,
            generator=seeded(),
        )
        found = self._evaluated("APGD and Square", attack)
        square = found.broken_by == found.stages.index("square")
        return Ensemble(
            label=found.label,
            stages=list(found.stages),
            broken_by={s: int((found.broken_by == n).sum()) for n, s in enumerate(found.stages)},
            only_square=int((square & by_gradients).sum()),
            robust=Rate.of(found),
            notes=list(found.notes),
        )

    def _transfer(self, robust: Accuracy) -> tuple[Transfer | None, str | None]:
        """The transfer analysis, or the reason why there is none. robust: which images withstand all attacks;
        the analysis repeats only the first of these."""
        if self._no_gradient:
            return None, "the output has no gradient by the images"
        # As sensitivity_attack() has it, in any norm.
        moving = FeaturePGD(self._norm, self._eps, 0.7 * self._eps, STEPS, iterate="best", generator=seeded())
        try:
            found = transfer(self._model, self._batches, moving, [self._pgd(self._eps)])  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            if "accepted: " not in str(error):  # a bug, not a refusal
                raise
            return None, str(error)
        return dataclasses.replace(found, robust=robust), None


class _ZeroGradient(nn.Module):
    """Gives a model without a gradient one of zero: attacks then run but do not move, which checks report."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images) + (0 * images).sum()


def _transfer_found(found: Transfer) -> TransferFound:
    contradictions = found.outcomes[0].contradictions
    more = int((found.criterion.met & ~found.robust.right & ~contradictions.found).sum())
    explanation = contradictions.explanation + (
        f"; {more} more by other attacks of this page" if more else ""
    )
    return TransferFound(
        summary=found.summary(),
        distance=found.criterion.distance.tolist(),
        radius=[r if math.isfinite(r) else None for r in found.criterion.radius.tolist()],
        kept=found.robust.right.tolist(),
        right=found.clean.right.tolist(),
        explanation=explanation,
    )


def seeded() -> torch.Generator:
    """A generator with a fixed seed, so that a report can be repeated."""
    return torch.Generator().manual_seed(0)


def look_at_gradients(model: Model, batches: Batches) -> Gradients:
    """Counts the clean images at which cross-entropy has no gradient that an attack could follow."""
    images_seen = zero = broken = 0
    for images, labels in batches:
        gradient = _input_gradient(model, as_floats(images), labels)
        gradient = torch.zeros_like(images) if gradient is None else gradient
        finite = gradient.flatten(1).isfinite().all(dim=1)
        images_seen += len(images)
        broken += int((~finite).sum())
        zero += int((finite & (gradient == 0).flatten(1).all(dim=1)).sum())
    return Gradients(images_seen, zero, broken)


def _input_gradient(model: Model, images: Tensor, labels: Tensor) -> Tensor | None:
    """The gradient with respect to the images. None if the output depends on them through nothing that is
    differentiable."""
    with gradients(), eval_mode(model):
        images = images.detach().clone().requires_grad_()
        loss = cross_entropy(model(images), labels).sum()
        if not loss.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(loss, images, allow_unused=True)
    return gradient
