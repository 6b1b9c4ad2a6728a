"""Projected gradient descent (Madry et al., Towards Deep Learning Models Resistant to Adversarial
Attacks, ICLR 2018)."""

import dataclasses
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import ops
from ..engine import AttackView, InputGradient
from ..engine.attack_view import PRECISIONS
from .inputs import (
    ITERATES,
    check_bounds,
    check_choice,
    check_count,
    check_inputs,
    check_size,
    check_values,
    draw_key,
    refuse,
    to_images,
    to_state,
)
from .losses import Loss, get_loss
from .verify import NORMS, is_fooled, predict

Model = Callable[[Tensor], Tensor]


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


class PGD:
    """Projected gradient descent with a random start.

    norm: "linf".
    eps, step_size: in pixel units: numbers, or tensors (N,).
    steps: gradient steps, at least 1.
    random_start: uniform in the ball; otherwise the clean image.
    restarts: runs from different starts; per sample the best is kept: fooled first, then the highest loss.
    loss: "ce", or a callable of float logits (N, classes) and labels (N,) that returns (N,).
    targeted: labels are targets, and the loss is decreased.
    bounds: the box that pixels lie in.
    iterate: "last"; or "best": misclassified first, then the highest loss, per sample, the last included.
    early_stop: a fooled sample leaves the batch (evaluation; needs iterate="best"). Success stays the
        same; images and losses of fooled samples may differ.
    precision: of the copy that gives gradients, "fp32" or "bf16"; success is decided by the model itself.
    generator: source of the random key; default torch's own, so that ``torch.manual_seed`` repeats a run.

    ``attack(model, images, labels)`` returns adversarial images, ``attack.run(...)`` an
    :class:`AttackResult`. Every draw is a function of key, sample index, restart and pixel, so that a
    result does not depend on batch size or order where the model's own gradients do not.
    """

    def __init__(
        self,
        norm: str = "linf",
        eps: float | Tensor = 8 / 255,
        step_size: float | Tensor = 2 / 255,
        steps: int = 10,
        random_start: bool = True,
        restarts: int = 1,
        loss: str | Loss = "ce",
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        iterate: str = "last",
        early_stop: bool = False,
        precision: str = "fp32",
        generator: torch.Generator | None = None,
    ):
        check_choice("norm", norm, NORMS)
        check_choice("iterate", iterate, ITERATES)
        check_choice("precision", precision, tuple(PRECISIONS))
        check_size("eps", eps)
        check_size("step_size", step_size)
        check_count("steps", steps)
        check_count("restarts", restarts)
        check_bounds(bounds)
        if restarts > 1 and not random_start:
            refuse("restarts", f"{restarts} without a random start, which would all be the same", "1")
        if early_stop and iterate != "best":
            refuse("early_stop", f"True with iterate={iterate!r}", "iterate='best', whose success it keeps")
        self.norm, self.eps, self.step_size, self.steps = norm, eps, step_size, steps
        self.random_start, self.restarts, self.loss, self.targeted = random_start, restarts, loss, targeted
        self.bounds, self.iterate, self.early_stop = bounds, iterate, early_stop
        self.precision, self.generator = precision, generator
        self._objective = get_loss(loss, targeted)
        self._views: weakref.WeakKeyDictionary[nn.Module, AttackView] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        shown = (
            "norm eps step_size steps random_start restarts loss targeted bounds iterate early_stop precision"
        )
        return f"PGD({', '.join(f'{name}={getattr(self, name)!r}' for name in shown.split())})"

    def __call__(self, model: Model, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images for a batch, in the images' dtype and layout (float32 for uint8 images).

        model: maps images (N, ...) to logits (N, classes); it is attacked in eval mode and left as it was.
        images: (N, ...) within bounds: any float dtype, or uint8 for v / 255.
        labels: (N,) int64 on images' device.

        Raises ValueError or TypeError for inputs that do not fit, before anything is attacked.
        """
        return self._attack(model, images, labels, None, judged=self.restarts > 1).adversarial

    def run(
        self, model: Model, images: Tensor, labels: Tensor, *, index: Tensor | None = None
    ) -> AttackResult:
        """As a call, with all that an evaluation needs.

        index: (N,) int64, which sample of the data set each one is: the same index draws the same
            random numbers in any batch. Default 0 .. N - 1.
        """
        return self._attack(model, images, labels, index, judged=True)

    def view(self, model: Model) -> AttackView:
        """The model as this attack computes gradients with it, with the model's current weights."""
        view = self._views.get(model) if isinstance(model, nn.Module) else None
        if view is None:
            view = AttackView(model, precision=self.precision)
            if isinstance(model, nn.Module):
                self._views[model] = view
        else:
            view.refresh()
        return view

    def _attack(
        self, model: Model, images: Tensor, labels: Tensor, index: Tensor | None, judged: bool
    ) -> AttackResult:
        check_inputs(images, labels, index, eps=self.eps, step_size=self.step_size)
        with torch.inference_mode(False), torch.no_grad():
            if labels.is_inference():
                labels = labels.clone()  # autograd saves labels, and cannot save an inference tensor
            view = self.view(model)
            check_values(images, labels, self.bounds, view.classes)
            if view.classes is None:
                view.confirm(to_state(images[:_CONFIRM_SAMPLES]))
                check_values(images, labels, self.bounds, view.classes)
            return _Run(self, model, view, images, labels, index).result(judged)


# How many samples of the first batch a new view is compared with the model on.
_CONFIRM_SAMPLES = 4


class _Run:
    """One call of a PGD attack."""

    def __init__(
        self,
        attack: PGD,
        model: Model,
        view: AttackView,
        images: Tensor,
        labels: Tensor,
        index: Tensor | None,
    ):
        self.attack, self.model, self.view = attack, model, view
        self.images, self.labels = images, labels
        self.index = torch.arange(len(images), device=images.device) if index is None else index
        self.objective = get_loss(attack.loss, attack.targeted)
        self.gradient = InputGradient(view, self.objective)
        self.judgements = 0
        # The best that has been judged so far.
        self.adversarial = to_images(to_state(images), images)
        self.fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.losses = torch.full((len(images),), -torch.inf, device=images.device)

    def result(self, judged: bool) -> AttackResult:
        attack = self.attack
        key = draw_key(attack.generator, self.images.device) if attack.random_start else None
        rows = torch.arange(len(self.images), device=self.images.device)
        for restart in range(attack.restarts):
            if len(rows) == 0:
                break
            state = self.start(rows, key, restart)
            state = self.ascend(state)
            if judged:
                self.judge(state.rows, state.result())
            else:
                self.adversarial = to_images(state.result(), self.images)
            if attack.early_stop:
                rows = (~self.fooled).nonzero().flatten()
        return AttackResult(
            self.adversarial,
            self.fooled,
            self.losses,
            self.gradient.forwards + self.judgements,
            self.gradient.gradients,
        )

    def start(self, rows: Tensor, key: Tensor | None, restart: int) -> "_State":
        layout = self.view.memory_format(self.images)
        clean = self.images[rows] if len(rows) < len(self.images) else self.images
        if layout != torch.preserve_format:
            clean = clean.contiguous(memory_format=layout)
        eps, step_size = (
            self.size(self.attack.eps, rows, clean),
            self.size(self.attack.step_size, rows, clean),
        )
        if key is None:
            adv = to_state(clean)
        else:
            seed = torch.cat([key, torch.full_like(key, restart)])
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
        loss = self.objective(logits.float(), labels)
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
