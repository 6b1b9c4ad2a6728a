"""Accuracy on clean and on attacked images, with intervals."""

from .accuracy import Accuracy, Difference, difference, evaluate

__all__ = ["Accuracy", "Difference", "difference", "evaluate"]
