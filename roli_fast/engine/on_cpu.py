"""What computes the same faster on a CPU than what torch chooses."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# oneDNN's gradient of a convolution is slow where its input has few channels: a stem that cuts patches (16x16
# of 16x3x112x112) takes 2.4 ms as a product of matrices instead of 7.8, in bf16 0.7 instead of 6.7.
_FEW_CHANNELS = 4


class PatchConv2d(nn.Conv2d):
    """A convolution whose windows do not overlap, as a product of matrices."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, _, _ = x.shape
        k, l = self.kernel_size  # noqa: E741
        h, w = x.shape[2] // k, x.shape[3] // l
        x = x[:, :, : h * k, : w * l].permute(0, 2, 3, 1)
        patches = x.reshape(n, h, k, w, l * c).transpose(2, 3).reshape(n, h, w, k * l * c)
        weight = self.weight.permute(0, 2, 3, 1).reshape(len(self.weight), -1)  # a view, channels-last
        return F.linear(patches, weight, self.bias).permute(0, 3, 1, 2)


def cut_patches(module: nn.Module) -> None:
    """Makes a PatchConv2d of every convolution of few channels that is one."""
    for layer in module.modules():
        if (
            type(layer) is nn.Conv2d
            and layer.in_channels <= _FEW_CHANNELS
            and layer.stride == layer.kernel_size
            and layer.padding == (0, 0)
            and layer.dilation == (1, 1)
            and layer.groups == 1
            and layer.weight.device.type == "cpu"
        ):
            layer.__class__ = PatchConv2d


@contextlib.contextmanager
def attention(x: Tensor) -> Iterator[None]:
    """On a CPU, half precision attends by products of matrices, in bfloat16 of such: the gradient of torch's
    fused attention takes two to four times as long there."""
    if x.device.type != "cpu" or x.dtype not in (torch.float16, torch.bfloat16):
        yield
        return
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()  # of the CPU, too
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(x.dtype == torch.bfloat16)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)
