"""What moving features do to a linear head's output: a bound on the loss, a criterion for keeping the class.

Both are theorems about any two feature vectors. The model computes features at its own precision; all that
follows is in float64, so that rounding stays far below what is compared.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from .accuracy import Accuracy
from .sensitivity import finite

# Relative to the product of two vectors' lengths: their float64 dot product of 2,048 terms is off by at most
# 2.3e-13 of it.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class LinearHead:
    """``weight @ f + bias``, in float64. weight: (C, F) with rows W_j; bias: (C,)."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layer: nn.Linear) -> "LinearHead":
        weight = layer.weight.detach().double()
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
        return cls(weight, bias)

    def logits(self, features: Tensor) -> Tensor:
        """(N, C), of features (N, F) float64."""
        return features @ self.weight.T + self.bias

    def gaps(self, labels: Tensor) -> Tensor:
        """(N, C): ||W_y - W_j||_2 of each label y and every class j."""
        # By products, as cdist does it for many rows, near ones would have no digit right.
        rows = self.weight[labels]
        return torch.cdist(rows, self.weight, compute_mode="donot_use_mm_for_euclid_dist")

    def spectral_norm(self) -> float:
        """||W||_2."""
        return torch.linalg.matrix_norm(self.weight, ord=2).item()

    def radius(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N,): min over j != y of (z_y - z_j) / ||W_y - W_j||_2. Features that move by less keep a class
        that is right; negative where it is wrong already. Classes of the same row never change places."""
        margins = logits.gather(1, labels[:, None]) - logits
        gaps = self.gaps(labels)
        same = torch.where(margins > 0, torch.inf, torch.where(margins < 0, -torch.inf, 0.0))
        radii = torch.where(gaps > 0, margins / gaps, same)
        return radii.scatter(1, labels[:, None], torch.inf).amin(dim=1)

    def excess(self, clean: Tensor, moved: Tensor, labels: Tensor) -> Tensor:
        """(N,): by how much more than ||W_y - W_j||_2 ||f(x') - f(x)||_2 a margin z_y - z_j shrank, the most
        over j. By Cauchy and Schwarz at most 0, but for rounding: from this the criterion follows."""
        before, after = self.logits(clean), self.logits(moved)
        shrunk = (before.gather(1, labels[:, None]) - before) - (after.gather(1, labels[:, None]) - after)
        return (shrunk - self.gaps(labels) * (moved - clean).norm(dim=1, keepdim=True)).amax(dim=1)

    def rounding(self, *features: Tensor) -> Tensor:
        """(N,): by how much float64 may have moved a logit of these features."""
        lengths = torch.stack([f.norm(dim=1) for f in features]).sum(dim=0)
        return _ROUNDING * (1 + self.bias.abs().amax() + self.weight.norm(dim=1).amax() * lengths)


@dataclasses.dataclass(frozen=True)
class LossBound:
    """Both sides of the bound on cross-entropy, at the points that an attack reached: per sample

        CE(x') - CE(x) <= max_j ||W_j - W_y||_2 ||f(x') - f(x)||_2,

    since the gradient of CE with respect to f is sum_j p_j (W_j - W_y); and in the spectral-norm form of Nern
    et al., with the constant of cross-entropy, since p - e_y is at most sqrt(2) long:

        (CE(x') - CE(x)) / ||W||_2 <= sqrt(2) ||f(x') - f(x)||_2.

    The first is never the looser one. All (N,) float64 on the CPU:

    rise: CE(x') - CE(x). distance: ||f(x') - f(x)||_2. constant: max_j ||W_j - W_y||_2.
    spectral: ||W||_2. rounding: by how much float64 may have moved a logit.

    Raises RuntimeError where the bound does not hold, which it provably does: that is a bug.
    """

    rise: Tensor
    distance: Tensor
    constant: Tensor
    spectral: float
    rounding: Tensor

    def __post_init__(self) -> None:
        for name, limit in (
            ("max_j ||W_j - W_y||", self.limit),
            ("sqrt(2) ||W||", self.spectral * self.spectral_limit),
        ):
            # Of both losses, twice a logit each.
            broken = ~(self.rise <= limit + 4 * self.rounding)
            if broken.any():
                row = int(broken.nonzero()[0])
                raise RuntimeError(
                    f"the loss rose by {self.rise[row]:.6g} at image {row}, above its bound {limit[row]:.6g} "
                    f"by {name}, at {int(broken.sum())} of {len(broken)} images: a bug in roli_fast"
                )

    @property
    def limit(self) -> Tensor:
        """(N,), what the rise is bounded by."""
        return self.constant * self.distance

    @property
    def spectral_rise(self) -> Tensor:
        """(N,), the left side of the spectral-norm form; NaN for a head of zeros."""
        return self.rise / self.spectral

    @property
    def spectral_limit(self) -> Tensor:
        """(N,), its right side."""
        return math.sqrt(2) * self.distance

    def summary(self) -> dict[str, Any]:
        """Means of both sides of both forms, fit for JSON."""
        sides = {
            "rise": self.rise,
            "limit": self.limit,
            "spectral_rise": self.spectral_rise,
            "spectral_limit": self.spectral_limit,
        }
        means = {f"mean_{name}": finite(side.mean().item()) for name, side in sides.items()}
        return {"spectral_norm": self.spectral, "holds_for": len(self.rise)} | means


@dataclasses.dataclass(frozen=True)
class Criterion:
    """Which images keep their class, judged by how far their features can move. An image that is classified
    right stays so for every x' with

        ||f(x') - f(x)||_2 < min over j != y of (z_y - z_j) / ||W_y - W_j||_2.

    This is sufficient, not necessary. It is an estimate, since an attack bounds the distance from below only.

    right: (N,) bool, whether the model is right without an attack.
    radius: (N,) float64, the right side.
    distance: (N,) float64, the estimate of the largest left side.
    """

    right: Tensor
    radius: Tensor
    distance: Tensor

    @property
    def met(self) -> Tensor:
        """(N,) bool."""
        return self.right & (self.distance < self.radius)

    @property
    def predicted(self) -> Accuracy:
        """The robust accuracy that it predicts."""
        return Accuracy(self.met)

    def summary(self) -> dict[str, Any]:
        right = int(self.right.sum())
        met = int(self.met.sum())
        return {"right": right, "met": met, "share_of_right": met / right if right else None}
