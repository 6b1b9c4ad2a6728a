"""Accumulated gradients."""

import triton
import triton.language as tl
from torch import Tensor

from .direction import direction, take_sums, times, unit, weight
from .elements import block_of, first_of, sample_and_part, widened
from .layout import PARTS, in_layout_of, launch_by_sample, updated_by_sample


@triton.jit(do_not_specialize=["elements", "parts", "blocks"])
def momentum_kernel(
    elements,
    parts,
    blocks,
    partials,
    momentum,
    grad,
    decay: tl.float64,
    PARTS: tl.constexpr,
    WHOLE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    state: tl.constexpr = momentum.dtype.element_ty
    dtype: tl.constexpr = grad.dtype.element_ty
    n, part = sample_and_part(parts)
    first = first_of(n, elements, WHOLE)
    begin, end = part * blocks, tl.minimum((part + 1) * blocks, tl.cdiv(elements, BLOCK))
    infinite, power, norm, _ = direction(partials, n, parts, dtype, state, False, 1, PARTS)
    count = tl.full((), elements, tl.float64)  # the sum of magnitudes whose mean is 1
    by = weight(count, norm, state)
    kept = tl.full((), decay, state)
    for number in range(begin, end):
        place, mask = block_of(number, elements, WHOLE, WIDE, BLOCK)
        m = tl.load(momentum + first + place, mask)
        g = widened(tl.load(grad + first + place, mask))
        step = times(unit(g, infinite, power, None, state), by)
        tl.store(momentum + first + place, kept * m + step, mask)


def momentum_(momentum: Tensor, grad: Tensor, decay: float) -> None:
    if momentum.numel() == 0:
        return
    with updated_by_sample(momentum) as state:
        grad = in_layout_of(state, grad)
        partials = take_sums(state, None, grad, None, power=1)
        launch_by_sample(momentum_kernel, state, partials, state, grad, decay, PARTS=PARTS)
