"""The loss that attacks increase."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_LINEAR = 40.0  # from where on log(1 + exp(gap)) is gap in float64
_LEAST = 2.0**-60  # which leaves float32 room for what the layers before make of it


@torch.no_grad()
def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    known = ((labels >= 0) & (labels < logits.shape[1]))[:, None]
    label = torch.where(known, labels[:, None], 0)
    others = logits.double().scatter(1, label, -math.inf)
    largest = others.amax(1, keepdim=True)
    shares = (others - largest).exp()
    total = shares.sum(1, keepdim=True)
    rest = largest + torch.where(largest.isinf(), 0.0, total.log())
    gap = torch.where(known, rest - logits.gather(1, label), math.nan)
    length = gap.sigmoid().clamp(min=_LEAST)
    slope = (shares / total).scatter(1, label, -1.0) * length
    slope = torch.where(known & (largest == -math.inf), 0.0, slope)
    return F.softplus(gap, threshold=_LINEAR)[:, 0], torch.empty_like(logits).copy_(slope)
