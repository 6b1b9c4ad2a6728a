"""Keeping the best iterate of each sample."""

import torch
from torch import Tensor

from .shared import over_batch


@torch.no_grad()
def keep_best_(best: Tensor, best_value: Tensor, adv: Tensor, value: Tensor, active: Tensor | None) -> None:
    better = value > best_value
    if active is not None:
        better = better & active
    best.copy_(torch.where(over_batch(better, best), adv, best))
    best_value.copy_(torch.where(better, value, best_value))
