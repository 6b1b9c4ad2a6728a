"""RoLI's training as its public code spends it, in our own words: in float32, nine forward and eight backward
passes a batch, waiting for the device several times in each.

Source: what is known of the public implementation (Hua et al. 2024) is listed with :func:`roli_pgd`'s passes.
Its traps are not repeated: the warm-up begins above 0, weight decay is in effect, seeds are given. So what it
learns is what ours learns, and only the price differs.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roli_fast.data import Splits
from roli_fast.training import Recipe

from .loops import roli_pgd


@dataclasses.dataclass
class Spent:
    """Images that went forward, and backward to the input, and in that to the weights as well."""

    forwards: int = 0
    backwards: int = 0
    to_weights: int = 0


class Counted(nn.Module):
    """A model that counts what goes through it."""

    def __init__(self, model: nn.Module, spent: Spent):
        super().__init__()
        self.model, self._spent = model, spent

    def forward(self, images: Tensor) -> Tensor:
        self._spent.forwards += len(images)
        output = self.model(images)
        full = all(p.requires_grad for p in self.model.parameters())
        if output.requires_grad and (full or images.requires_grad):

            def count(_: Tensor, images: int = len(images)) -> None:
                self._spent.backwards += images
                self._spent.to_weights += images if full else 0

            output.register_hook(count)
        return output


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """One parameter after the other, in Python."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if recipe.opt == "momentum":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, foreach=False)
    return torch.optim.AdamW(groups, lr=recipe.lr, foreach=False)


def attacked(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    model.eval()
    return roli_pgd(model, images, labels, recipe.eps, recipe.attack_step, recipe.steps).detach()


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> tuple[float, int]:
    """The loss, and how many were right."""
    model.train()
    logits = model(images)
    loss = F.cross_entropy(logits, labels)
    if torch.isnan(loss).item() or torch.isinf(loss).item():
        raise RuntimeError("the loss is not finite")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), int((logits.argmax(1) == labels).sum().item())


def train(
    model: nn.Module,
    splits: Splits,
    recipe: Recipe,
    on_epoch_end: Callable[[nn.Module, dict[str, Any]], object] | None = None,
) -> tuple[list[dict[str, Any]], Spent]:
    """Rows as :func:`roli_fast.training.train` has them, and what was spent; the model ends with the weights
    of the last epoch that validated best. splits: in memory, bytes. on_epoch_end: as there."""
    spent, device = Spent(), next(model.parameters()).device
    counted = Counted(model, spent)
    optimizer = optimizer_of(model, recipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    images, labels = splits.train.images, splits.train.labels
    steps = max(1, len(images) // recipe.batch_size)
    history, best = [], {}
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generator)
        for batch in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * steps + batch, steps, recipe)
            rows = order[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
            pixels, classes = images[rows].float().div(255).to(device), labels[rows].to(device)
            step(counted, optimizer, attacked(counted, pixels, classes, recipe), classes)
        clean, robust = validate(counted, splits, recipe)
        row = {"epoch": epoch + 1, "val_clean": clean, "val_robust": robust}
        if not history or (robust, clean) > max((r["val_robust"], r["val_clean"]) for r in history):
            best = {name: value.clone() for name, value in model.state_dict().items()}
        history.append(row)
        if on_epoch_end is not None:
            on_epoch_end(model, row)
    model.load_state_dict(best)
    model.eval()
    return history, spent


def learning_rate(number: int, steps: int, recipe: Recipe) -> float:
    """Linear over the warm-up, then a cosine."""
    warmup = recipe.warmup_epochs * steps
    if number < warmup:
        return recipe.lr * (number + 1) / (warmup + 1)
    return 0.5 * recipe.lr * (1 + math.cos(math.pi * (number - warmup) / (recipe.epochs * steps - warmup)))


def validate(model: nn.Module, splits: Splits, recipe: Recipe) -> tuple[float, float]:
    """Clean accuracy, and under PGD of as many steps as ours takes."""
    model.eval()
    device = next(model.parameters()).device
    clean = robust = 0
    batches = zip(
        splits.val.images.split(recipe.batch_size), splits.val.labels.split(recipe.batch_size), strict=True
    )
    for images, labels in batches:
        images, labels = images.float().div(255).to(device), labels.to(device)
        adv = roli_pgd(model, images, labels, recipe.eps, recipe.eps / 4, recipe.val_steps)
        with torch.no_grad():
            clean += int((model(images).argmax(1) == labels).sum().item())
            robust += int((model(adv).argmax(1) == labels).sum().item())
    return clean / len(splits.val), robust / len(splits.val)
