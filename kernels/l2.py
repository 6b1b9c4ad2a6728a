"""The L2 family. a: adversarial, p: previous, c: clean, g: gradient, s: step size, e: eps, m: momentum."""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .direction import SQUARES, direction, offset, take_sums, times, total, unit, weight
from .draws import random_start
from .elements import (
    block_of,
    first_of,
    image,
    in_box,
    is_active,
    rounded,
    sample_and_part,
    size,
    widened,
    with_inertia,
)
from .layout import (
    PARTS,
    coordinate,
    cut,
    in_layout_of,
    launch_by_sample,
    sized,
    strided,
    updated_by_sample,
    updated_in_layout_of,
    written,
)
from .prepare import channel_at, normalized


@triton.jit
def _distance(r, s, along):
    """||d + s u|| for ||d|| = r, ||u|| = 1 and <d, u> = along, which determine it."""
    larger = tl.where(r > s, r, s)
    by = tl.where(larger > 0, larger, 1.0)
    square = (r / by) * (r / by) + 2 * (s / by) * (along / by) + (s / by) * (s / by)
    square = tl.where(square < 0, 0.0, square)
    return tl.where(r == float("inf"), r, larger * tl.sqrt(square))


@triton.jit
def _into_ball(distance, e):
    """The factor that brings a point at this distance into the ball; 1 for a point inside."""
    outside = distance > e
    return tl.where(outside, e / tl.where(outside, distance, 1.0), 1.0)


@triton.jit
def _scales(partials, n, parts, grad_dtype: tl.constexpr, s, e, state: tl.constexpr, PARTS: tl.constexpr):
    """What follows from a sample's sums: whether the gradient has infinite elements, the power of two and the
    weight that make a step of it, and the factor of d."""
    r = tl.sqrt(total(partials, n, SQUARES, parts, PARTS))
    e = e.to(tl.float64)
    if grad_dtype is None:
        return False, 1.0, 0.0, _into_ball(r, e).to(state)
    else:
        infinite, power, norm, along = direction(partials, n, parts, grad_dtype, state, True, 2, PARTS)
        s = tl.where(norm > 0, s.to(tl.float64), 0.0)
        anywhere = e == float("inf")
        far = (s == float("inf")) & (e != float("inf"))  # an infinite step goes to the boundary
        s_finite = tl.where(far, 0.0, s)
        exact = _into_ball(_distance(r, s_finite, along), e)
        factor = tl.where(far, 0.0, tl.where(anywhere, 1.0, exact)).to(state)
        length = tl.where(far, e, tl.where(factor == 1, s, exact * s_finite))
        return infinite, power, weight(length, norm, state), factor


@triton.jit
def _moved(a, c, grad, place, mask, scales, box, by, state: tl.constexpr):
    """a after a step and the projection onto the ball, clamped to the box. Without a step, -0.0 stays."""
    infinite, power, weight, factor = scales
    d = offset(a, c)
    if grad is None:
        x = tl.where(factor == 1, a, c + factor * d)
    else:
        _, _, std, std_stride, channel_stride, channels = by
        g = widened(tl.load(grad + place, mask, 0.0))
        if std is None:
            step = times(unit(g, infinite, power, None, state), weight)
        else:
            deviation = tl.load(std + channel_at(place, channel_stride, channels) * std_stride)
            step = times(unit(g, infinite, power, deviation, state), weight)
        x = tl.where(factor == 1, tl.where(step == 0, a, a + step), c + (factor * d + step))
    return in_box(x, a, c, box[0], box[1], state)


_INTEGERS = ["elements", "parts", "blocks", "step_stride", "eps_stride", "momentum_stride", "active_stride"]
_CHANNEL_INTEGERS = ["mean_stride", "std_stride", "channel_stride", "channels"]


@triton.jit(do_not_specialize=_INTEGERS + _CHANNEL_INTEGERS)
def step_kernel(
    elements,
    parts,
    blocks,
    partials,
    distances,
    adv,
    previous,
    grad,
    clean,
    out,
    step_size: tl.float64,
    step_sizes,
    step_stride,
    eps: tl.float64,
    epsilons,
    eps_stride,
    momentum: tl.float64,
    momenta,
    momentum_stride,
    lo: tl.float64,
    hi: tl.float64,
    active,
    active_stride,
    mean,
    mean_stride,
    std,
    std_stride,
    channel_stride,
    channels,
    MEASURE: tl.constexpr,
    PARTS: tl.constexpr,
    WHOLE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A step, with previous one of APGD, or, without grad, a projection.

    MEASURE: only measure, for APGD's step, the square of the distance from clean before the projection.
    """
    state: tl.constexpr = adv.dtype.element_ty
    n, part = sample_and_part(parts)
    moves = is_active((active, active_stride), n)
    box = (lo, hi)
    by = (mean, mean_stride, std, std_stride, channel_stride, channels)
    e = size((eps, epsilons, eps_stride), n, state)
    s = size((step_size, step_sizes, step_stride), n, state)
    scales = _scales(partials, n, parts, None if grad is None else grad.dtype.element_ty, s, e, state, PARTS)
    first = first_of(n, elements, WHOLE)
    begin, end = part * blocks, tl.minimum((part + 1) * blocks, tl.cdiv(elements, BLOCK))
    adv += first
    clean += first
    if grad is not None:
        grad += first
    if previous is not None:
        previous += first
        m = size((momentum, momenta, momentum_stride), n, state)
    if MEASURE:
        squares = tl.zeros((), tl.float64)
        if moves:
            for number in range(begin, end):
                place, mask = block_of(number, elements, WHOLE, WIDE, BLOCK)
                a = tl.load(adv + place, mask, 0.0)
                c = image(tl.load(clean + place, mask, 0), state)
                z = _moved(a, c, grad, place, mask, scales, box, by, state)
                y = with_inertia(z, a, tl.load(previous + place, mask, 0.0), c, m)
                d = tl.where(mask, offset(y, c), 0.0).to(tl.float64)
                squares += tl.sum(d * d)
        tl.store(distances + n * parts + part, squares)
    else:
        if previous is not None:
            every = tl.arange(0, PARTS)
            r = tl.sqrt(tl.sum(tl.load(distances + n * parts + every, every < parts, 0.0)))
            factor = _into_ball(r, e.to(tl.float64)).to(state)
        for number in range(begin, end):
            place, mask = block_of(number, elements, WHOLE, WIDE, BLOCK)
            a = tl.load(adv + place, mask, 0.0)
            x = a
            if moves:
                c = image(tl.load(clean + place, mask, 0), state)
                x = _moved(a, c, grad, place, mask, scales, box, by, state)
                if previous is not None:
                    y = with_inertia(x, a, tl.load(previous + place, mask, 0.0), c, m)
                    x = tl.where(factor == 1, y, c + factor * offset(y, c))
                    x = in_box(x, a, c, lo, hi, state)
                    tl.store(previous + place, a, mask)
                tl.store(adv + place, x, mask)
            if out is not None:
                given = rounded(normalized(x, place, by), out.dtype.element_ty)
                tl.store(out + first + place, given, mask)


def l2_step_(
    adv: Tensor,
    clean: Tensor,
    eps: float | Tensor,
    lo: float,
    hi: float,
    previous: Tensor | None = None,
    grad: Tensor | None = None,
    step_size: float | Tensor = 0.0,
    momentum: float | Tensor = 1.0,
    active: Tensor | None = None,
    out: Tensor | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> None:
    """A step, with previous one of APGD, or, without grad, a projection."""
    if adv.numel() == 0:
        return
    with (
        updated_by_sample(adv) as state,
        updated_in_layout_of(state, previous) as before,
        written(out, like=state) as model_input,
    ):
        grad = grad if grad is None else in_layout_of(state, grad)
        clean = in_layout_of(state, clean)
        partials = take_sums(state, state, grad, clean, active, std)
        distances = None
        if before is not None:
            parts, _ = cut(state.numel() // len(state))
            distances = torch.empty((len(state), parts), dtype=torch.float64, device=state.device)
        for measure in (False,) if before is None else (True, False):
            launch_by_sample(
                step_kernel,
                state,
                partials,
                distances,
                state,
                before,
                grad,
                clean,
                model_input,
                *sized(step_size, eps, momentum),
                lo,
                hi,
                *strided(active, mean, std),
                *coordinate(state, 1),
                MEASURE=measure,
                PARTS=PARTS,
            )


l2_apgd_step_ = l2_project_ = l2_step_
l2_start = partial(random_start, laplace=False)
