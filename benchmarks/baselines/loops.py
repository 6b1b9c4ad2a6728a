"""The peers' PGD in Linf: their loops in our own words, without the checks and conversions around them.

Arguments: model maps pixels to logits, and its parameters require gradients, as in training; images (N, C, H,
W) in [0, 1]; labels (N,).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ops import foolbox_linf_step, torchattacks_linf_step


def torchattacks_pgd(
    model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, eps: float, alpha: float, steps: int
) -> Tensor:
    """Asks for the gradient of the input alone."""
    adv = images + torch.empty_like(images).uniform_(-eps, eps)
    adv = torch.clamp(adv, min=0, max=1).detach()
    for _ in range(steps):
        adv.requires_grad = True
        cost = F.cross_entropy(model(adv), labels)
        (grad,) = torch.autograd.grad(cost, adv, retain_graph=False, create_graph=False)
        adv = torchattacks_linf_step(adv, grad, images, alpha, eps)
    return adv


def foolbox_pgd(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, step_size: float, steps: int
) -> Tensor:
    """Calls backward(), as ART does: the weights get gradients, in every step on top of the last ones."""
    x = torch.clamp(images + torch.zeros_like(images).uniform_(-eps, eps), 0, 1)
    for _ in range(steps):
        x = x.clone().requires_grad_()
        F.cross_entropy(model(x), labels, reduction="none").sum().backward()
        assert x.grad is not None
        x = foolbox_linf_step(x.detach(), x.grad, images, step_size, eps)
    return x


def roli_pgd(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, step_size: float, steps: int
) -> Tensor:
    """The public code of RoLI: weight gradients in every step, and the iterate whose mean loss is highest,
    the last included, for which the model is asked once more."""
    adv = torch.clamp(images + 2 * eps * (torch.rand_like(images) - 0.5), 0, 1)
    best, highest = adv, -torch.inf
    for _ in range(steps):
        adv = adv.clone().detach().requires_grad_(True)
        loss = F.cross_entropy(model(adv), labels)
        loss.backward()
        assert adv.grad is not None
        with torch.no_grad():
            if loss.item() > highest:
                best, highest = adv.detach().clone(), loss.item()
            adv = adv + step_size * adv.grad.sign()
            adv = torch.clamp(images + torch.clamp(adv - images, -eps, eps), 0, 1)
    with torch.no_grad():
        loss = F.cross_entropy(model(adv), labels)
        return adv.clone() if loss.item() > highest else best


def backward_to_weights(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """A training step without its optimiser."""
    model.zero_grad(set_to_none=True)
    F.cross_entropy(model(images), labels).backward()


def roli_batch(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, step_size: float, steps: int
) -> Tensor:
    """The public code of RoLI on a training batch: with 7 steps 9 forward and 8 backward passes."""
    adv = roli_pgd(model, images, labels, eps, step_size, steps)
    backward_to_weights(model, adv, labels)
    return adv
