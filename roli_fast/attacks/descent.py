"""The loop: gradient, step, and what is kept of it."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import ops
from ..engine import AttackView, InputGradient
from .inputs import draw_key, to_images, to_state
from .verify import is_fooled, predict

if TYPE_CHECKING:
    from .pgd import PGD


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What an attack reached and what it spent.

    adversarial: (N, ...) in the images' dtype and layout (float32 for uint8 images).
    success: (N,) bool, by the caller's own model on ``adversarial``.
    loss: (N,) float, the caller's model's loss there, as it was increased (targeted: minus the loss).
    forwards, gradients: how many samples went forward, and backward, all calls of the model counted.
    """

    adversarial: Tensor
    success: Tensor
    loss: Tensor
    forwards: int
    gradients: int


class Descent:
    """One call of an attack on one batch."""

    def __init__(
        self,
        attack: "PGD",
        model: Callable[[Tensor], Tensor],
        view: AttackView,
        images: Tensor,
        labels: Tensor,
        index: Tensor | None,
    ):
        self.attack, self.model, self.view, self.images = attack, model, view, images
        # Autograd saves labels for the backward pass, and cannot save an inference tensor.
        self.labels = labels.clone() if labels.is_inference() else labels
        self.rows = torch.arange(len(images), device=images.device)
        self.index = self.rows if index is None else index
        self.gradient = InputGradient(view, attack.objective)
        self.key = draw_key(attack.generator, images.device) if attack.random_start else None
        # The best that the model has judged so far.
        self.adversarial = to_images(to_state(images), images)
        self.fooled = torch.zeros_like(self.rows, dtype=torch.bool)
        self.losses = torch.full_like(self.rows, -torch.inf, dtype=torch.float32)
        self.judgements = 0

    def unjudged(self) -> Tensor:
        """Adversarial images of a single descent in which every sample takes part to the end."""
        if len(self.rows) == 0:
            return self.adversarial
        state = self.start(self.rows, 0)
        return to_images(self.ascend(state).result(), self.images)

    def judged(self) -> AttackResult:
        """All restarts, judged by the model."""
        if len(self.rows) > 0:
            predict(self.model, self.adversarial[:1])  # a model that cannot be asked says so before the work
        rows = self.rows
        for restart in range(self.attack.restarts):
            if len(rows) == 0:
                break
            state = self.ascend(self.start(rows, restart))
            if len(state.rows) > 0:
                self.judge(state.rows, state.result())
            if self.attack.early_stop:
                rows = (~self.fooled).nonzero().flatten()
        forwards = self.gradient.forwards + self.judgements
        return AttackResult(self.adversarial, self.fooled, self.losses, forwards, self.gradient.gradients)

    def start(self, rows: Tensor, restart: int) -> "_State":
        layout = self.view.memory_format(self.images)
        clean = self.images[rows] if len(rows) < len(self.images) else self.images
        if layout != torch.preserve_format:
            clean = clean.contiguous(memory_format=layout)
        eps = self.size(self.attack.eps, rows, clean)
        step_size = self.size(self.attack.step_size, rows, clean)
        if self.key is None:
            adv = to_state(clean)
        else:
            seed = torch.cat([self.key, torch.full_like(self.key, restart)])
            adv = ops.linf_start(clean, eps, seed, *self.attack.bounds, index=self.index[rows])
        best = _Best(adv) if self.attack.iterate == "best" else None
        return _State(rows, self.labels[rows], clean, adv, self.view.prepare(adv), eps, step_size, best)

    def size(self, size: float | Tensor, rows: Tensor, clean: Tensor) -> float | Tensor:
        if not isinstance(size, Tensor):
            return size
        size = size.to(clean.device, torch.float64 if clean.dtype == torch.float64 else torch.float32)
        return _take_size(size, rows)

    def ascend(self, state: "_State") -> "_State":
        for _ in range(self.attack.steps):
            gradient, loss, logits = self.gradient(state.x, state.labels)
            if state.best is not None:
                fooled = is_fooled(logits, state.labels, self.attack.targeted)
                state.best.offer(state.adv, fooled, loss)
                if self.attack.early_stop:
                    stays = ~self.confirmed(state, fooled)
                    if not stays.all():
                        state, gradient = state.take(stays), gradient[stays]
                    if len(state.rows) == 0:
                        return state
            mean, std = self.view.normalization(state.adv)
            ops.linf_step_(
                state.adv,
                gradient,
                state.clean,
                state.step_size,
                state.eps,
                *self.attack.bounds,
                out=state.x,
                mean=mean,
                std=std,
            )
        if state.best is not None:
            loss, logits = self.gradient.loss(state.x, state.labels)
            state.best.offer(state.adv, is_fooled(logits, state.labels, self.attack.targeted), loss)
        return state

    def confirmed(self, state: "_State", fooled: Tensor) -> Tensor:
        """Which of the samples that the view calls fooled the model itself calls so."""
        if fooled.any():
            fooled = fooled.clone()
            fooled[fooled.clone()] = self.judge(state.rows[fooled], state.adv[fooled])
        return fooled

    def judge(self, rows: Tensor, adv: Tensor) -> Tensor:
        """Asks the model about these states of these samples, and keeps them where they beat the best."""
        images = to_images(adv, self.images[rows])
        labels = self.labels[rows]
        logits = predict(self.model, images)
        loss = self.attack.objective(logits.float(), labels)
        fooled = is_fooled(logits, labels, self.attack.targeted)
        self.judgements += len(rows)
        better = beats(fooled, loss, self.fooled[rows], self.losses[rows])
        self.adversarial[rows[better]] = images[better]
        self.fooled[rows[better]] = fooled[better]
        self.losses[rows[better]] = loss[better]
        return fooled


def beats(fooled: Tensor, loss: Tensor, best_fooled: Tensor, best_loss: Tensor) -> Tensor:
    """Fooled first, then the higher loss: (N,) bool."""
    return (fooled & ~best_fooled) | ((fooled == best_fooled) & (loss > best_loss))


class _Best:
    """The best iterate of each sample, by what the view says of it."""

    def __init__(self, adv: Tensor):
        self.adv = adv.clone()
        self.fooled = torch.zeros(len(adv), dtype=torch.bool, device=adv.device)
        self.loss = torch.full((len(adv),), -torch.inf, device=adv.device)

    def offer(self, adv: Tensor, fooled: Tensor, loss: Tensor) -> None:
        better = beats(fooled, loss, self.fooled, self.loss)
        self.adv[better] = adv[better]
        self.fooled = torch.where(better, fooled, self.fooled)
        self.loss = torch.where(better, loss.to(self.loss), self.loss)

    def take(self, stays: Tensor) -> "_Best":
        taken = _Best(self.adv[stays])
        taken.fooled, taken.loss = self.fooled[stays], self.loss[stays]
        return taken


@dataclasses.dataclass
class _State:
    """The samples that still take part in a restart."""

    rows: Tensor  # (n,) which of the batch they are
    labels: Tensor
    clean: Tensor
    adv: Tensor
    x: Tensor  # adv as the view eats it
    eps: float | Tensor
    step_size: float | Tensor
    best: _Best | None

    def take(self, stays: Tensor) -> "_State":
        return _State(
            self.rows[stays],
            self.labels[stays],
            _take(self.clean, stays),
            _take(self.adv, stays),
            _take(self.x, stays),
            _take_size(self.eps, stays),
            _take_size(self.step_size, stays),
            self.best.take(stays) if self.best is not None else None,
        )

    def result(self) -> Tensor:
        return self.best.adv if self.best is not None else self.adv


def _take(images: Tensor, stays: Tensor) -> Tensor:
    """images[stays], laid out as images are."""
    if images.dim() == 4 and images.is_contiguous(memory_format=torch.channels_last):
        return images[stays].contiguous(memory_format=torch.channels_last)
    return images[stays]


def _take_size(size: float | Tensor, stays: Tensor) -> float | Tensor:
    return size[stays] if isinstance(size, Tensor) and size.dim() else size
