"""Accuracy on clean and on attacked images, with intervals."""

from .accuracy import Accuracy, Difference, difference
from .evaluate import Evaluation, evaluate
from .records import SavedBatch, saved

__all__ = ["Accuracy", "Difference", "Evaluation", "SavedBatch", "difference", "evaluate", "saved"]
