"""Adapters (Houlsby et al. 2019; Pfeiffer et al. 2021): small bottlenecks after each MLP."""

import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import Inserted


class Adapted(Inserted):
    """``y + up(gelu(down(y)))`` of ``y = mlp(x)``.

    It begins as the identity, with up = 0: then up moves with the first step, and down with the second.

    mlp: maps (..., dim) to (..., dim).
    width: of the bottleneck.
    """

    def __init__(self, mlp: nn.Module, dim: int, width: int, like: nn.Parameter):
        super().__init__()
        self.mlp = mlp
        self.down = nn.Linear(dim, width, device=like.device, dtype=like.dtype)
        self.up = nn.Linear(width, dim, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(x)
        return y + self.up(F.gelu(self.down(y)))
