"""Random points of the L2 and the L1 ball: the Triton twin of ``ops/reference/draws.py``.

Made of IEEE additions, products and square roots alone, the draws have the same bits on all backends.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elements import block_of, first_of, image, in_box, philox, philox_key, sample_and_part, size
from .layout import PARTS, cut, launch_by_sample, sized, start_like, strided, written

_ANGLE = tl.constexpr(math.pi / 4 * 2.0**-24)


@triton.jit
def _unit(words):
    """Multiples of 2^-24 in (0, 1], float32."""
    return ((words >> 8) + 1).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def _log_unit(x):
    """The natural logarithm of a float32 in (0, 1], by the polynomial of Cephes' logf (Moshier)."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits >> 23) - 126
    fraction = ((bits & 0x7FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
    small = fraction < 0.70710677
    exponent = tl.where(small, exponent - 1, exponent).to(tl.float32)
    z = tl.where(small, fraction + fraction, fraction) - 1
    square = z * z
    y = 7.0376836292e-2 * z + -1.1514610310e-1
    y = y * z + 1.1676998740e-1
    y = y * z + -1.2420140846e-1
    y = y * z + 1.4249322787e-1
    y = y * z + -1.6668057665e-1
    y = y * z + 2.0000714765e-1
    y = y * z + -2.4999993993e-1
    y = y * z + 3.3333331174e-1
    y = y * z * square
    y = y + exponent * -2.12194440e-4
    y = y - square * 0.5
    return (z + y) + exponent * 0.693359375


@triton.jit
def _cos_and_sin(words):
    """Cosine and sine of a uniform angle: two bits choose the quadrant, 24 an offset within 45 degrees of its
    axis. The polynomials are those of Cephes' sinf and cosf (Moshier)."""
    quadrant = words >> 30
    centred = (((words >> 6) & 0xFFFFFF) * 2 + 1).to(tl.int32) - 16777216
    x = centred.to(tl.float32) * _ANGLE
    z = x * x
    sin = ((z * -1.9515295891e-4 + 8.3321608736e-3) * z + -1.6666654611e-1) * z * x + x
    cos = ((z * 2.443315711809948e-5 + -1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z
    cos = (cos - z * 0.5) + 1
    odd = (quadrant & 1) == 1
    c, s = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    # No unary minus: Triton's turns 0 into 0.
    return tl.where((quadrant == 1) | (quadrant == 2), c * -1.0, c), tl.where(quadrant >= 2, s * -1.0, s)


@triton.jit
def _normal_pair(first, second):
    """Two standard normal draws (Box and Muller 1958)."""
    radius = tl.sqrt_rn(_log_unit(_unit(first)) * -2.0)
    cos, sin = _cos_and_sin(second)
    return radius * cos, radius * sin


@triton.jit
def _laplace(words):
    """Exponential draws of random sign (the lowest bit)."""
    log = _log_unit(_unit(words))
    return tl.where((words & 1) == 1, log, log * -1.0)


@triton.jit(do_not_specialize=["elements", "parts", "blocks", "seed_stride", "index_stride"])
def draw_kernel(
    elements,
    parts,
    blocks,
    start,
    partials,
    logarithm,
    seed,
    seed_stride,
    index,
    index_stride,
    LAPLACE: tl.constexpr,
    WHOLE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Fills the samples with draws. Stores the sums of their magnitudes or squares, and for each sample the
    logarithm of one more uniform draw.

    Philox gives four draws at a time: one call for every four elements.
    """
    state: tl.constexpr = start.dtype.element_ty
    n, part = sample_and_part(parts)
    first = first_of(n, elements, WHOLE)
    which = n
    if index is not None:
        which = tl.load(index + n * index_stride)
    key = philox_key(seed, seed_stride)
    if part == 0:
        words, _, _, _ = philox(tl.full((), -1, tl.int64), which, key)  # a block that no element has
        tl.store(logarithm + n, _log_unit(_unit(words)).to(tl.float64))
    norm = tl.zeros((), tl.float64)
    for number in range(part * blocks, tl.minimum((part + 1) * blocks, tl.cdiv(elements, BLOCK))):
        place, mask = block_of(number, elements, WHOLE, WIDE, BLOCK)
        four = tl.cast(number, tl.int64) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
        x0, x1, x2, x3 = philox(four, which + tl.zeros_like(four), key)
        if LAPLACE:
            z0, z1, z2, z3 = _laplace(x0), _laplace(x1), _laplace(x2), _laplace(x3)
        else:
            z0, z1 = _normal_pair(x0, x1)
            z2, z3 = _normal_pair(x2, x3)
        z = tl.join(tl.join(z0, z2), tl.join(z1, z3)).reshape(BLOCK)  # z0, z1, z2, z3 of each four
        tl.store(start + first + place, z.to(state), mask)
        exact = tl.where(mask, z, 0.0).to(tl.float64)
        norm += tl.sum(tl.abs(exact) if LAPLACE else exact * exact)
    tl.store(partials + n * parts + part, norm)


@triton.jit(do_not_specialize=["elements", "parts", "blocks", "eps_stride"])
def scale_kernel(
    elements,
    parts,
    blocks,
    start,
    clean,
    partials,
    radius,
    eps: tl.float64,
    epsilons,
    eps_stride,
    lo: tl.float64,
    hi: tl.float64,
    LAPLACE: tl.constexpr,
    PARTS: tl.constexpr,
    WHOLE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """clean plus the draws, scaled to their radius, which is a share of eps."""
    state: tl.constexpr = start.dtype.element_ty
    n, part = sample_and_part(parts)
    first = first_of(n, elements, WHOLE)
    every = tl.arange(0, PARTS)
    norm = tl.sum(tl.load(partials + n * parts + every, every < parts, 0.0))
    if not LAPLACE:
        norm = tl.sqrt(norm)
    length = tl.load(radius + n) * size((eps, epsilons, eps_stride), n, state).to(tl.float64)
    weight = tl.where(norm > 0, length / tl.where(norm > 0, norm, 1.0), 0.0).to(state)
    for number in range(part * blocks, tl.minimum((part + 1) * blocks, tl.cdiv(elements, BLOCK))):
        place, mask = block_of(number, elements, WHOLE, WIDE, BLOCK)
        c = image(tl.load(clean + first + place, mask), state)
        z = tl.load(start + first + place, mask)
        x = c + tl.where(z == 0, z, z * weight)
        tl.store(start + first + place, in_box(x, c, c, lo, hi, state), mask)


def random_start(
    clean: Tensor,
    eps: float | Tensor,
    seed: Tensor,
    lo: float,
    hi: float,
    index: Tensor | None,
    *,
    laplace: bool,
) -> Tensor:
    """Uniformly random points of the L1 or L2 ball. In n dimensions, their radius is distributed like the
    n-th root of a uniform number."""
    start = start_like(clean)
    if clean.numel() == 0:
        return start
    rows = clean.contiguous()
    elements = rows[0].numel()
    parts, _ = cut(elements)
    with written(start, like=rows) as target:
        partials = torch.empty((len(rows), parts), dtype=torch.float64, device=rows.device)
        radius = torch.empty(len(rows), dtype=torch.float64, device=rows.device)  # its logarithm, times n
        seeds = strided(seed, index)
        launch_by_sample(draw_kernel, rows, target, partials, radius, *seeds, LAPLACE=laplace)
        radius.div_(elements).exp_()  # by torch: Triton's exponential is contracted
        launch_by_sample(
            scale_kernel,
            rows,
            target,
            rows,
            partials,
            radius,
            *sized(eps),
            lo,
            hi,
            LAPLACE=laplace,
            PARTS=PARTS,
        )
    return start
