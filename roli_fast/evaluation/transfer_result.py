"""What :func:`roli_fast.evaluation.transfer` finds."""

import dataclasses
from typing import Any

from torch import Tensor

from .accuracy import Accuracy
from .linear_head import Criterion, LossBound
from .sensitivity import Sensitivity, finite


@dataclasses.dataclass(frozen=True)
class Contradictions:
    """Images that meet the criterion, and that an attack fools all the same.

    That is no violation of the theorem: the criterion is estimated with the distance that the attack on
    features found, and the largest may be larger.

    found: (N,) bool. farther: (N,) bool, those of them whose features the attack moved by the criterion's
        radius or more, as the theorem says it must have. The others' features, which the model was asked for
        once more, would keep the class: either logits are equal up to rounding, or the model is random.
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
    """What an attack on the classes did.

    name, label: of the attack; the label has all its settings. notes: what else a user should know.
    robust: which images were right and stayed so, by the model itself.
    bound: the loss bound where the attack arrived.
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
    """What :func:`transfer` found; per-sample tensors in the order of the data, on the CPU.

    classes: how many the head knows.
    feature_bound: the loss bound where the attack on features arrived.
    outcomes: of the attacks on classes, in their order.
    robust: which images withstand all of them; who knows of more attacks replaces it
        (:func:`dataclasses.replace`), and so what is expected and advised.
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
        """Between which robust accuracies that of this representation and head is estimated to lie: the
        criterion's, which is sufficient only, and the measured one, which attacks bound from above."""
        predicted, measured = self.criterion.predicted.value, self.robust.value
        return min(predicted, measured), measured

    def paper_form(self) -> dict[str, float | None]:
        """The spectral-norm form as the paper has it: its sides come from different attacks, the mean rise of
        the loss under the strongest of them and the mean distance under the attack on features. As that is
        estimated from below, the left side may come out larger; it does not for the attack's own points
        (:class:`LossBound`)."""
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
