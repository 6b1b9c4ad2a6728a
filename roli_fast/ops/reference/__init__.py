"""The ops in plain torch. These functions define the ops, and they are the backend that runs wherever torch
does.

Arguments have been checked and are complete, since the schemas have the defaults. Element-wise ops give the
same bits as the native kernels. In ops that need a sample's sums (L2, L1, momentum), the sums are taken in
float64, and what follows from them is rounded to the state's dtype before it is applied to elements. So the
order in which a backend adds hardly ever makes a difference.
"""

from .cross_entropy import cross_entropy
from .keep_best import keep_best_
from .l1 import l1_project_, l1_start, l1_step_
from .l2 import l2_apgd_step_, l2_project_, l2_start, l2_step_
from .linf import linf_apgd_step_, linf_project_, linf_start, linf_step_
from .momentum import momentum_
from .prepare import prepare

__all__ = [
    "cross_entropy",
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
