"""What :func:`roli_fast.evaluation.transfer` finds."""

import dataclasses
from typing import Any

from torch import Tensor

from .accuracy import Accuracy
from .linear_head import Criterion, LossBound
from .sensitivity import Sensitivity, finite


@dataclasses.dataclass(frozen=True)
class Contradictions:
    """Images that meet the criterion although an attack fools the model with them.

    This does not violate the theorem: the criterion uses the distance that the attack on features found, and
    features may be able to move farther.

    found: (N,) bool, which images these are.
    farther: (N,) bool, those among them whose features this attack moved by the criterion's radius or more,
        as the theorem says it must have. Where it did not, logits are equal up to rounding, or the model's
        output is random and changed when features were computed once more.
    """

    found: Tensor
    farther: Tensor

    @property
    def explanation(self) -> str:
        count, farther = int(self.found.sum()), int(self.farther.sum())
        if count == 0:
            return "none"
        text = (
            f"{count}: at {farther} of them this attack moved the features farther than the attack on "
            "features had, and past the criterion's radius: the sensitivity was estimated too low there"
        )
        within = (
            f"; at {count - farther} the features, asked for once more, had not: the model is random, or its "
            "logits are equal up to rounding"
        )
        return text + (within if count > farther else "")

    def summary(self) -> dict[str, Any]:
        return {
            "images": int(self.found.sum()),
            "features_moved_past_radius": int(self.farther.sum()),
            "explanation": self.explanation,
        }


@dataclasses.dataclass(frozen=True)
class AttackOutcome:
    """What an attack on the classes reached.

    name: of the attack. label: name and all settings. notes: what else a user should know.
    robust: the accuracy under the attack, as the model itself decides.
    bound: the loss bound at the adversarial images.
    contradictions: images that it fools although they meet the criterion.
    """

    name: str
    label: str
    notes: tuple[str, ...]
    robust: Accuracy
    bound: LossBound
    contradictions: Contradictions

    def summary(self) -> dict[str, Any]:
        return {
            "attack": self.label,
            "notes": list(self.notes),
            "robust": self.robust.summary(),
            "loss_bound": self.bound.summary(),
            "contradictions": self.contradictions.summary(),
        }


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What :func:`transfer` found. Per-sample tensors are on the CPU, in the order of the data.

    sensitivity: how far the attack on features moved them.
    clean: the accuracy without an attack.
    classes: how many classes the head has.
    criterion: which images should keep their class.
    feature_bound: the loss bound at the images that the attack on features found.
    outcomes: what the attacks on classes reached, in their order.
    robust: the accuracy under all of them together. If you know of further attacks, replace it by
        :func:`dataclasses.replace`: ``expected`` and advice then follow it.
    """

    sensitivity: Sensitivity
    clean: Accuracy
    classes: int
    criterion: Criterion
    feature_bound: LossBound
    outcomes: tuple[AttackOutcome, ...]
    robust: Accuracy

    @property
    def expected(self) -> tuple[float, float]:
        """Between which values the true robust accuracy is estimated to lie: what the criterion predicts (it
        is sufficient, not necessary), and what attacks measure (a stronger one might find less)."""
        predicted, measured = self.criterion.predicted.value, self.robust.value
        return min(predicted, measured), measured

    def paper_form(self) -> dict[str, float | None]:
        """Both sides of the spectral-norm bound as the paper computes them, from different attacks: the mean
        rise of the loss under the strongest attack on classes, and the mean distance under the attack on
        features. Since that distance is an estimate from below, the left side may exceed the right one; at
        one attack's own points it cannot (:class:`LossBound`)."""
        rises = [outcome.bound.spectral_rise.mean().item() for outcome in self.outcomes]
        limit = self.feature_bound.spectral_limit.mean().item()
        return {"mean_spectral_rise": finite(max(rises)), "mean_spectral_limit": finite(limit)}

    def summary(self) -> dict[str, Any]:
        """All but what is per sample, fit for JSON. Accuracies are between 0 and 1, distances in the units of
        the features."""
        return {
            "sensitivity": self.sensitivity.summary(),
            "clean": self.clean.summary(),
            "criterion": self.criterion.summary() | {"predicted_robust": self.criterion.predicted.summary()},
            "feature_loss_bound": self.feature_bound.summary(),
            "attacks": {outcome.name: outcome.summary() for outcome in self.outcomes},
            "robust": self.robust.summary(),
            "paper_form": self.paper_form(),
            "expected_robust_estimated": list(self.expected),
        }
