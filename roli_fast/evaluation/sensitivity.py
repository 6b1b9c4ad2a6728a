"""Sensitivity: how far an attack can move a backbone's features of an image (Nern et al., On Transfer of
Adversarial Robustness from Pretraining to Downstream Tasks, NeurIPS 2023)."""

import dataclasses
import math
from collections.abc import Iterable, Sequence, Sized
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ..attacks import FeaturePGD
from ..attacks.inputs import as_floats, check_inputs
from ..attacks.verify import locate
from ..engine.modes import Model, beside, own_output
from .attack_rules import check_one_size_for_all, check_places, key_of

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def sensitivity_attack(
    eps: float = 8 / 255, steps: int = 20, generator: torch.Generator | None = None
) -> FeaturePGD:
    """The attack that measures sensitivity: FeaturePGD in Linf, with steps of 0.7 eps from a random start, as
    in the paper's code. Of the points on its way, the one with the farthest features counts.

    eps: in pixel units, with pixels in [0, 1].
    """
    return FeaturePGD(eps=eps, step_size=0.7 * eps, steps=steps, iterate="best", generator=generator)


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """How far the features f(x) of each image x move within the ball. An estimate from below: the attack need
    not find the point x' with the farthest features.

    distance: (N,) float64 on the CPU, ||f(x') - f(x)||_2.
    length: (N,) float64 on the CPU, ||f(x)||_2.
    label: the attack that found x', with all settings.
    """

    distance: Tensor
    length: Tensor
    label: str

    @property
    def relative(self) -> Tensor:
        """(N,) float64, distance / length. Where length is 0: infinite if the features moved, else 0."""
        return torch.where(self.distance > 0, self.distance / self.length, 0.0)

    def summary(self) -> dict[str, Any]:
        """Mean and quantiles over the images, fit for JSON."""
        return {
            "attack": self.label,
            "images": len(self.distance),
            "absolute": figures(self.distance),
            "relative": figures(self.relative),
        }


def sensitivity(
    features: Model,
    batches: Iterable[Sequence[Tensor]],
    attack: FeaturePGD | None = None,
    *,
    progress: bool = False,
) -> Sensitivity:
    """Measures the sensitivity of a representation. Needs neither a head nor labels.

    features: maps images (N, ...) to features (N, ...), such as the first result of
        :func:`roli_fast.models.split`; called in eval mode and left unchanged.
    batches: tuples that begin with the images, in a fixed order. They are moved to the features' device.
    attack: default :func:`sensitivity_attack`.
    progress: whether to show a bar on stderr.

    Raises ValueError for no images and for features that are not finite, TypeError for an attack that is no
    FeaturePGD, and RuntimeError if the attack left its ball or box.
    """
    attack = sensitivity_attack() if attack is None else attack
    check_feature_attack(attack)
    key, found, first = key_of(attack), [], 0
    for images, *_ in bar(batches, "sensitivity", progress):
        images = beside(features, images)
        check_inputs(images, None, None)
        clean, moved = features_moved(features, attack, images, first, key)
        found.append(torch.stack([(moved - clean).norm(dim=1), clean.norm(dim=1)]).cpu())
        first += len(images)
    if first == 0:
        raise ValueError("batches: got none, accepted: at least one image")
    distance, length = torch.cat(found, dim=1)
    return Sensitivity(distance, length, attack.label)


def figures(values: Tensor) -> dict[str, Any]:
    """Mean and quantiles of values (N,), N at least 1, fit for JSON: None instead of infinity and NaN."""
    quantiles = {f"{q:g}": finite(quantile(values, q)) for q in QUANTILES}
    return {"mean": finite(values.mean().item()), "quantiles": quantiles}


def quantile(values: Tensor, q: float) -> float:
    """The value at this share of all. Not torch.quantile, which makes NaN of neighbours that are infinite."""
    return values.sort().values[round(q * (len(values) - 1))].item()


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def check_feature_attack(attack: object) -> None:
    if not isinstance(attack, FeaturePGD):
        got = f"a {type(attack).__name__}"
        raise TypeError(
            f"feature_attack: got {got}, accepted: FeaturePGD, such as sensitivity_attack(8 / 255)"
        )
    check_one_size_for_all("feature_attack", attack)


def features_moved(
    features: Model, attack: FeaturePGD, images: Tensor, first: int, key: Tensor
) -> tuple[Tensor, Tensor]:
    """Features (N, F) of the images and of what the attack makes of them; first: the index of the first."""
    index = first + torch.arange(len(images), device=images.device)
    adversarial = attack.run(features, images, index=index, key=key.to(images.device)).adversarial
    check_places(attack, locate(images, adversarial, attack.norm, attack.eps, attack.bounds))
    clean = features_of(features, as_floats(images))
    return clean, features_of(features, adversarial)


def features_of(features: Model, images: Tensor) -> Tensor:
    """(N, F) float64, as the model itself computes them at its own precision.

    Raises ValueError where they are not finite.
    """
    found = own_output(features, images).reshape(len(images), -1).double()
    broken = ~found.isfinite().all(dim=1)
    if broken.any():
        samples = broken.nonzero().flatten().tolist()[:8]
        raise ValueError(f"model: its features are NaN or infinite for samples {samples}, accepted: numbers")
    return found


def bar(batches: Iterable[Sequence[Tensor]], title: str, shown: bool) -> Iterable[Sequence[Tensor]]:
    total = len(batches) if isinstance(batches, Sized) else None
    return track(batches, title, total=total, console=Console(stderr=True), disable=not shown)
