"""What gradients are computed in: "fp32", "tf32", "bf16", "fp16" or "torch"."""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from .shared_setting import SharedSetting


@dataclasses.dataclass(frozen=True)
class Precision:
    """One of the precisions.

    dtype: of weights and inputs; float32 stands for float64 too, if the model is float64.
    products: how float32 matrix products and convolutions are computed: "ieee" in full precision, "tf32" with
        ten bits of mantissa, "torch" as the caller's settings of torch say; None for half precisions, which
        this does not concern.
    scales_loss: whether the loss has to be scaled for gradients to stay in the dtype's range.
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
        """Sets torch's global switches to this precision, and back to the caller's afterwards."""
        with contextlib.nullcontext() if self.products is None else _SHARED.set_to(self.products):
            yield


@contextlib.contextmanager
def _set(products: str) -> Iterator[None]:
    if products == "torch":
        yield
        return
    places, before = _products(), products_now()
    try:
        with _older_flags(products == "tf32"):
            for place in places:
                place.fp32_precision = products
            yield
    finally:
        for place, setting in zip(places, before, strict=True):
            place.fp32_precision = setting


@contextlib.contextmanager
def _older_flags(tf32: bool) -> Iterator[None]:
    """Torch's older settings say the same: it raises where a model asks for one of these, as
    ``cudnn.flags()`` does, and they and the newer contradict each other. Leaves the newer ones changed."""
    backends: Any = torch.backends
    for place in _products():
        place.fp32_precision = "ieee"  # contradicts no older setting of matrix products
    matmul = torch.get_float32_matmul_precision()
    for place in (backends.cudnn.conv, backends.cudnn.rnn):
        place.fp32_precision = "tf32"  # contradicts all but the one that is looked for
    try:
        convolutions = backends.cudnn.allow_tf32
    except RuntimeError:
        convolutions = False
    try:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        backends.cudnn.allow_tf32 = tf32
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        backends.cudnn.allow_tf32 = convolutions


# Some versions of torch warn, once, of whoever asks for an older flag: here that is nobody's doing.
with warnings.catch_warnings(), contextlib.suppress(RuntimeError):
    warnings.simplefilter("ignore")
    torch.get_float32_matmul_precision()


_SHARED = SharedSetting(_set)


def products_now() -> list[str]:
    """How torch multiplies float32 at present, in each of its libraries."""
    return [place.fp32_precision for place in _products()]


@functools.cache
def _products() -> tuple[Any, ...]:
    """Where torch is told how to multiply float32. cuDNN's convolutions use TF32 unless told not to. Torch
    takes longer to look them up than to be told."""
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
        Precision("torch", torch.float32, products="torch"),
    )
}


def get_precision(name: str) -> Precision:
    if name not in PRECISIONS:
        raise ValueError(f"precision: got {name!r}, accepted: {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
