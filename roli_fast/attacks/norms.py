"""The balls in which an attack moves."""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import ops
from ..ops.checks import state_dtype


@dataclasses.dataclass(frozen=True)
class Norm:
    """The ops of a norm, from :mod:`roli_fast.ops`, and its order.

    start: a random point of the ball.
    step_: a step of steepest ascent and the projection, in place.
    project_: the projection alone.
    order: as :func:`torch.linalg.vector_norm` takes it.
    apgd_step_: a step with momentum; None where there is none.
    """

    start: Callable[..., Tensor]
    step_: Callable[..., None]
    project_: Callable[..., None]
    order: float
    apgd_step_: Callable[..., None] | None = None


NORMS = {
    "linf": Norm(ops.linf_start, ops.linf_step_, ops.linf_project_, math.inf, ops.linf_apgd_step_),
    "l2": Norm(ops.l2_start, ops.l2_step_, ops.l2_project_, 2, ops.l2_apgd_step_),
    "l1": Norm(ops.l1_start, ops.l1_step_, ops.l1_project_, 1),
}

DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}  # in which gradients are measured


def distance(norm: str, change: Tensor) -> Tensor:
    """The norm of each change (N, ...), in float64: (N,)."""
    flat = change.double().reshape(len(change), math.prod(change.shape[1:]))
    order = NORMS[norm].order if flat.shape[1] > 0 else 1  # there is no largest of no elements
    return torch.linalg.vector_norm(flat, order, dim=1)


def movable(gradient: Tensor, adv: Tensor, lo: float, hi: float) -> Tensor:
    """The gradient without the elements that lead out of the box: a sparse step would spend itself on them
    and stop short of the optimum (Tramer and Boneh 2019, appendix, on clipped elements)."""
    stuck = ((adv >= hi) & (gradient > 0)) | ((adv <= lo) & (gradient < 0))
    return gradient.masked_fill(stuck, 0)


def uniform_draws(like: Tensor, seed: Tensor, index: Tensor) -> Tensor:
    """Uniform in (-1, 1): like's shape (N, ...), in a state's dtype, a function of seed (2,), index (N,) and
    element."""
    zeros = torch.zeros_like(like, dtype=state_dtype(like))
    return ops.linf_start(zeros, 1.0, seed, -1, 1, index=index)


def normal_draws(like: Tensor, seed: Tensor, index: Tensor) -> Tensor:
    """As :func:`uniform_draws`, of a standard normal distribution."""
    uniform = uniform_draws(like, seed, index)
    inside = 1 - torch.finfo(uniform.dtype).eps / 2  # the ends of a normal distribution are infinite
    return torch.erfinv(uniform.clamp_(-inside, inside)) * 2**0.5
