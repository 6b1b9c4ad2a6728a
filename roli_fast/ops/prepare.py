"""Making the model's input."""

import torch
from torch import Tensor

from . import checks
from .registry import define

_PREPARE = define(
    "prepare",
    "prepare(Tensor adv, Tensor? mean, Tensor? std, *, ScalarType dtype=float, "
    "MemoryFormat? memory_format=None) -> Tensor",
    check=checks.prepare,
    fake=lambda adv, dtype, memory_format, **_: torch.empty_like(
        adv, dtype=dtype, memory_format=memory_format
    ),
)


def prepare(
    adv: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.preserve_format,
) -> Tensor:
    """Makes the model's input in one pass: normalises in adv's precision, then casts and lays out the result.

    Equivalent to ``((adv - mean[:, None, None]) / std[:, None, None]).to(dtype, memory_format=...)``. From
    float32, this op moves only the bytes that have to be moved per element: 4 bytes, and those of dtype.

    adv: (N, C, ...) float32 or float64.
    mean, std: (C,) of adv's dtype, or None for no normalisation.
    dtype: any float dtype.
    memory_format: as in ``torch.empty_like``.
    """
    return _PREPARE.number(adv, mean, std, dtype=dtype, memory_format=memory_format)
