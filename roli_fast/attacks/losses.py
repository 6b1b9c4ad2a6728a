"""Losses that an attack increases: float logits (N, classes) and a target to (N,)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..checks import refuse
from ..engine import widened

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """In float64, with a slope that never vanishes (:func:`roli_fast.ops.cross_entropy`): however sure the
    model is, an attack has a direction."""
    return _CrossEntropy.apply(widened(logits), labels)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        loss, slope = ops.cross_entropy(logits, labels)
        ctx.save_for_backward(slope)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * upstream.to(slope.dtype)[:, None], None


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest other logit minus the label's (Carlini and Wagner 2017): positive where fooled."""
    return _largest_other(logits, labels) - _of(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020, eq. 6): the margin over the distance between the
    largest and the third largest logit, so that the logits' scale means nothing. At least 3 classes."""
    require_classes("dlr", logits, 3)
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + _TINY)


def targeted_dlr(logits: Tensor, pairs: Tensor) -> Tensor:
    """DLR towards a target (Croce and Hein 2020, eq. 7); pairs: (N, 2) int64, label and target. At least 4
    classes."""
    require_classes("targeted dlr", logits, 4)
    top = logits.topk(4, dim=1).values
    spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    return (_of(logits, pairs[:, 1]) - _of(logits, pairs[:, 0])) / (spread + _TINY)


def rivals(logits: Tensor, labels: Tensor) -> Tensor:
    """The other classes, the likeliest first: (N, classes - 1) int64."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, :-1]


def kl_divergence(logits: Tensor, probabilities: Tensor) -> Tensor:
    """KL(probabilities || softmax(logits)), both (N, classes) (TRADES; Zhang et al. 2019, eq. 3)."""
    log = F.log_softmax(logits.double(), dim=1).masked_fill(probabilities == 0, 0)  # 0 log 0 counts as 0
    return F.kl_div(log, probabilities, reduction="none").sum(dim=1)


def feature_distance(features: Tensor, clean: Tensor) -> Tensor:
    """Squared Euclidean distance between features (N, ...)."""
    return (features - clean).reshape(len(features), -1).square().sum(dim=1)


_TINY = 1e-12  # keeps ratios finite where logits are equal, as in the authors' implementation


def _of(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.gather(1, labels[:, None])[:, 0]


def _largest_other(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


def require_classes(loss: str, logits: Tensor, least: int) -> None:
    if logits.shape[1] < least:
        got = f"{loss!r} for a model of {logits.shape[1]} classes"
        refuse("loss", got, f"{least} or more; 'ce' and 'margin' take any number")


_LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


def get_loss(loss: str | Loss) -> Loss:
    if callable(loss):
        return loss
    if loss not in _LOSSES:
        refuse("loss", repr(loss), f"{', '.join(_LOSSES)}, or a callable (logits, labels) -> (N,)")
    return _LOSSES[loss]
