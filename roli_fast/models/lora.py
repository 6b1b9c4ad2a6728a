"""LoRA (Hu et al. 2021): a low-rank change of the query and value projections."""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .classifier import Inserted


class LowRank(nn.Module):
    """weight + scale B A on the query and the value rows of a joint projection (3 D, F).

    It begins as the identity: B is 0, and A what a linear layer's weight begins with. So B moves with the
    first step, and A with the second.
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
        """What B A adds to the projection (..., 3 D) of x (..., F), each with its own dropout on x."""
        query, value = (
            self.scale * F.linear(F.linear(F.dropout(x, dropout), a), b)
            for a, b in zip(self.a, self.b, strict=True)
        )
        return torch.cat((query, torch.zeros_like(query), value), dim=-1)


class LoraLinear(nn.Linear, Inserted):
    """A linear layer whose weight is parametrized by :class:`LowRank`.

    In eval mode it is the linear layer with the merged weight, so that whatever materialises parametrizations
    merges it. In train mode x goes through dropout on its way into A, which no weight can express.
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
    """The layer, whose rows are queries, keys and values, with a trainable low-rank part."""
    layer = LoraLinear(linear, dropout)
    parametrize.register_parametrization(layer, "weight", LowRank(linear.weight, rank, alpha))
    return layer
