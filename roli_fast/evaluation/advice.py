"""Advice on whether to probe or to finetune a backbone, and the measures that it is based on."""

import dataclasses
from collections.abc import Sequence

import numpy
from torch import Tensor

from .accuracy import Accuracy, Difference, unanimous, wilson
from .sensitivity import Sensitivity, quantile
from .transfer_result import Transfer

TRANSFERRED = "(probed - finetuned) / finetuned, of accuracies that are means over the runs"
_RESAMPLES = 2000


def transferred(
    probed: Sequence[Accuracy], finetuned: Sequence[Accuracy], confidence: float = 0.95
) -> Difference:
    """Transferred accuracy, or with robust accuracies transferred robustness: the gap between linear probing
    and full finetuning of the same backbone, (probed - finetuned) / finetuned. Above 0, probing is better; at
    -1, nothing transfers.

    RoLI (Hua et al. 2024) describes it in words, "the normalised performance gap between linear probing and
    full finetuning"; the formula is our reading of them.

    probed, finetuned: the accuracies of one or several runs each, such as seeds, all on the same images. The
        value is the gap between their means. Its interval is a bootstrap's over images (paired) and runs;
        where all images agree it is at least as wide as that of :func:`difference`. The upper end is infinite
        if resamples leave finetuning nothing right.

    Raises ValueError without a run of each kind, for runs on different numbers of images, and if finetuning
    has nothing right, since the gap is a share of its accuracy.
    """
    groups = _groups(probed, finetuned)
    means = _means(groups)
    if means[0, 1] == 0:
        raise ValueError(
            "finetuned: got an accuracy of 0, accepted: one above 0, in which the gap is measured"
        )
    with numpy.errstate(divide="ignore", invalid="ignore"):
        gaps = numpy.nan_to_num((means[:, 0] - means[:, 1]) / means[:, 1], nan=0.0, posinf=numpy.inf)
    return _difference(gaps, groups, confidence, unit=means[0, 1])


def _difference(
    resampled: numpy.ndarray, groups: list[numpy.ndarray], confidence: float, unit: float = 1.0
) -> Difference:
    """Of the value itself, which comes first, and its resamples; unit: the accuracy it is measured in."""
    beyond = (1 - confidence) / 2
    # Not interpolated: an infinite neighbour would make NaN of it.
    low, high = numpy.quantile(resampled[1:], [beyond, 1 - beyond], method="nearest")
    gaps = groups[0].mean(axis=0) - groups[1].mean(axis=0)
    if numpy.ptp(gaps) < 1e-9:  # but for rounding, all images agree
        others = unanimous(float(gaps[0]), len(gaps), confidence)
        low, high = min(low, max(-1.0, others.low / unit)), max(high, others.high / unit)
    return Difference(float(resampled[0]), float(low), float(high))


def _groups(probed: Sequence[Accuracy], finetuned: Sequence[Accuracy]) -> list[numpy.ndarray]:
    """(runs, images) of both, 1 where a run is right."""
    if not probed or not finetuned:
        raise ValueError(
            f"probed, finetuned: got {len(probed)} and {len(finetuned)} runs, accepted: 1 or more"
        )
    sizes = {len(accuracy.right) for accuracy in (*probed, *finetuned)}
    if len(sizes) > 1:
        raise ValueError(f"probed, finetuned: got {sorted(sizes)} images, accepted: the same images")
    return [numpy.stack([_numbers(a.right) for a in group]) for group in (probed, finetuned)]


def _means(groups: list[numpy.ndarray]) -> numpy.ndarray:
    """(1 + resamples, 2): mean accuracies of both groups, first those of all images and runs."""
    found = [[group.mean() for group in groups]]
    random, count = numpy.random.default_rng(0), groups[0].shape[1]
    for _ in range(_RESAMPLES):
        images = random.integers(count, size=count)
        runs = [random.integers(len(group), size=len(group)) for group in groups]
        found.append([group[rows][:, images].mean() for group, rows in zip(groups, runs, strict=True)])
    return numpy.array(found)


def _numbers(right: Tensor) -> numpy.ndarray:
    return right.numpy().astype(float)


@dataclasses.dataclass(frozen=True)
class Advice:
    """What to do with a backbone, and why. Based on estimates, never certified.

    method: "probe" or "finetune"; "none" if neither is any good.
    reason: why, in a sentence.
    expectation: the robust accuracy to expect, in a sentence.
    """

    method: str
    reason: str
    expectation: str

    @property
    def text(self) -> str:
        return f"{self.method}: {self.reason}. {self.expectation}."


def advise_without_head(found: Sensitivity) -> Advice:
    """Advice on a backbone for which no head has been trained."""
    relative = quantile(found.relative, 0.5)
    reason = (
        "no head has been trained for these classes, and without one the theory predicts no robust accuracy; "
        "a probe costs least, and finetuning begins with it"
    )
    expectation = (
        f"Estimated: features move by {relative:.0%} of their length (median); of several backbones, the one "
        "with the least has the most to hand on. With a probed head this becomes a robust accuracy"
    )
    return Advice("probe", reason, expectation)


def advise(found: Transfer) -> Advice:
    """Advice from one model with a head on the backbone in question.

    The theory says what a head on this representation keeps, not what finetuning would make of it. The rule
    here is therefore our own, and goes by the share of rightly classified images that attacks leave right:

    - more than half: the representation is robust for these classes, and probing keeps that;
    - less than half: the representation gives way, which only finetuning changes;
    - if the 95 % interval of the share contains one half, there are too few images to tell, and the advice is
      probing, which costs less;
    - a model that may be guessing has no robustness to keep: finetune.
    """
    right, stayed = int(found.clean.right.sum()), int(found.robust.right.sum())
    if _guesses(found):
        reason = (
            f"the model gets {right} of {len(found.clean.right)} images right, which guessing among "
            f"{found.classes} classes may do, too: there is no robustness to keep"
        )
        return Advice("finetune", reason, _OPEN)
    low, high = wilson(stayed, right)
    kept = f"the attacks leave {stayed} of {right} right images right"
    if low > 0.5:
        reason = (
            f"{kept}, more than half: the representation is robust for these classes, and probing keeps it"
        )
    elif high < 0.5:
        reason = f"{kept}, less than half: the representation gives way, and a new head leaves it as it is"
        return Advice("finetune", reason, f"{_expected([found], 'With this head')}. {_OPEN}")
    else:
        reason = f"{kept}, about half: too few images to tell, and probing costs less"
    return Advice("probe", reason, _expected([found], "With this representation and head"))


def advise_between(probed: Sequence[Transfer], finetuned: Sequence[Transfer]) -> Advice:
    """Advice from probed and finetuned runs of one backbone under the same attacks: whichever is more robust;
    or probing, which costs less, if the interval of the difference contains 0. A run that may be guessing
    counts as robust on no image. If no run is robust on any, the method is "none".

    Raises ValueError for runs under different attacks, without a run of each kind, and for runs on different
    numbers of images.
    """
    every = {tuple(outcome.label for outcome in run.outcomes) for run in (*probed, *finetuned)}
    if len(every) > 1:
        raise ValueError(f"probed, finetuned: got {len(every)} different sets of attacks, accepted: the same")
    groups = _groups([_kept(run) for run in probed], [_kept(run) for run in finetuned])
    if not any(group.any() for group in groups):
        reason = f"neither probing nor finetuning is robust on {_ANY}"
        return Advice("none", reason, "No robust accuracy beyond that is to be expected of either")
    means = _means(groups)
    gap = _difference(means[:, 0] - means[:, 1], groups, 0.95)
    points = f"{100 * gap.value:+.1f} points of robust accuracy [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
    reason = f"probing measures {points} against finetuning"
    if not groups[0].any():
        reason += f", and is not robust on {_ANY}"
    if gap.high < 0 or not groups[0].any():
        return Advice("finetune", reason, _expected(finetuned, "Finetuned"))
    if gap.within_noise:
        reason += ": no difference that these images could show, and probing costs less"
    return Advice("probe", reason, _expected(probed, "Probed"))


def _guesses(found: Transfer) -> bool:
    """Whether guessing may have as many images right."""
    return found.clean.interval()[0] <= 1 / found.classes


def _kept(found: Transfer) -> Accuracy:
    """The robustness that a run shows: a constant output is robust, too."""
    return Accuracy(found.robust.right & (not _guesses(found)))


_ANY = "any image, but for what guessing may have right"
_OPEN = "What finetuning reaches is not estimated: it changes the representation that the theory is about"


def _expected(runs: Sequence[Transfer], what: str) -> str:
    low, high = (sum(bounds) / len(runs) for bounds in zip(*(run.expected for run in runs), strict=True))
    return (
        f"{what}, a robust accuracy between {low:.1%} and {high:.1%} is estimated: the criterion is "
        "sufficient only, and attacks bound from above"
    )
