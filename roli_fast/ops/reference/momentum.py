"""Accumulating gradients."""

import math

import torch
from torch import Tensor

from .direction import direction_of
from .shared import number


@torch.no_grad()
def momentum_(momentum: Tensor, grad: Tensor, decay: float) -> None:
    towards = direction_of(grad, None, momentum.dtype, power=1)
    count = torch.full_like(towards.norm, math.prod(grad.shape[1:]))  # the sum of magnitudes whose mean is 1
    momentum.copy_(number(decay, momentum.dtype) * momentum + towards.times(count))
