"""The loss that attacks increase."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import launch_by_row, strided


@triton.jit
def larger_or_nan(x, y):
    return tl.where((y > x) | (y != y), y, x)


@triton.jit
def log_of_one_plus(x):
    """log(1 + x) for x >= 0. The quotient makes up for what of x is lost in the sum."""
    one_plus = 1 + x
    lost = one_plus == 1
    return tl.where(lost, x, tl.log(one_plus) * (x / tl.where(lost, 1.0, one_plus - 1)))


@triton.jit
def loss_of_gap(gap):
    return tl.where(gap > 40, gap, log_of_one_plus(tl.exp(tl.where(gap > 40, 0.0, gap))))


@triton.jit
def slope_of_gap(gap):
    share = 1 / (1 + tl.exp(-gap))
    return tl.where(share < 8.673617379884035e-19, 8.673617379884035e-19, share)  # 2^-60


@triton.jit
def other_logits(row, first, classes, class_stride, label, BLOCK: tl.constexpr):
    """The logits of a block of classes, in float64, and which of them count: all but the label's."""
    c = first + tl.arange(0, BLOCK).to(tl.int64)
    mask = (c < classes) & (c != label)
    return tl.load(row + c * class_stride, mask, 0.0).to(tl.float64), mask


@triton.jit(do_not_specialize=["classes", "row_stride", "label_stride", "slope_row_stride"])
def cross_entropy_kernel(
    classes,
    logits,
    row_stride,
    class_stride,
    labels,
    label_stride,
    loss,
    slope,
    slope_row_stride,
    slope_class_stride,
    BLOCK: tl.constexpr,
):
    """A program for each sample, which computes as ``csrc/common/cross_entropy.h`` does."""
    n = tl.program_id(0).to(tl.int64)
    row = logits + n * row_stride
    label = tl.load(labels + n * label_stride)

    of_each = tl.full((BLOCK,), float("-inf"), tl.float64)
    for first in range(0, classes, BLOCK):
        x, mask = other_logits(row, first, classes, class_stride, label, BLOCK)
        of_each = tl.where(mask, larger_or_nan(of_each, x), of_each)
    largest = tl.reduce(of_each, 0, larger_or_nan)
    of_each = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, classes, BLOCK):
        x, mask = other_logits(row, first, classes, class_stride, label, BLOCK)
        of_each += tl.where(mask, tl.exp(x - largest), 0.0)
    total = tl.sum(of_each)

    known = (label >= 0) & (label < classes)
    own = tl.load(row + label * class_stride, known, 0.0).to(tl.float64)
    infinite = (largest == float("inf")) | (largest == float("-inf"))
    gap = largest + tl.where(infinite, 0.0, tl.log(total)) - own
    gap = tl.where(known, gap, float("nan"))
    tl.store(loss + n, loss_of_gap(gap))

    constant = known & (largest == float("-inf"))
    length = tl.where(constant, 0.0, slope_of_gap(gap))
    for first in range(0, classes, BLOCK):
        x, mask = other_logits(row, first, classes, class_stride, label, BLOCK)
        way = tl.where(mask, tl.where(constant, 0.0, tl.exp(x - largest) / total), -1.0)
        c = first + tl.arange(0, BLOCK).to(tl.int64)
        place = slope + n * slope_row_stride + c * slope_class_stride
        tl.store(place, (way * length).to(slope.dtype.element_ty), c < classes)


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    loss = torch.empty_like(labels, dtype=torch.float64, memory_format=torch.contiguous_format)
    slope = torch.empty_like(logits)
    if len(logits) > 0:
        by_row = (logits, *logits.stride(), *strided(labels), loss, slope, *slope.stride())
        launch_by_row(cross_entropy_kernel, logits, *by_row)
    return loss, slope
