"""A gradient as a direction, whatever its scale: the Triton twin of ``ops/reference/direction.py``.

A first kernel sums over the parts of each sample, in float64, and later kernels add up these sums. There are
no atomics, so that the bits are always the same.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elements import block_of, divide, first_of, image, is_active, sample_and_part, widened
from .layout import coordinate, cut, launch_by_sample, strided
from .prepare import channel_at

# The sums of a sample: each is a row, with an element for each part. The last two are three rows each:
# gradients in float64 are summed at three scales, one of which stays clear of float64's limits.
SQUARES = tl.constexpr(0)  # of d = a - c
INFINITE = tl.constexpr(1)  # gradient elements
ALONG_INFINITE = tl.constexpr(2)  # the product of their signs and d
TOTAL = tl.constexpr(3)  # of the powers of finite elements
ALONG = tl.constexpr(4)  # the product of these elements and d
ROWS = tl.constexpr(9)

_DOWN = tl.constexpr(2.0**-700)
_UP = tl.constexpr(2.0**700)
_CLEAR = tl.constexpr(2.0**800)
_UNCLEAR = tl.constexpr(2.0**-800)


@triton.jit
def offset(a, c):
    """a - c; NaN counts as 0, so that one pixel does not spoil a sample."""
    d = a - c
    return tl.where(d == d, d, 0.0)


@triton.jit
def _sign_of_infinite(g):
    return tl.where(g == float("inf"), 1.0, tl.where(g == float("-inf"), -1.0, 0.0))


@triton.jit
def _finite(g):
    return tl.where(tl.abs(g) < float("inf"), g, 0.0)


@triton.jit
def _sums(x, std, d, POWER: tl.constexpr):
    """The sums of the powers of x / std, and of its product with d."""
    if std is not None:
        x = x / std
    along = tl.zeros((), tl.float64)
    if d is not None:
        along = tl.sum(x * d)
    return tl.sum(tl.abs(x) if POWER == 1 else x * x), along


@triton.jit
def put(partials, n, row, part, parts, value):
    tl.store(partials + (n * ROWS + row) * parts + part, value)


@triton.jit
def total(partials, n, row, parts, PARTS: tl.constexpr):
    """A sample's sum, from those of its parts."""
    part = tl.arange(0, PARTS)
    return tl.sum(tl.load(partials + (n * ROWS + row) * parts + part, part < parts, 0.0))


_INTEGERS = ["elements", "parts", "blocks", "active_stride", "std_stride", "channel_stride", "channels"]


@triton.jit(do_not_specialize=_INTEGERS)
def sums_kernel(
    elements,
    parts,
    blocks,
    partials,
    adv,
    grad,
    clean,
    active,
    active_stride,
    std,
    std_stride,
    channel_stride,
    channels,
    POWER: tl.constexpr,
    WHOLE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sums of each part. Without adv and clean there is no d; grad may be absent instead."""
    n, part = sample_and_part(parts)
    first = first_of(n, elements, WHOLE)
    begin, end = part * blocks, tl.minimum((part + 1) * blocks, tl.cdiv(elements, BLOCK))
    if active is not None:
        end = tl.where(is_active((active, active_stride), n), end, begin)
    zero = tl.zeros((), tl.float64)
    squares, infinite, along_infinite = zero, zero, zero
    total_0, total_1, total_2, along_0, along_1, along_2 = zero, zero, zero, zero, zero, zero
    for number in range(begin, end):
        place, mask = block_of(number, elements, WHOLE, WIDE, BLOCK)
        d = None
        if adv is not None:
            state: tl.constexpr = adv.dtype.element_ty
            a = tl.load(adv + first + place, mask, 0.0)
            d = offset(a, image(tl.load(clean + first + place, mask, 0), state)).to(tl.float64)
            squares += tl.sum(d * d)
        if grad is not None:
            g = widened(tl.load(grad + first + place, mask, 0.0))
            signs = _sign_of_infinite(g)
            found = tl.sum(tl.abs(signs))
            if found > 0:
                infinite += found
                if d is not None:
                    along_infinite += tl.sum(signs * d)
            x = _finite(g).to(tl.float64)
            by = None
            if std is not None:
                channel = channel_at(place, channel_stride, channels)
                by = tl.load(std + channel * std_stride).to(tl.float64)
            more, further = _sums(x, by, d, POWER)
            total_0 += more
            along_0 += further
            if g.dtype == tl.float64:
                more, further = _sums(x * _DOWN, by, d, POWER)
                total_1 += more
                along_1 += further
                more, further = _sums(x * _UP, by, d, POWER)
                total_2 += more
                along_2 += further
    if adv is not None:
        put(partials, n, SQUARES, part, parts, squares)
    if grad is not None:
        put(partials, n, INFINITE, part, parts, infinite)
        put(partials, n, TOTAL, part, parts, total_0)
        if adv is not None:
            put(partials, n, ALONG_INFINITE, part, parts, along_infinite)
            put(partials, n, ALONG, part, parts, along_0)
        if grad.dtype.element_ty == tl.float64:
            put(partials, n, TOTAL + 2, part, parts, total_1)
            put(partials, n, TOTAL + 4, part, parts, total_2)
            if adv is not None:
                put(partials, n, ALONG + 2, part, parts, along_1)
                put(partials, n, ALONG + 4, part, parts, along_2)


@triton.jit
def _two_to(exponent):
    return ((exponent.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def direction(
    partials,
    n,
    parts,
    grad_dtype: tl.constexpr,
    state: tl.constexpr,
    WITH_D: tl.constexpr,
    POWER: tl.constexpr,
    PARTS: tl.constexpr,
):
    """A sample's direction: whether the gradient has infinite elements, the power of two that brings its norm
    near 1, the norm after that (0 where there is no direction), and the inner product of the direction and
    d."""
    infinite = total(partials, n, INFINITE, parts, PARTS)
    norm = total(partials, n, TOTAL, parts, PARTS)
    exponent, at = tl.zeros((), tl.int32), tl.zeros((), tl.int32)
    if grad_dtype == tl.float64:
        big, small = norm > _CLEAR, norm < _UNCLEAR
        exponent = tl.where(infinite > 0, 0, tl.where(big, -700, tl.where(small, 700, 0)))
        at = tl.where(big, 2, tl.where(small, 4, 0))
        norm = total(partials, n, TOTAL + at, parts, PARTS)
    norm = tl.where(infinite > 0, infinite, norm)
    along = tl.zeros((), tl.float64)
    if WITH_D:
        row = tl.where(infinite > 0, ALONG_INFINITE, ALONG + at)
        along = total(partials, n, row, parts, PARTS)
    if POWER == 2:
        norm = tl.sqrt(norm)
    there = norm > 0
    along = along / tl.where(there, norm, 1.0)

    # norm times 2^shift lies in [0.5, 1), as far as numbers allow.
    top = tl.where(there, (norm.to(tl.int64, bitcast=True) >> 52) - 1022, 0)
    if grad_dtype == tl.float64 or state == tl.float64:
        shift = tl.minimum(tl.maximum(exponent - top, -1022), 1022)
    else:
        shift = tl.minimum(tl.maximum(exponent - top, -126), 126)
    shift = tl.where(infinite > 0, 0, shift)
    return infinite > 0, _two_to(shift), norm * _two_to(shift - exponent), along


@triton.jit
def weight(length, norm, state: tl.constexpr):
    """The factor that scales the elements of a direction to a step of this length (float64)."""
    there = norm > 0
    return tl.where(there, length / tl.where(there, norm, 1.0), 0.0).to(state)


@triton.jit
def unit(g, infinite, power, std, state: tl.constexpr):
    """Elements of the direction, whose norm is then that of :func:`direction`."""
    if g.dtype == tl.float64 or state == tl.float64:
        u = (_finite(g).to(tl.float64) * power).to(state)
    else:
        u = _finite(g) * power.to(tl.float32)
    if std is not None:
        u = divide(u, std)
    return tl.where(infinite, _sign_of_infinite(g).to(state), u)


@triton.jit
def times(u, weight):
    """u * weight. An element of 0 stays 0, however long the step is."""
    return tl.where(u == 0, u, u * weight)


def take_sums(
    like: Tensor,
    adv: Tensor | None,
    grad: Tensor | None,
    clean: Tensor | None,
    active: Tensor | None = None,
    std: Tensor | None = None,
    *,
    power: int = 2,
) -> Tensor:
    """The sums of the parts of all samples, in the layout of like."""
    parts, _ = cut(like.numel() // len(like))
    partials = torch.empty((len(like), ROWS.value, parts), dtype=torch.float64, device=like.device)
    launch_by_sample(
        sums_kernel,
        like,
        partials,
        adv,
        grad,
        clean,
        *strided(active, std),
        *coordinate(like, 1),
        POWER=power,
    )
    return partials
