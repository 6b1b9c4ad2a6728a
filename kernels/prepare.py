"""The model's input: images, normalised and cast."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elements import divide, first_place, rounded
from .layout import coordinate, in_layout_of, is_dense, launch, strided, written


@triton.jit
def channel_at(place, channel_stride, channels):
    return (place // channel_stride % channels).to(tl.int64)  # strides between channels may be any


@triton.jit
def normalized(x, place, by):
    """(x - mean) / std of the channel, by (mean, stride, std, stride, channel_stride, channels); else x."""
    mean, mean_stride, std, std_stride, channel_stride, channels = by
    if mean is None:
        return x
    else:
        channel = channel_at(place, channel_stride, channels)
        return divide(x - tl.load(mean + channel * mean_stride), tl.load(std + channel * std_stride))


@triton.jit
def _prepare_block(place, mask, out, adv, by):
    x = normalized(tl.load(adv + place, mask), place, by)
    tl.store(out + place, rounded(x, out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["count", "mean_stride", "std_stride", "channel_stride", "channels"])
def prepare_kernel(
    count,
    out,
    adv,
    mean,
    mean_stride,
    std,
    std_stride,
    channel_stride,
    channels,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    by = (mean, mean_stride, std, std_stride, channel_stride, channels)
    first = first_place(WIDE, BLOCK)
    place = first + tl.arange(0, BLOCK)
    if first + BLOCK <= count:  # without a mask, accesses are vectorised whatever the count
        _prepare_block(place, None, out, adv, by)
    else:
        _prepare_block(place, place < count, out, adv, by)


def prepare(
    adv: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
    memory_format: torch.memory_format | None,
) -> Tensor:
    out = torch.empty_like(adv, dtype=dtype, memory_format=memory_format)
    if adv.numel() == 0:
        return out
    adv = adv if is_dense(adv) else in_layout_of(out, adv)
    with written(out, like=adv) as target:
        launch(
            prepare_kernel,
            adv,
            adv.numel(),
            adv.numel(),
            target,
            adv,
            *strided(mean, std),
            *coordinate(adv, 1),
        )
    return out
