"""The Linf family. a: adversarial, p: previous, c: clean, g: gradient, s: step size, e: eps, m: momentum."""

import triton
import triton.language as tl
from torch import Tensor

from .elements import (
    clamp,
    first_place,
    image,
    philox,
    philox_key,
    rounded,
    size,
    symmetric_uniform,
    widened,
    with_inertia,
)
from .layout import (
    coordinate,
    in_layout_of,
    launch,
    sized,
    start_like,
    strided,
    updated,
    updated_in_layout_of,
    written,
)
from .prepare import normalized


@triton.jit
def _ball_and_box(x, a, c, e, lo, hi, state: tl.constexpr):
    """x clamped to the ball, then to the box; NaN exactly where a or c is."""
    x = clamp(x, c - e, c + e)
    x = clamp(x, tl.full((), lo, state), tl.full((), hi, state))
    return tl.where((a != a) | (c != c), float("nan"), x)


@triton.jit
def _step_block(
    place, mask, operands, step_size, eps, momentum, box, active, sample, by, PER_SAMPLE: tl.constexpr
):
    adv, previous, grad, clean, out = operands
    state: tl.constexpr = adv.dtype.element_ty
    n = 0
    if PER_SAMPLE:
        n = (place // sample[0] % sample[1]).to(tl.int64)  # strides between samples may be any
    a = tl.load(adv + place, mask)
    c = image(tl.load(clean + place, mask), state)
    x = a
    if grad is not None:
        g = widened(tl.load(grad + place, mask))
        s = size(step_size, n, state)
        # Not multiplied by the sign: an infinite s times 0 would be NaN.
        x = tl.where(g > 0, a + s, tl.where(g < 0, a - s, a))
    e = size(eps, n, state)
    x = _ball_and_box(x, a, c, e, box[0], box[1], state)
    moves = True
    if active[0] is not None:
        moves = tl.load(active[0] + n * active[1]) != 0
    if previous is not None:
        m = size(momentum, n, state)
        p = tl.load(previous + place, mask)
        x = _ball_and_box(with_inertia(x, a, p, c, m), a, c, e, box[0], box[1], state)
        tl.store(previous + place, tl.where(moves, a, p), mask)
    x = tl.where(moves, x, a)
    tl.store(adv + place, x, mask)
    if out is not None:
        tl.store(out + place, rounded(normalized(x, place, by), out.dtype.element_ty), mask)


# For integers that are 1 or a multiple of 16, Triton would otherwise compile kernels of their own.
_SIZE_INTEGERS = ["step_stride", "eps_stride", "momentum_stride"]
_SAMPLE_INTEGERS = ["count", "active_stride", "sample_stride", "samples"]
_CHANNEL_INTEGERS = ["mean_stride", "std_stride", "channel_stride", "channels"]


@triton.jit(do_not_specialize=_SIZE_INTEGERS + _SAMPLE_INTEGERS + _CHANNEL_INTEGERS)
def step_kernel(
    count,
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
    sample_stride,
    samples,
    mean,
    mean_stride,
    std,
    std_stride,
    channel_stride,
    channels,
    PER_SAMPLE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A step, with previous one of APGD, or, without grad, a projection."""
    operands = (adv, previous, grad, clean, out)
    step = (step_size, step_sizes, step_stride)
    ball = (eps, epsilons, eps_stride)
    inertia = (momentum, momenta, momentum_stride)
    box = (lo, hi)
    by = (mean, mean_stride, std, std_stride, channel_stride, channels)
    sample = (sample_stride, samples)
    mask = (active, active_stride)
    first = first_place(WIDE, BLOCK)
    place = first + tl.arange(0, BLOCK)
    if first + BLOCK <= count:  # without a mask, accesses are vectorised whatever the count
        _step_block(place, None, operands, step, ball, inertia, box, mask, sample, by, PER_SAMPLE)
    else:
        _step_block(place, place < count, operands, step, ball, inertia, box, mask, sample, by, PER_SAMPLE)


@triton.jit(do_not_specialize=["samples", "elements", "eps_stride", "seed_stride", "index_stride"])
def start_kernel(
    start,
    clean,
    samples,
    elements,
    eps: tl.float64,
    epsilons,
    eps_stride,
    lo: tl.float64,
    hi: tl.float64,
    seed,
    seed_stride,
    index,
    index_stride,
    WHOLE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Walks over row-major elements, those of each sample padded to a multiple of four. WHOLE: no padding is
    needed.

    Philox gives four draws at a time: one call for every four elements of a sample.
    """
    state: tl.constexpr = start.dtype.element_ty
    if WIDE:
        elements = elements.to(tl.int64)
    fours = tl.cdiv(elements, 4)
    first = first_place(WIDE, BLOCK)
    four = first // 4 + tl.arange(0, BLOCK // 4)
    number, which = (four % fours).to(tl.int64), (four // fours).to(tl.int64)
    if index is not None:
        which = tl.load(index + which * index_stride, which < samples)
    x0, x1, x2, x3 = philox(number, which, philox_key(seed, seed_stride))
    bits = tl.join(tl.join(x0, x2), tl.join(x1, x3)).reshape(BLOCK)  # x0, x1, x2, x3 of each four

    padded = first + tl.arange(0, BLOCK)
    n = padded // (4 * fours)
    element = padded % (4 * fours)
    if WHOLE:
        place = padded
        mask = tl.max_constancy(n < samples, 4)  # samples are whole fours: accesses can be vectorised
    else:
        place = n * elements + element
        mask = (n < samples) & (element < elements)
    c = image(tl.load(clean + place, mask), state)
    e = size((eps, epsilons, eps_stride), tl.where(n < samples, n, 0).to(tl.int64), state)
    x = clamp(c + e * symmetric_uniform(bits, state), tl.full((), lo, state), tl.full((), hi, state))
    tl.store(start + place, tl.where(c != c, float("nan"), x), mask)


def linf_step_(
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
    sizes = sized(step_size, eps, momentum)
    with (
        updated(adv) as state,
        updated_in_layout_of(state, previous) as before,
        written(out, like=state) as model_input,
    ):
        launch(
            step_kernel,
            state,
            state.numel(),
            state.numel(),
            state,
            before,
            grad if grad is None else in_layout_of(state, grad),
            in_layout_of(state, clean),
            model_input,
            *sizes,
            lo,
            hi,
            *strided(active),
            *coordinate(state, 0),
            *strided(mean, std),
            *coordinate(state, 1),
            PER_SAMPLE=active is not None or any(sizes[2::3]),  # strides
        )


linf_apgd_step_ = linf_project_ = linf_step_


def linf_start(
    clean: Tensor, eps: float | Tensor, seed: Tensor, lo: float, hi: float, index: Tensor | None
) -> Tensor:
    start = start_like(clean)
    if clean.numel() == 0:
        return start
    rows = clean.contiguous()
    elements = rows[0].numel()
    with written(start, like=rows) as target:
        launch(
            start_kernel,
            rows,
            len(rows) * 4 * -(-elements // 4),
            target,
            rows,
            len(rows),
            elements,
            *sized(eps),
            lo,
            hi,
            *strided(seed, index),
            WHOLE=elements % 4 == 0,
        )
    return start
