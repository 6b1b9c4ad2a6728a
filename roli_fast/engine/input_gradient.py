"""The gradient of a loss with respect to the input, and nothing else."""

from collections.abc import Callable

import torch
from torch import Tensor

from .modes import gradients

Loss = Callable[[Tensor, Tensor], Tensor]


class InputGradient:
    """Loss per sample and its gradient with respect to prepared inputs.

    No other gradient is computed or written. Works for callers under no_grad, inference_mode and
    autocast. Counts what it spends, in samples.

    view: maps prepared inputs (N, ...) to logits (N, classes), an :class:`AttackView` as a rule.
    loss: maps float logits (N, classes) and labels (N,) to (N,); the direction is that of its increase.
    """

    def __init__(self, view: Callable[[Tensor], Tensor], loss: Loss):
        self._view, self._loss = view, loss
        self.forwards = 0
        self.gradients = 0

    def __call__(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """gradient (N, ...) in x's dtype, loss (N,) and logits (N, classes), all detached."""
        with gradients():
            x = x.detach().requires_grad_()
            logits, loss = self._evaluate(x, labels)
            gradient = (
                torch.autograd.grad(loss.sum(), x, allow_unused=True)[0] if loss.requires_grad else None
            )
        self.gradients += len(x)
        if gradient is None:
            raise ValueError("model: its output has no gradient with respect to the input")
        return gradient, loss.detach(), logits.detach()

    def loss(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """loss (N,) and logits (N, classes), without the gradient."""
        with gradients(), torch.no_grad():
            logits, loss = self._evaluate(x, labels)
        return loss, logits

    def _evaluate(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._view(x)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        self.forwards += len(x)
        loss = self._loss(logits, labels)
        if loss.shape != labels.shape:
            raise ValueError(
                f"loss: it returned shape {tuple(loss.shape)}, accepted: one number per sample, "
                f"{tuple(labels.shape)} (reduction='none')"
            )
        return logits, loss
