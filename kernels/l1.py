"""The L1 family. a: adversarial, c: clean, g: gradient, d = a - c, v = |d|, u: the room within the box in the
direction of d, e: eps, t: the threshold of the projection.

A program has a sample to itself and goes over it many times: everything but the last pass is a search.
"""

from functools import partial

import triton
import triton.language as tl
from torch import Tensor

from .draws import random_start
from .elements import block_of, clamp, divide, first_of, image, in_box, is_active, rounded, size, widened
from .layout import (
    coordinate,
    in_layout_of,
    launch_sample_each,
    sized,
    strided,
    updated_by_sample,
    written,
)
from .prepare import channel_at, normalized


@triton.jit
def _key(grad, place, mask, std, wide: tl.constexpr):
    """The gradient and its magnitude's bits, which are in the order of the magnitudes."""
    values, std_stride, channel_stride, channels = std
    g = widened(tl.load(grad + place, mask, 0.0)).to(wide)
    g = tl.where(g == g, g, 0.0)
    key = tl.abs(g)
    if values is not None:
        channel = channel_at(place, channel_stride, channels)
        key = divide(key, tl.load(values + channel * std_stride).to(wide))
    if wide == tl.float64:
        return g, key.to(tl.int64, bitcast=True)
    else:
        return g, key.to(tl.int32, bitcast=True)


@triton.jit
def _lowest_key(
    grad, k, elements, std, wide: tl.constexpr, WHOLE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """A key that the k largest elements reach, and all that equal the last of these. Each pass finds two of
    its bits."""
    word: tl.constexpr = tl.int64 if wide == tl.float64 else tl.int32
    low = tl.zeros((), word)
    at_least = tl.zeros((), tl.int64) + elements
    shift = tl.full((), 61 if wide == tl.float64 else 29, word)
    while (shift >= 0) & (at_least != k):
        one = tl.full((), 1, word) << shift
        counts_1 = tl.zeros((BLOCK,), tl.int32)
        counts_2 = tl.zeros((BLOCK,), tl.int32)
        counts_3 = tl.zeros((BLOCK,), tl.int32)
        for number in range(0, tl.cdiv(elements, BLOCK)):
            place, mask = block_of(number, elements, WHOLE, WIDE, BLOCK)
            _, key = _key(grad, place, mask, std, wide)
            counts_1 += (key >= low + one).to(tl.int32)
            counts_2 += (key >= low + 2 * one).to(tl.int32)
            counts_3 += (key >= low + 3 * one).to(tl.int32)
        reached_1 = tl.sum(counts_1.to(tl.int64))
        reached_2 = tl.sum(counts_2.to(tl.int64))
        reached_3 = tl.sum(counts_3.to(tl.int64))
        if reached_1 >= k:
            low += one
            at_least = reached_1
        if reached_2 >= k:
            low += one
            at_least = reached_2
        if reached_3 >= k:
            low += one
            at_least = reached_3
        shift = tl.where(shift == 1, 0, shift - 2)  # the bits are odd in number
    return low


@triton.jit
def _farthest(
    adv, clean, elements, state: tl.constexpr, WHOLE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """The largest distance of an element from clean."""
    far = tl.zeros((BLOCK,), state)
    for number in range(0, tl.cdiv(elements, BLOCK)):
        place, mask = block_of(number, elements, WHOLE, WIDE, BLOCK)
        a = tl.load(adv + place, mask, 0.0)
        v, _, _ = _distance_and_room(a, image(tl.load(clean + place, mask, 0), state), 0.0, 0.0, state)
        far = tl.where(v > far, v, far)
    return tl.max(far)


@triton.jit
def _ascend(
    adv, grad, clean, s, e, share, elements, std, WHOLE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """Sparse steepest ascent, written to adv. Where it makes a NaN, the clean image is written."""
    state: tl.constexpr = adv.dtype.element_ty
    double: tl.constexpr = grad.dtype.element_ty == tl.float64 or state == tl.float64
    wide: tl.constexpr = tl.float64 if double else tl.float32
    every = (tl.zeros((), tl.int64) + elements).to(tl.float64)
    k = clamp(share.to(tl.float64) * every + 0.5, 1.0, every).to(tl.int64)
    low = _lowest_key(grad, k, elements, std, wide, WHOLE, WIDE, BLOCK)

    counts = tl.zeros((BLOCK,), tl.int32)
    for number in range(0, tl.cdiv(elements, BLOCK)):
        place, mask = block_of(number, elements, WHOLE, WIDE, BLOCK)
        g, key = _key(grad, place, mask, std, wide)
        counts += ((key >= low) & (g != 0)).to(tl.int32)
    count = tl.sum(counts.to(tl.int64)).to(tl.float64)
    length = s.to(tl.float64) / tl.where(count > 0, count, 1.0)
    # Beyond that, nothing but what moves is left in the ball.
    far = 2 * (e.to(tl.float64) + _farthest(adv, clean, elements, state, WHOLE, WIDE, BLOCK).to(tl.float64))
    by = tl.where(length < far, length, far).to(state)

    for number in range(0, tl.cdiv(elements, BLOCK)):
        place, mask = block_of(number, elements, WHOLE, WIDE, BLOCK)
        g, key = _key(grad, place, mask, std, wide)
        a = tl.load(adv + place, mask)
        c = image(tl.load(clean + place, mask), state)
        moves = key >= low
        x = tl.where(moves & (g > 0), a + by, tl.where(moves & (g < 0), a - by, a))
        tl.store(adv + place, tl.where((x == x) | (a != a), x, c), mask)
    tl.debug_barrier()  # what a thread reads from here on, another may have written


@triton.jit
def _distance_and_room(a, c, lo, hi, state: tl.constexpr):
    """v, u and whether d > 0. v is capped, so that its sums are finite."""
    d = a - c
    up = d > 0
    v = tl.where(d == d, tl.abs(d), 0.0)
    largest: tl.constexpr = 2.0**1000 if state == tl.float64 else 3.4028234663852886e38
    v = tl.where(v > largest, largest, v)
    u = tl.where(up, tl.full((), hi, state) - c, c - tl.full((), lo, state))
    return v, tl.where(u > 0, u, 0.0), up


@triton.jit
def _sums(adv, clean, t, elements, box, WHOLE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """What sum(min(max(v - t, 0), u)) is near t, as total - slope t."""
    state: tl.constexpr = adv.dtype.element_ty
    totals = tl.zeros((BLOCK,), tl.float64)
    slopes = tl.zeros((BLOCK,), tl.int32)
    for number in range(0, tl.cdiv(elements, BLOCK)):
        place, mask = block_of(number, elements, WHOLE, WIDE, BLOCK)
        a = tl.load(adv + place, mask, 0.0)
        c = image(tl.load(clean + place, mask, 0), state)
        v, u, _ = _distance_and_room(a, c, box[0], box[1], state)
        v, u = v.to(tl.float64), u.to(tl.float64)
        rest = v - t
        there = mask & (rest > 0)
        falls = there & (rest < u)
        totals += tl.where(falls, v, tl.where(there, u, 0.0))
        slopes += falls.to(tl.int32)
    return tl.sum(totals), tl.sum(slopes.to(tl.int64)).to(tl.float64)


@triton.jit
def _threshold(adv, clean, e, elements, box, WHOLE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The t >= 0 for which sum(min(max(v - t, 0), u)) is e, or 0 if that sum is at most e for t = 0.

    Newton's method, exact once it meets the root's own linear piece, within a bracket that is halved (by the
    bits of its ends, 63 times at most) where that leads nowhere or goes on for long.
    """
    t = tl.zeros((), tl.float64)
    total, slope = _sums(adv, clean, t, elements, box, WHOLE, WIDE, BLOCK)
    if total > e:
        left, right = tl.zeros((), tl.float64), tl.full((), float("inf"), tl.float64)
        searching = e > 0
        t = tl.where(searching, 0.0, right)
        steps = tl.zeros((), tl.int32)
        while searching:
            linear = slope > 0
            newton = (total - e) / tl.where(linear, slope, 1.0)
            above = tl.where(linear, newton > t, total > e)
            left, right = tl.where(above, t, left), tl.where(above, right, t)
            low, high = left.to(tl.int64, bitcast=True), right.to(tl.int64, bitcast=True)
            middle = (low + ((high - low) >> 1)).to(tl.float64, bitcast=True)
            settled = tl.where(linear, tl.abs(newton - t) <= 2.0**-50 * t, tl.abs(total - e) <= 2.0**-46 * e)
            leads = linear & (newton > left) & (newton < right) & ((steps < 16) | (steps % 2 == 0))
            searching = (not settled) & (middle > left)
            if searching:
                t = tl.where(leads, newton, middle)
                total, slope = _sums(adv, clean, t, elements, box, WHOLE, WIDE, BLOCK)
            else:
                t = tl.where(settled, tl.where(linear, newton, t), right)
            steps += 1
    return t


_INTEGERS = ["elements", "step_stride", "eps_stride", "sparsity_stride", "active_stride"]
_CHANNEL_INTEGERS = ["mean_stride", "std_stride", "channel_stride", "channels"]


@triton.jit(do_not_specialize=_INTEGERS + _CHANNEL_INTEGERS)
def step_kernel(
    elements,
    adv,
    grad,
    clean,
    out,
    step_size: tl.float64,
    step_sizes,
    step_stride,
    eps: tl.float64,
    epsilons,
    eps_stride,
    sparsity: tl.float64,
    sparsities,
    sparsity_stride,
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
    WHOLE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A step, or, without grad, a projection."""
    state: tl.constexpr = adv.dtype.element_ty
    n = tl.program_id(0).to(tl.int64)
    first = first_of(n, elements, WHOLE)
    moves = is_active((active, active_stride), n)
    box = (lo, hi)
    by = (mean, mean_stride, std, std_stride, channel_stride, channels)
    deviations = (std, std_stride, channel_stride, channels)
    e = size((eps, epsilons, eps_stride), n, state)
    adv += first
    clean += first
    t = tl.zeros((), tl.float64)
    if moves:
        if grad is not None:
            s = size((step_size, step_sizes, step_stride), n, state)
            share = size((sparsity, sparsities, sparsity_stride), n, state)
            _ascend(adv, grad + first, clean, s, e, share, elements, deviations, WHOLE, WIDE, BLOCK)
        t = _threshold(adv, clean, e.to(tl.float64), elements, box, WHOLE, WIDE, BLOCK)
    for number in range(0, tl.cdiv(elements, BLOCK)):
        place, mask = block_of(number, elements, WHOLE, WIDE, BLOCK)
        x = tl.load(adv + place, mask)
        if moves:
            x = _projected(x, image(tl.load(clean + place, mask), state), t, box, state)
            tl.store(adv + place, x, mask)
        if out is not None:
            tl.store(out + first + place, rounded(normalized(x, place, by), out.dtype.element_ty), mask)


@triton.jit
def _projected(a, c, t, box, state: tl.constexpr):
    v, u, up = _distance_and_room(a, c, box[0], box[1], state)
    v, u = v.to(tl.float64), u.to(tl.float64)
    rest = tl.where(v - t > 0, v - t, 0.0)
    delta = tl.where(rest < u, rest, u).to(state)
    x = tl.where(t > 0, tl.where(up, c + delta, c - delta), a)
    return in_box(x, a, c, box[0], box[1], state)


def l1_step_(
    adv: Tensor,
    clean: Tensor,
    eps: float | Tensor,
    lo: float,
    hi: float,
    grad: Tensor | None = None,
    step_size: float | Tensor = 0.0,
    sparsity: float | Tensor = 1.0,
    active: Tensor | None = None,
    out: Tensor | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> None:
    """A step, or, without grad, a projection."""
    if adv.numel() == 0:
        return
    with updated_by_sample(adv) as state, written(out, like=state) as model_input:
        launch_sample_each(
            step_kernel,
            state,
            state,
            grad if grad is None else in_layout_of(state, grad),
            in_layout_of(state, clean),
            model_input,
            *sized(step_size, eps, sparsity),
            lo,
            hi,
            *strided(active, mean, std),
            *coordinate(state, 1),
        )


l1_project_ = l1_step_
l1_start = partial(random_start, laplace=True)
