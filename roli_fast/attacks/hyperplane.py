"""The shortest way from a point to a hyperplane, within a box."""

import torch
from torch import Tensor
from torch.linalg import vecdot

# Newton's method on a concave, piecewise linear function ends exactly after finitely many steps, in practice
# 3 to 8 on images; so many are never needed.
_MOST_STEPS = 100


def to_hyperplane(norm: str, x: Tensor, w: Tensor, gap: Tensor, lo: float, hi: float) -> Tensor:
    """The change d (N, D) of least norm with w . d = gap and lo <= x + d <= hi (Croce and Hein, Minimally
    distorted Adversarial Examples with a Fast Adaptive Boundary Attack, ICML 2020, section 2.2); where there
    is none, the one to the corner of the box that comes nearest.

    norm: "linf", "l2" or "l1". x: (N, D) in the box. w: (N, D). gap: (N,).
    """
    towards = torch.where(gap[:, None] < 0, -w, w).sign()  # along which w . d comes nearer to gap
    weight, gap = w.abs(), gap.abs()
    room = torch.where(towards > 0, hi - x, x - lo).clamp_(min=0)
    if norm == "l1":
        return towards * _heaviest_first(weight, room, gap)
    pace = torch.ones_like(weight) if norm == "linf" else weight
    return towards * _all_at_once(weight, pace, room, gap)


def _all_at_once(weight: Tensor, pace: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """min(t pace, room) with the least t for which its product with weight is gap: all elements start at
    their pace, and stop at the wall."""
    moving = torch.where(room > 0, pace, torch.zeros_like(pace))
    t, distance = torch.zeros_like(gap), torch.zeros_like(room)
    for _ in range(_MOST_STEPS):
        speed = vecdot(weight, moving)
        left = gap - vecdot(weight, distance)
        further = torch.where((speed > 0) & (left > 0), left / speed, torch.zeros_like(left))
        arrived = ~(further > 1e-6 * t)  # it stays there: samples do not affect each other
        if arrived.all():
            break
        t = t + further.masked_fill(arrived, 0)
        distance = torch.minimum(t[:, None] * pace, room)
        moving = torch.where(distance < room, pace, torch.zeros_like(pace))
    unreachable = vecdot(weight, room) < gap
    return torch.where(unreachable[:, None], room, distance)


def _heaviest_first(weight: Tensor, room: Tensor, gap: Tensor) -> Tensor:
    """Elements go to the wall one after the other, those of the largest weight first, the last one part of
    the way."""
    order = weight.argsort(dim=1, descending=True, stable=True)
    weights, rooms = weight.gather(1, order), room.gather(1, order)
    gains = weights * rooms
    before = gains.cumsum(dim=1, dtype=torch.float64) - gains
    left = (gap[:, None] - before).clamp(min=0)
    part = torch.where(weights > 0, left / weights, torch.zeros_like(left)).to(room.dtype)
    return torch.empty_like(room).scatter_(1, order, torch.minimum(part, rooms))
