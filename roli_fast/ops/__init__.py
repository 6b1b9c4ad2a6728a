"""The fused ops, which need as few passes over memory per attack step as possible."""

from .choice import backend, backends
from .cross_entropy import cross_entropy
from .keep_best import keep_best_
from .l1 import l1_project_, l1_start, l1_step, l1_step_
from .l2 import l2_apgd_step_, l2_project_, l2_start, l2_step, l2_step_
from .linf import linf_apgd_step_, linf_project_, linf_start, linf_step, linf_step_
from .momentum import momentum_
from .prepare import prepare

__all__ = [
    "backend",
    "backends",
    "cross_entropy",
    "keep_best_",
    "l1_project_",
    "l1_start",
    "l1_step",
    "l1_step_",
    "l2_apgd_step_",
    "l2_project_",
    "l2_start",
    "l2_step",
    "l2_step_",
    "linf_apgd_step_",
    "linf_project_",
    "linf_start",
    "linf_step",
    "linf_step_",
    "momentum_",
    "prepare",
]
