"""Making the model's input."""

import torch
from torch import Tensor

from .shared import normalized


@torch.no_grad()
def prepare(
    adv: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
    memory_format: torch.memory_format | None,
) -> Tensor:
    out = torch.empty_like(adv, dtype=dtype, memory_format=memory_format)
    return out.copy_(normalized(adv, mean, std))
