"""LoRA (Hu et al. 2021): low-rank changes of the query and value projections."""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .classifier import Inserted


class LowRank(nn.Module):
    """Adds B A times alpha / rank to the query rows and to the value rows of the weight (3 D, F) of a joint
    projection, each with its own B (D, rank) and A (rank, F).

    At first B is 0, so that nothing is added, and A is initialised like the weight of a linear layer.
    Training therefore changes B from its first step on, and A from its second.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float):
        super().__init__()
        self.scale = alpha / rank
        self.a = nn.Parameter(weight.new_empty(2, rank, weight.shape[1]))
        self.b = nn.Parameter(weight.new_zeros(2, weight.shape[0] // 3, rank))
        for a in self.a:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        query, value = self.scale * (self.b @ self.a)
        return weight + torch.cat((query, torch.zeros_like(query), value))

    def apply_with_dropout(self, x: Tensor, dropout: float) -> Tensor:
        """What the low-rank part adds to the projection (..., 3 D) of x (..., F). Dropout on x is drawn
        separately for queries and for values."""
        query, value = (
            self.scale * F.linear(F.linear(F.dropout(x, dropout), a), b)
            for a, b in zip(self.a, self.b, strict=True)
        )
        return torch.cat((query, torch.zeros_like(query), value), dim=-1)


class LoraLinear(nn.Linear, Inserted):
    """A linear layer whose weight is parametrized by :class:`LowRank`.

    In eval mode it is a linear layer with the merged weight, so that code which materialises parametrizations
    merges it. In train mode dropout is applied to the input of A, which no merged weight can express.
    """

    def __init__(self, linear: nn.Linear, dropout: float):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and parametrize.is_parametrized(self, "weight")):
            return super().forward(x)
        parametrized: Any = cast(Any, self.parametrizations).weight
        (low_rank,) = parametrized
        return F.linear(x, parametrized.original, self.bias) + low_rank.apply_with_dropout(x, self.dropout)


def with_lora(linear: nn.Linear, rank: int, alpha: float, dropout: float) -> LoraLinear:
    """The layer with a trainable low-rank part. Its rows have to be queries, keys and values."""
    layer = LoraLinear(linear, dropout)
    parametrize.register_parametrization(layer, "weight", LowRank(linear.weight, rank, alpha))
    return layer
