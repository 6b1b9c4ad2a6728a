"""What "fp32", "tf32", "bf16" and "fp16" mean for a gradient."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from .shared_setting import SharedSetting


@dataclasses.dataclass(frozen=True)
class Precision:
    """dtype: of weights and inputs; float32 stands for float64 where the model is float64.
    products: how float32 products are computed inside the call: "ieee" exactly, "tf32" on tensor cores that
        keep ten bits; None leaves the caller's setting, which does not concern these dtypes.
    scales_loss: whether gradients leave the dtype's range without a loss scale.
    """

    name: str
    dtype: torch.dtype
    products: str | None = None
    scales_loss: bool = False

    @property
    def is_half(self) -> bool:
        return self.dtype != torch.float32

    @contextlib.contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Torch's settings for this precision, and the caller's again afterwards."""
        with contextlib.nullcontext() if self.products is None else _SHARED.set_to(self.products):
            yield


@contextlib.contextmanager
def _set(products: str) -> Iterator[None]:
    """With torch's older flags: torch raises where a model reads one, as ``cudnn.flags()`` does, and it says
    otherwise than the newer."""
    cudnn: Any = torch.backends.cudnn
    before = [(place, place.fp32_precision) for place in _products()]
    matmul = torch.get_float32_matmul_precision()
    try:
        convolutions = cudnn.allow_tf32
    except RuntimeError:  # in the caller's settings, too
        convolutions = None

    def set_older(matmul: str, convolutions: bool | None) -> None:
        torch.set_float32_matmul_precision(matmul)
        if convolutions is not None:
            cudnn.allow_tf32 = convolutions

    tf32 = products == "tf32"
    try:
        set_older("high" if tf32 else "highest", None if convolutions is None else tf32)
        for place, _ in before:
            place.fp32_precision = products
        yield
    finally:
        set_older(matmul, convolutions)
        for place, setting in before:
            place.fp32_precision = setting


_SHARED = SharedSetting(_set)


def _products() -> tuple[Any, ...]:
    """Where torch is told how to multiply float32. cuDNN's convolutions use TF32 unless told not to."""
    backends: Any = torch.backends
    return (
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    )


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", torch.float32, products="ieee"),
        Precision("tf32", torch.float32, products="tf32"),
        Precision("bf16", torch.bfloat16),
        Precision("fp16", torch.float16, scales_loss=True),
    )
}


def get_precision(name: str) -> Precision:
    if name not in PRECISIONS:
        raise ValueError(f"precision: got {name!r}, accepted: {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
