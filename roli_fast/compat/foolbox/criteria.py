"""Criteria, which say what counts as adversarial."""

from typing import Any, NamedTuple, NoReturn

from torch import Tensor

from ...checks import refuse
from ..core import as_classes, no_such


def raw(tensor: Any) -> Any:
    """The tensor inside an eagerpy tensor; anything else is returned unchanged."""
    return getattr(tensor, "raw", tensor)


class Misclassification:
    """Any class other than the label is adversarial. labels: (N,) int64."""

    def __init__(self, labels: Any):
        self.labels = labels

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.labels!r})"

    def __call__(self, perturbed: Any, outputs: Any) -> Any:
        return outputs.argmax(-1) != self.labels


class TargetedMisclassification:
    """Only the target class is adversarial. target_classes: (N,) int64."""

    def __init__(self, target_classes: Any):
        self.target_classes = target_classes

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target_classes!r})"

    def __call__(self, perturbed: Any, outputs: Any) -> Any:
        return outputs.argmax(-1) == self.target_classes


class Goal(NamedTuple):
    """What an attack is to reach or leave. classes: (N,) int64, labels or, if targeted, targets."""

    classes: Tensor
    targeted: bool


def goal(criterion: Any) -> Goal:
    """The goal that a criterion of foolbox or of this module stands for. Labels stand for misclassification.

    Raises ValueError for other criteria, and for subclasses, which may judge differently.
    """
    kind = type(criterion)
    if kind in (Misclassification, TargetedMisclassification) or kind.__module__ == "foolbox.criteria":
        if kind.__name__ == "Misclassification":
            return Goal(as_classes(raw(criterion.labels)), False)
        if kind.__name__ == "TargetedMisclassification":
            return Goal(as_classes(raw(criterion.target_classes)), True)
    if not isinstance(raw(criterion), Tensor):
        accepted = "labels (N,), Misclassification(labels) or TargetedMisclassification(target_classes)"
        refuse("criterion", f"a {kind.__module__}.{kind.__name__}", accepted)
    return Goal(as_classes(raw(criterion)), False)


__all__ = ["Misclassification", "TargetedMisclassification"]


def __getattr__(name: str) -> NoReturn:
    no_such("foolbox.criteria", name, __all__)
