"""The balls in which an attack moves."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from .. import ops


@dataclasses.dataclass(frozen=True)
class Norm:
    """start: a random point of the ball. step_: one step of steepest ascent and the projection, in place.
    project_: the projection alone.

    distance: of a change (N, elements) in float64, (N,).
    """

    start: Callable[..., Tensor]
    step_: Callable[..., None]
    project_: Callable[..., None]
    distance: Callable[[Tensor], Tensor]


def _of_order(order: float) -> Callable[[Tensor], Tensor]:
    def distance(change: Tensor) -> Tensor:
        return torch.linalg.vector_norm(change, order, dim=1)

    return distance


NORMS = {
    "linf": Norm(ops.linf_start, ops.linf_step_, ops.linf_project_, lambda change: change.abs().amax(dim=1)),
    "l2": Norm(ops.l2_start, ops.l2_step_, ops.l2_project_, _of_order(2)),
    "l1": Norm(ops.l1_start, ops.l1_step_, ops.l1_project_, _of_order(1)),
}
