"""Checks whether a measured robustness can be believed (Athalye, Carlini and Wagner, Obfuscated Gradients
Give a False Sense of Security, ICML 2018; Carlini et al., On Evaluating Adversarial Robustness, 2019)."""

import dataclasses

from .measure import Measured

# Of the images. On six runs on digits, adversarially trained, with 60 to 179 images, every check measured 0;
# on one of them with its input quantised, 0.28 and more where it failed. One image in fifty is left to PGD,
# which does not maximise exactly, and to chance.
TOLERANCE = 0.02

_MASKING = "Gradients may be masked: they do not lead to the adversarial images that exist"


@dataclasses.dataclass(frozen=True)
class Check:
    """Something that must hold in a sound evaluation.

    value: what was measured, as a share of the images.
    limit: the largest value that passes.
    means: what it means if the check failed.
    """

    name: str
    value: float
    limit: float
    measured: str
    means: str

    @property
    def passed(self) -> bool:
        return self.value <= self.limit


def sanity(found: Measured) -> list[Check]:
    """All checks, in the order of the page. Passing them proves nothing. If one fails, the robust accuracies
    are too high."""
    return [_whole_box(found), _eps(found), _restarts(found), _square(found), _gradients(found)]


def _whole_box(found: Measured) -> Check:
    last = found.points[-1]
    return Check(
        f"accuracy near zero at eps = {last.eps:.4g}",
        last.alone.value,
        TOLERANCE,
        f"{last.alone.value:.1%} right",
        "This ball holds every image, those of other classes included, so every image can be fooled: the "
        f"attack failed where it did not. {_MASKING}, or the attack is too weak.",
    )


def _eps(found: Measured) -> Check:
    rises = [
        (b.alone.value - a.alone.value, a.eps, b.eps)
        for i, a in enumerate(found.points)
        for b in found.points[i + 1 :]
    ]
    rise, before, after = max(rises)
    if rise > 0:
        measured = f"rises by {100 * rise:.1f} points from eps {before:.4g} to {after:.4g}"
    else:
        measured = "never rises"
    return Check(
        "accuracy does not rise with eps",
        max(rise, 0.0),
        TOLERANCE,
        measured,
        "A larger ball holds every adversarial image of the smaller one, and the attack lost some of them: "
        f"its steps are too coarse or too few. {_MASKING}. (The curve of this page does not rise, since it "
        "counts successes at smaller eps.)",
    )


def _restarts(found: Measured) -> Check:
    starts = max(found.restarts)
    one, several = found.restarts[1].value, found.restarts[starts].value
    return Check(
        "accuracy does not rise with restarts",
        max(several - one, 0.0),
        TOLERANCE,
        f"{one:.1%} right after one start, {several:.1%} after {starts}",
        "The starts include the single one's, so more of them can only find more. The model answers the same "
        "question differently: its outputs are random, or change as it is used. Attacks then have to average "
        "its gradients (eot), or noise is mistaken for robustness.",
    )


def _square(found: Measured) -> Check:
    count = found.ensemble.only_square
    return Check(
        "no image is broken by Square alone",
        count / found.images,
        TOLERANCE,
        f"{count} of {found.images} images withstood every gradient attack, but not random search",
        f"Square uses no gradients, and finds what attacks with gradients miss. {_MASKING}; more queries, or "
        "an attack made for this model, would break more.",
    )


def _gradients(found: Measured) -> Check:
    g = found.gradients
    return Check(
        "gradients are neither zero nor NaN",
        (g.zero + g.not_finite) / g.images,
        TOLERANCE,
        f"zero for {g.zero} and not finite for {g.not_finite} of {g.images} images",
        "Without a gradient with respect to the pixels, gradient attacks cannot move: the model rounds its "
        "input, or a layer is not differentiable. That is gradient masking, and no robustness.",
    )
