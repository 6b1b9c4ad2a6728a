"""The best iterate of each sample."""

import triton
import triton.language as tl
from torch import Tensor

from .elements import block_of, first_of, is_active, sample_and_part
from .layout import in_layout_of, launch, launch_by_sample, notify_autograd, strided, updated_by_sample


@triton.jit(do_not_specialize=["elements", "parts", "blocks", "best_stride", "value_stride", "active_stride"])
def keep_kernel(
    elements,
    parts,
    blocks,
    best,
    adv,
    best_value,
    best_stride,
    value,
    value_stride,
    active,
    active_stride,
    WHOLE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Programs of samples that have not won move nothing."""
    n, part = sample_and_part(parts)
    won = tl.load(value + n * value_stride) > tl.load(best_value + n * best_stride)
    if active is not None:
        won = won & is_active((active, active_stride), n)
    if won:
        first = first_of(n, elements, WHOLE)
        for number in range(part * blocks, tl.minimum((part + 1) * blocks, tl.cdiv(elements, BLOCK))):
            place, mask = block_of(number, elements, WHOLE, WIDE, BLOCK)
            tl.store(best + first + place, tl.load(adv + first + place, mask), mask)


@triton.jit(do_not_specialize=["count", "best_stride", "value_stride", "active_stride"])
def values_kernel(
    count,
    best_value,
    best_stride,
    value,
    value_stride,
    active,
    active_stride,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A kernel of its own: all programs of :func:`keep_kernel` have read the old values by then."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < count
    if active is not None:
        mask = mask & (tl.load(active + n * active_stride, mask, 0) != 0)
    new = tl.load(value + n * value_stride, mask)
    old = tl.load(best_value + n * best_stride, mask)
    tl.store(best_value + n * best_stride, new, mask & (new > old))


def keep_best_(best: Tensor, best_value: Tensor, adv: Tensor, value: Tensor, active: Tensor | None) -> None:
    if len(best) == 0:
        return
    values = strided(best_value, value, active)
    if best.numel() > 0:
        with updated_by_sample(best) as state:
            launch_by_sample(keep_kernel, state, state, in_layout_of(state, adv), *values)
    launch(values_kernel, best, len(best), len(best), *values)
    notify_autograd(best_value)
