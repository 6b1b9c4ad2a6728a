"""How the gradient with respect to the input is computed fast, and the model left untouched."""

from .attack_view import AttackView, ViewReport
from .graphs import GraphRunner
from .input_gradient import InputGradient, widened
from .modes import class_logits, eval_mode, own_output
from .outputs import Output, select
from .precision import PRECISIONS

__all__ = [
    "PRECISIONS",
    "AttackView",
    "GraphRunner",
    "InputGradient",
    "Output",
    "ViewReport",
    "class_logits",
    "eval_mode",
    "own_output",
    "select",
    "widened",
]
