"""Adapters (Houlsby et al. 2019; Pfeiffer et al. 2021): small bottlenecks after each MLP."""

import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import Inserted


class Adapted(Inserted):
    """``y + up(gelu(down(y)))``, where ``y = mlp(x)``.

    At first ``up`` is 0, so that nothing is added. Training therefore changes ``up`` from its first step on,
    and ``down`` from its second.

    mlp: maps (..., dim) to (..., dim).
    width: number of units in the bottleneck.
    like: a parameter whose device and dtype the new layers get.
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
