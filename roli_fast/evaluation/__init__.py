"""Accuracy on clean and on attacked images, with intervals, and how much robustness transfers."""

from .accuracy import Accuracy, Difference, difference
from .advice import TRANSFERRED, Advice, advise, advise_between, advise_without_head, transferred
from .evaluate import Evaluation, evaluate
from .linear_head import Criterion, LinearHead, LossBound
from .records import SavedBatch, saved
from .sensitivity import Sensitivity, sensitivity, sensitivity_attack
from .transfer import transfer
from .transfer_result import AttackOutcome, Contradictions, Transfer

__all__ = [
    "TRANSFERRED",
    "Accuracy",
    "Advice",
    "AttackOutcome",
    "Contradictions",
    "Criterion",
    "Difference",
    "Evaluation",
    "LinearHead",
    "LossBound",
    "SavedBatch",
    "Sensitivity",
    "Transfer",
    "advise",
    "advise_between",
    "advise_without_head",
    "difference",
    "evaluate",
    "saved",
    "sensitivity",
    "sensitivity_attack",
    "transfer",
    "transferred",
]
