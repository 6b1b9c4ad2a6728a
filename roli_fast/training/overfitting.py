"""The two ways in which adversarial training loses what it had, told apart from its history."""

import math
from collections.abc import Sequence
from typing import Any

# Catastrophic: within an epoch, validation robustness falls by more than this share of itself, this much, and
# so many of its standard errors.
_COLLAPSE, _POINTS, _ERRORS = 0.3, 0.05, 2
# Robust: so many epochs below the best.
PATIENCE = 5


def overfitting(history: Sequence[dict[str, Any]], images: int) -> str | None:
    """What the last epoch of a history calls for, as a sentence; None for nothing.

    Catastrophic overfitting (Wong et al. 2020): the model learns to resist the attack that it is trained with
    and loses all others, so that accuracy under it rises while validation robustness under PGD collapses, and
    accuracy on clean images does not: where that collapses, too, the model has lost what it had learnt.
    Robust overfitting (Rice et al. 2020): validation robustness stays below its best.

    history: rows with train_accuracy, val_clean and val_robust, one per epoch.
    images: how many images validate.
    """
    if len(history) < 2:
        return None
    robust = [row["val_robust"] for row in history]
    before, now = history[-2], history[-1]
    best = max(range(len(robust)), key=lambda epoch: (robust[epoch], epoch))  # the last, where several are
    noise = _ERRORS * math.sqrt(robust[-2] * (1 - robust[-2]) / images)
    fell = robust[-2] - robust[-1] > max(_COLLAPSE * robust[-2], _POINTS, noise)
    still_right = now["val_clean"] > (1 - _COLLAPSE) * before["val_clean"]
    if fell and still_right and now["train_accuracy"] > before["train_accuracy"]:
        return (
            f"catastrophic overfitting: validation robustness fell from {robust[-2]:.1%} to {robust[-1]:.1%} "
            "while accuracy under the training attack rose; more steps, smaller ones or eps warm-up help"
        )
    behind = len(robust) - 1 - best
    if behind >= PATIENCE and behind % PATIENCE == 0:
        return (
            f"robust overfitting: validation robustness has been below its best, {robust[best]:.1%} in epoch "
            f"{best + 1}, for {behind} epochs; that epoch's weights are kept"
        )
    return None
