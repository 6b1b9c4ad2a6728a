"""The fused ops: one pass over memory per attack step."""

from .choice import backend, backends
from .linf import linf_project_, linf_start, linf_step, linf_step_
from .prepare import prepare

__all__ = ["backend", "backends", "linf_project_", "linf_start", "linf_step", "linf_step_", "prepare"]
