"""Accuracies, their intervals, and the differences between two."""

import dataclasses
from typing import Any

import numpy
from torch import Tensor

_RESAMPLES = 9999


def wilson(right: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's confidence interval of a share, both ends between 0 and 1."""
    from scipy.stats import binomtest  # which takes over a second to import

    low, high = binomtest(right, images).proportion_ci(confidence, method="wilson")
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """An accuracy, with what it was for each image.

    right: (N,) bool on the CPU, whether each image is classified right, in the order of the data set. N is at
        least 1.
    """

    right: Tensor

    @property
    def value(self) -> float:
        """The share of images that are right, between 0 and 1."""
        return self.right.double().mean().item()

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The value's confidence interval (Wilson), both ends between 0 and 1."""
        return wilson(int(self.right.sum()), len(self.right), confidence)

    def summary(self) -> dict[str, Any]:
        """Value, 95 % interval and number of images, fit for JSON."""
        return {"value": self.value, "interval": list(self.interval()), "images": len(self.right)}

    def __str__(self) -> str:
        """In percent, with the interval: 46.7 [43.1, 50.2]."""
        low, high = self.interval()
        return f"{100 * self.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference between two accuracies, with its confidence interval [low, high]."""

    value: float
    low: float
    high: float

    @property
    def within_noise(self) -> bool:
        """Whether the interval contains 0."""
        return self.low <= 0 <= self.high


def difference(a: Accuracy, b: Accuracy, confidence: float = 0.95) -> Difference:
    """a minus b, of accuracies on the same images, with the percentile interval of a paired bootstrap over
    images. Where all images show the same difference, the interval is that of :func:`unanimous`.

    Raises ValueError for different numbers of images.
    """
    if len(a.right) != len(b.right):
        raise ValueError(f"a, b: got {len(a.right)} and {len(b.right)} images, accepted: the same images")
    gaps = a.right.numpy().astype(int) - b.right.numpy().astype(int)
    if (gaps == gaps[0]).all():
        return unanimous(float(gaps[0]), len(gaps), confidence)
    # To resample images is to draw how many of them are worse, equal and better.
    shares = numpy.bincount(gaps + 1, minlength=3) / len(gaps)
    worse, _, better = numpy.random.default_rng(0).multinomial(len(gaps), shares, size=_RESAMPLES).T
    beyond = (1 - confidence) / 2
    low, high = numpy.quantile((better - worse) / len(gaps), [beyond, 1 - beyond])
    return Difference(float(gaps.mean()), float(low), float(high))


def unanimous(gap: float, images: int, confidence: float = 0.95) -> Difference:
    """The difference and its interval where every image shows the same gap, which a bootstrap would take for
    certain. Wilson's interval bounds the share of all images that show it from below; for the others the gap
    may be anything in [-1, 1].
    """
    share, _ = wilson(images, images, confidence)
    return Difference(gap, share * (gap + 1) - 1, share * (gap - 1) + 1)
