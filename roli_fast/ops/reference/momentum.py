"""Accumulating gradients."""

import math

import torch
from torch import Tensor

from .direction import direction_of
from .shared import number


@torch.no_grad()
def momentum_(momentum: Tensor, grad: Tensor, decay: float) -> None:
    towards = direction_of(grad, None, momentum.dtype, power=1)
    count = torch.full_like(towards.norm, math.prod(grad.shape[1:]))  # a mean of 1 is a sum of so many
    momentum.copy_(number(decay, momentum.dtype) * momentum + towards.times(count))
