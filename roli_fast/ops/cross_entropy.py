"""The loss that attacks increase."""

import torch
from torch import Tensor

from . import checks
from .registry import define

_CROSS_ENTROPY = define(
    "cross_entropy",
    "cross_entropy(Tensor logits, Tensor labels) -> (Tensor loss, Tensor slope)",
    check=checks.cross_entropy,
    fake=lambda logits, labels: (
        torch.empty_like(labels, dtype=torch.float64, memory_format=torch.contiguous_format),
        torch.empty_like(logits),
    ),
)


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each sample, and its slope: the derivative with respect to the logits.

    Equivalent to ``F.cross_entropy(logits.double(), labels, reduction="none")``, and ``logits.softmax(1)``
    minus one at the label, in one pass. Computed as ``log(1 + exp(gap))`` of the gap between the other
    classes' logsumexp and the label's logit. In the usual formula the slope is lost to rounding where the
    model is sure of the label: in float32 from a margin of 17 on. Here it is exact, until the share of the
    other classes falls below 2^-60, which it then counts as: there is a direction for any margin.

    Backends agree within 2^-45 of the values, and slopes are rounded to their dtype after that.

    logits: (N, classes) float32 or float64. They may be infinite, as those of classes that a model masks;
        where no class but the label is possible, loss and slope are 0.
    labels: (N,) int64. One that is no class makes its sample's loss and slope NaN.

    Returns loss (N,), float64, and slope (N, classes), in the logits' dtype.
    """
    return _CROSS_ENTROPY.number(logits, labels)
