"""Accuracy on clean and on attacked images, with intervals."""

import dataclasses
from collections.abc import Iterable

import numpy
import torch
from scipy.stats import binomtest, bootstrap
from torch import Tensor

from ..attacks import PGD, predict, verify
from ..attacks.inputs import check_inputs, check_labels, to_images, to_state
from ..engine import Output
from ..engine.modes import Model


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Which images are classified right.

    right: (N,) bool, on the CPU, in the order of the data set; N is at least 1.
    """

    right: Tensor

    @property
    def value(self) -> float:
        """Between 0 and 1."""
        return self.right.double().mean().item()

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's interval for the value."""
        test = binomtest(int(self.right.sum()), len(self.right))
        low, high = test.proportion_ci(confidence, method="wilson")
        return low, high


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much more accurate one is than another, with the interval [low, high]."""

    value: float
    low: float
    high: float

    @property
    def within_noise(self) -> bool:
        return self.low <= 0 <= self.high


def difference(a: Accuracy, b: Accuracy, confidence: float = 0.95) -> Difference:
    """a minus b on the same images, with a paired bootstrap's percentile interval."""
    if len(a.right) != len(b.right):
        raise ValueError(f"a, b: got {len(a.right)} and {len(b.right)} images, accepted: the same images")
    gaps = a.right.numpy().astype(float) - b.right.numpy().astype(float)
    resampled = bootstrap(
        (gaps,), numpy.mean, confidence_level=confidence, method="percentile", rng=numpy.random.default_rng(0)
    )
    low, high = resampled.confidence_interval
    return Difference(float(gaps.mean()), float(low), float(high))


def evaluate(
    model: Model,
    batches: Iterable[tuple[Tensor, Tensor]],
    attack: PGD | None = None,
    *,
    output: Output = None,
) -> Accuracy:
    """The model's accuracy in eval mode; under an attack, the images that are right and stay so.

    model: maps images (N, ...) to logits (N, classes); left as it was.
    batches: (images, labels) in a fixed order, which gives each sample its index.
    attack: None for clean accuracy.
    output: where the logits are in what the model returns; an attack brings its own.

    Raises ValueError for an attack that is targeted or on features, and RuntimeError where an attack left the
    ball or the box: nothing could then be said of the model.
    """
    if attack is not None and (attack.targeted or attack.label_free):
        kind = "a targeted one" if attack.targeted else f"{type(attack).__name__}, which has no success"
        raise ValueError(f"attack: got {kind}, accepted: one against the labels")
    output = attack.output if attack is not None else output
    if attack is not None and any(
        isinstance(s, Tensor) and s.dim() for s in (attack.eps, attack.step_size, attack.sparsity)
    ):
        raise ValueError(
            "attack: got an eps, step size or sparsity per sample of a batch, accepted: one for all"
        )
    seen: list[Tensor] = []
    total = 0
    for images, labels in batches:
        check_inputs(images, labels, None)
        logits = predict(model, to_images(to_state(images), images), output)
        check_labels(labels, logits.shape[1])
        right = logits.argmax(dim=1) == labels
        if attack is not None and right.any():
            # What is wrong already needs no attack, and stays wrong whatever an attack would make of it.
            index = torch.arange(total, total + len(images), device=images.device)
            right[right.clone()] = _withstood(model, images[right], labels[right], attack, index[right])
        seen.append(right.cpu())
        total += len(images)
    if total == 0:
        raise ValueError("batches: got none, accepted: at least one image")
    return Accuracy(torch.cat(seen))


def _withstood(model: Model, images: Tensor, labels: Tensor, attack: PGD, index: Tensor) -> Tensor:
    """(N,) bool: where the attack has no verified success."""
    adversarial = attack.run(model, images, labels, index=index).adversarial
    checked = verify(
        model, images, adversarial, labels, attack.norm, attack.eps, attack.bounds, output=attack.output
    )
    if not (checked.finite & checked.in_box & checked.in_ball).all():
        raise RuntimeError(f"{attack!r} returned images outside its ball or box")
    return ~checked.success
