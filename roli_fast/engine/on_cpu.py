"""What computes the same faster on a CPU than what torch chooses."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .shared_setting import SharedSetting

# oneDNN computes a convolution's gradient for 16 channels of its input at least, and a stem has 3: cut into
# blocks of its stride, the image has 12 and more. Forward and gradient of 7x7 with stride 2 on 32x3x64x64
# take 4.9 ms instead of 8.7, in bf16 2.9 instead of 5.3; of 16x16 with stride 16 on 16x3x112x112 they take
# 1.3 instead of 7.2, and 0.8 instead of 6.1 (2 cores). 3x3 gains nothing.
_FEW_CHANNELS, _LARGE_KERNEL = 4, 4


class StemConv2d(nn.Conv2d):
    """A strided convolution of few channels, as one of stride 1 over blocks of pixels ("space to depth")."""

    def forward(self, x: Tensor) -> Tensor:
        s, t = cast(tuple[int, int], self.stride)
        above, below, rows = _in_blocks(x.shape[2], self.kernel_size[0], s, cast(int, self.padding[0]))
        left, right, columns = _in_blocks(x.shape[3], self.kernel_size[1], t, cast(int, self.padding[1]))
        # The kernel begins where its first block does, and ends where its last does.
        before, first = above - cast(int, self.padding[0]), left - cast(int, self.padding[1])
        after = rows * s - before - self.kernel_size[0], columns * t - first - self.kernel_size[1]
        weight = _cut(F.pad(self.weight, (first, after[1], before, after[0])), s, t)
        return F.conv2d(_cut(F.pad(x, (left, right, above, below)), s, t), weight, self.bias)


def _in_blocks(size: int, kernel: int, stride: int, padding: int) -> tuple[int, int, int]:
    """Along one dimension: the padding on both sides that makes whole blocks of the stride, and how many of
    them the kernel spans."""
    before = -(-padding // stride) * stride
    span = -(-(before - padding + kernel) // stride)
    outputs = (size + 2 * padding - kernel) // stride + 1
    return before, (outputs - 1 + span) * stride - before - size, span


def _cut(x: Tensor, s: int, t: int) -> Tensor:
    """(N, C, s H, t W) to (N, s t C, H, W), channels-last."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // s, s, w // t, t).permute(0, 2, 4, 3, 5, 1)
    return blocks.reshape(n, h // s, w // t, s * t * c).permute(0, 3, 1, 2)


def cut_stems(module: nn.Module) -> None:
    """Makes a StemConv2d of every convolution that is one."""
    for layer in module.modules():
        if (
            type(layer) is nn.Conv2d
            and layer.in_channels <= _FEW_CHANNELS
            and min(layer.stride) > 1
            and min(layer.kernel_size) >= _LARGE_KERNEL
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
            and layer.dilation == (1, 1)
            and layer.groups == 1
            and layer.weight.device.type == "cpu"
        ):
            layer.__class__ = StemConv2d


def attention(x: Tensor) -> AbstractContextManager[None]:
    """On a CPU, half precision attends by products of matrices, in bfloat16 of such: the gradient of torch's
    fused attention takes two to four times as long there."""
    if x.device.type != "cpu" or x.dtype not in (torch.float16, torch.bfloat16):
        return contextlib.nullcontext()
    return _SHARED.set_to(x.dtype == torch.bfloat16)


@contextlib.contextmanager
def _by_products(reduced: bool) -> Iterator[None]:
    """reduced: whether products are of half precision themselves."""
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # of the CPU, too
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(reduced)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)


_SHARED = SharedSetting(_by_products)
