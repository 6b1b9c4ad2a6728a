"""Losses that an attack increases: float logits (N, classes) and labels (N,) to (N,)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


_LOSSES: dict[str, Loss] = {"ce": cross_entropy}


def get_loss(loss: str | Loss, targeted: bool) -> Loss:
    """The objective to increase: the loss for the label, or for a target minus the loss."""
    if not callable(loss) and loss not in _LOSSES:
        raise ValueError(
            f"loss: got {loss!r}, accepted: {', '.join(_LOSSES)}, or a callable (logits, labels) -> (N,)"
        )
    function = loss if callable(loss) else _LOSSES[loss]
    return (lambda logits, labels: -function(logits, labels)) if targeted else function
