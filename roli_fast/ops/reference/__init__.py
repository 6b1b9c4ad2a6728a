"""The ops in plain torch: their definition, and the backend that runs wherever torch does.

Arguments have been checked and are complete: defaults stand in the schemas. Element-wise ops give the same
bits as the native kernels. Where a sample's sums decide (L2, L1, momentum), they are taken in float64 and
what follows from them is rounded to the state's dtype before it meets an element: the order in which a
backend adds hardly ever shows.
"""

from .keep_best import keep_best_
from .l1 import l1_project_, l1_start, l1_step_
from .l2 import l2_apgd_step_, l2_project_, l2_start, l2_step_
from .linf import linf_apgd_step_, linf_project_, linf_start, linf_step_
from .momentum import momentum_
from .prepare import prepare

__all__ = [
    "keep_best_",
    "l1_project_",
    "l1_start",
    "l1_step_",
    "l2_apgd_step_",
    "l2_project_",
    "l2_start",
    "l2_step_",
    "linf_apgd_step_",
    "linf_project_",
    "linf_start",
    "linf_step_",
    "momentum_",
    "prepare",
]
