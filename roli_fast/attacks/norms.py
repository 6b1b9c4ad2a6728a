"""The balls in which an attack moves."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from .. import ops
from ..ops.checks import state_dtype


@dataclasses.dataclass(frozen=True)
class Norm:
    """The ops of a norm, from :mod:`roli_fast.ops`, and its distance.

    start: a random point of the ball.
    step_: a step of steepest ascent and the projection, in place.
    project_: the projection alone.
    distance: maps changes (N, elements) in float64 to their norms (N,).
    apgd_step_: a step with momentum; None where there is none.
    """

    start: Callable[..., Tensor]
    step_: Callable[..., None]
    project_: Callable[..., None]
    distance: Callable[[Tensor], Tensor]
    apgd_step_: Callable[..., None] | None = None


def _of_order(order: float) -> Callable[[Tensor], Tensor]:
    def distance(change: Tensor) -> Tensor:
        return torch.linalg.vector_norm(change, order, dim=1)

    return distance


def _largest(change: Tensor) -> Tensor:
    return change.abs().amax(dim=1)


NORMS = {
    "linf": Norm(ops.linf_start, ops.linf_step_, ops.linf_project_, _largest, ops.linf_apgd_step_),
    "l2": Norm(ops.l2_start, ops.l2_step_, ops.l2_project_, _of_order(2), ops.l2_apgd_step_),
    "l1": Norm(ops.l1_start, ops.l1_step_, ops.l1_project_, _of_order(1)),
}

DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}  # in which gradients are measured


def distance(norm: str, change: Tensor) -> Tensor:
    """The norm of each change (N, ...), in float64: (N,)."""
    flat = change.reshape(len(change), -1).double()
    return NORMS[norm].distance(flat) if flat.shape[1] > 0 else flat.sum(dim=1)


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
