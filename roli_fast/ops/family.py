"""The ops that every family has: their schemas, and steps that return a new tensor."""

from typing import Any

import torch
from torch import Tensor

from . import checks
from .registry import Function, Op, define

_STEP = "Tensor grad, Tensor clean, Size step_size, Size eps, float lo=0.0, float hi=1.0"
_INPUT = "Tensor? active=None, Tensor(c!)? out=None, Tensor? mean=None, Tensor? std=None"


def define_step(family: str, share: str = "", check: Function = checks.step) -> Op:
    """share: the schema of a further size that only this family's step has; check must know it."""
    arguments = ", ".join(filter(None, ("Tensor(a!) adv", _STEP, share, _INPUT)))
    return define(family, f"{family}_step_({arguments}) -> ()", check=check)


def define_apgd_step(family: str) -> Op:
    arguments = f"Tensor(a!) adv, Tensor(b!) previous, {_STEP}, Size momentum=0.75, {_INPUT}"
    return define(family, f"{family}_apgd_step_({arguments}) -> ()", check=checks.apgd_step)


def define_project(family: str) -> Op:
    arguments = "Tensor(a!) adv, Tensor clean, Size eps, float lo=0.0, float hi=1.0"
    return define(family, f"{family}_project_({arguments}) -> ()", check=checks.project)


def define_start(family: str) -> Op:
    def fake(clean: Tensor, **_: Any) -> Tensor:
        return torch.empty_like(clean, dtype=checks.state_dtype(clean))

    arguments = "Tensor clean, Size eps, Tensor seed, float lo=0.0, float hi=1.0, *, Tensor? index=None"
    return define(family, f"{family}_start({arguments}) -> Tensor", check=checks.start, fake=fake)


def on_a_copy(step_: Function, adv: Tensor, *args: Any, **options: Any) -> Tensor:
    """The result of a step on a copy of adv, which itself keeps its values and may require a gradient."""
    stepped = adv.detach().clone() if isinstance(adv, Tensor) else adv
    step_(stepped, *args, **options)
    return stepped
