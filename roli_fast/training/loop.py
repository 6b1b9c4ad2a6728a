"""Training, with or without an attack in the loop."""

import copy
import dataclasses
import time
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from ..attacks import PGD
from ..evaluation import Accuracy, evaluate

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One epoch of training.

    loss, accuracy: means over the inputs that were trained on, attacked ones under an attack.
    seconds: wall-clock time.
    """

    loss: float
    accuracy: float
    seconds: float


def train_epoch(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    attack: PGD | None = None,
) -> Epoch:
    """One pass of cross-entropy training; with an attack, on adversarial images (Madry et al. 2018).

    The attack sees the model in eval mode, the training step in train mode. Nothing waits for the device
    until the epoch is over.
    """
    begin = time.perf_counter()
    model.train()
    losses, hits, count = [], [], 0
    for images, labels in batches:
        inputs = images if attack is None else attack(model, images, labels)
        logits = model(inputs)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach() * len(images))
        hits.append((logits.detach().argmax(dim=1) == labels).sum())
        count += len(images)
    mean = torch.stack([torch.stack(losses).sum(), torch.stack(hits).sum()]) / count
    loss_value, accuracy = mean.tolist()
    return Epoch(loss_value, accuracy, time.perf_counter() - begin)


@dataclasses.dataclass(frozen=True)
class Fit:
    """A finished training.

    epochs, validation: one entry per epoch.
    best: the epoch with the highest validation accuracy, whose weights the model has now.
    """

    epochs: list[Epoch]
    validation: list[Accuracy]
    best: int


def fit(
    model: nn.Module,
    train: Batches,
    val: Batches,
    *,
    epochs: int,
    lr: float,
    opt: str = "adamw",
    weight_decay: float = 0.05,
    warmup_epochs: int = 0,
    attack: PGD | None = None,
    val_attack: PGD | None = None,
    on_epoch: Callable[[Epoch, Accuracy], None] | None = None,
) -> Fit:
    """Trains with a timm optimiser and a cosine schedule, and ends with the best validation weights.

    attack: None for normal training.
    val_attack: under which validation accuracy is measured; None for clean accuracy.
    on_epoch: called after each epoch.
    """
    optimizer = create_optimizer_v2(model, opt=opt, lr=lr, weight_decay=weight_decay)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=epochs,
        warmup_t=warmup_epochs,
        warmup_lr_init=lr / (warmup_epochs + 1),
        warmup_prefix=True,
    )
    history: list[Epoch] = []
    validation: list[Accuracy] = []
    best, best_weights = 0, None
    for epoch in range(epochs):
        schedule.step(epoch)
        history.append(train_epoch(model, train, optimizer, attack))
        validation.append(evaluate(model, val, val_attack))
        if best_weights is None or validation[-1].value > validation[best].value:
            best, best_weights = epoch, copy.deepcopy(model.state_dict())
        if on_epoch is not None:
            on_epoch(history[-1], validation[-1])
    if best_weights is not None:
        model.load_state_dict(best_weights)
    return Fit(history, validation, best)
