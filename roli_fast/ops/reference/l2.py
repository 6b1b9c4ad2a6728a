"""The L2 family."""

import torch
from torch import Tensor

from ..checks import state_dtype
from . import draws
from .direction import direction_of
from .shared import advance, in_box, over_batch, pixels, size, sums, with_inertia, write, write_input


def offset(adv: Tensor, clean: Tensor) -> Tensor:
    """adv - clean; NaN counts as 0, so that one pixel does not spoil a sample."""
    d = adv - clean
    return torch.where(d.isnan(), torch.zeros_like(d), d)


def _distance(r: Tensor, s: Tensor, along: Tensor) -> Tensor:
    """||d + s u|| in float64, for ||d|| = r, ||u|| = 1 and <d, u> = along, which determine it."""
    larger = torch.maximum(r, s)
    unit = torch.where(larger > 0, larger, 1.0)
    square = (r / unit) ** 2 + 2 * (s / unit) * (along / unit) + (s / unit) ** 2
    return torch.where(r.isinf(), r, larger * square.clamp(min=0).sqrt())


def _into_ball(distance: Tensor, eps: Tensor, state: torch.dtype) -> Tensor:
    """The factor that brings a point at this distance into the ball; 1 for a point inside."""
    factor = torch.where(distance > eps, eps / distance, 1.0)
    return factor.to(state).double()


def _moved(
    adv: Tensor,
    clean: Tensor,
    grad: Tensor | None,
    step_size: Tensor,
    eps: Tensor,
    lo: float,
    hi: float,
    std: Tensor | None,
) -> Tensor:
    """adv after a step and the projection onto the ball, clamped to the box."""
    d = offset(adv, clean)
    eps = eps.double()
    if grad is None:
        factor = _into_ball(sums(d.double() ** 2).sqrt(), eps, adv.dtype)
        step = torch.zeros_like(adv)
    else:
        towards = direction_of(grad, std, adv.dtype, d.double())
        s = torch.where(towards.norm > 0, step_size.double(), 0.0)
        far = s.isinf() & ~eps.isinf()  # an infinite step goes to the boundary
        s_finite = torch.where(far, 0.0, s)
        distance = _distance(sums(d.double() ** 2).sqrt(), s_finite, towards.along)
        factor = torch.where(far, 0.0, torch.where(eps.isinf(), 1.0, _into_ball(distance, eps, adv.dtype)))
        factor_exact = torch.where(distance > eps, eps / distance, 1.0)
        length = torch.where(far, eps, torch.where(factor == 1, s, factor_exact * s_finite))
        step = towards.times(length)
    inside = torch.where(step == 0, adv, adv + step)  # without a step, -0.0 stays
    outside = clean + (factor.to(adv.dtype) * d + step)
    return in_box(torch.where(factor == 1, inside, outside), adv, clean, lo, hi)


@torch.no_grad()
def l2_step_(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    lo: float,
    hi: float,
    active: Tensor | None,
    out: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
) -> None:
    step_size, eps = size(step_size, adv, adv.dtype), size(eps, adv, adv.dtype)
    moved = _moved(adv, pixels(clean, adv.dtype), grad, step_size, eps, lo, hi, std)
    write_input(out, write(adv, moved, active), mean, std)


@torch.no_grad()
def l2_project_(adv: Tensor, clean: Tensor, eps: float | Tensor, lo: float, hi: float) -> None:
    eps = size(eps, adv, adv.dtype)
    adv.copy_(_moved(adv, pixels(clean, adv.dtype), None, eps, eps, lo, hi, None))


@torch.no_grad()
def l2_apgd_step_(
    adv: Tensor,
    previous: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    lo: float,
    hi: float,
    momentum: float | Tensor,
    active: Tensor | None,
    out: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
) -> None:
    step_size, eps = size(step_size, adv, adv.dtype), size(eps, adv, adv.dtype)
    clean = pixels(clean, adv.dtype)
    z = _moved(adv, clean, grad, step_size, eps, lo, hi, std)
    y = with_inertia(z, adv, previous, clean, size(momentum, adv, adv.dtype))
    d = offset(y, clean)
    factor = _into_ball(sums(d.double() ** 2).sqrt(), eps.double(), adv.dtype)
    x = torch.where(factor == 1, y, clean + factor.to(adv.dtype) * d)
    x = in_box(x, adv, clean, lo, hi)
    write_input(out, advance(adv, previous, x, active), mean, std)


@torch.no_grad()
def l2_start(
    clean: Tensor,
    eps: float | Tensor,
    seed: Tensor,
    lo: float,
    hi: float,
    index: Tensor | None,
) -> Tensor:
    z = draws.normal(seed, index, clean)
    return scaled_start(clean, eps, z, sums(z.double() ** 2).sqrt(), seed, index, lo, hi)


def scaled_start(
    clean: Tensor,
    eps: float | Tensor,
    z: Tensor,
    norm: Tensor,
    seed: Tensor,
    index: Tensor | None,
    lo: float,
    hi: float,
) -> Tensor:
    """clean plus z scaled to a random radius. In n dimensions, the radius of a uniformly random point of the
    ball is distributed like the n-th root of a uniform number."""
    start = torch.empty_like(clean, dtype=state_dtype(clean))
    eps = size(eps, clean, start.dtype)
    clean = pixels(clean, start.dtype)
    radius = over_batch(draws.root(seed, index, clean), clean) * eps.double()
    z = z.to(start.dtype)
    weight = torch.where(norm > 0, radius / torch.where(norm > 0, norm, 1.0), 0.0).to(start.dtype)
    x = clean + torch.where(z == 0, z, z * weight)
    start.copy_(in_box(x, clean, clean, lo, hi))
    return start
