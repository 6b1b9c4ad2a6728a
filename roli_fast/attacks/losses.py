"""Losses that an attack increases: float logits (N, classes) and labels (N,) to (N,)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


_LOSSES: dict[str, Loss] = {"ce": cross_entropy}


def get_loss(loss: str | Loss) -> Loss:
    if callable(loss):
        return loss
    if loss not in _LOSSES:
        accepted = f"{', '.join(_LOSSES)}, or a callable (logits, labels) -> (N,)"
        raise ValueError(f"loss: got {loss!r}, accepted: {accepted}")
    return _LOSSES[loss]
