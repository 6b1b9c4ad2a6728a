"""Projected gradient descent (Madry et al., Towards Deep Learning Models Resistant to Adversarial
Attacks, ICLR 2018)."""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..engine import AttackView
from ..engine.attack_view import PRECISIONS
from .descent import AttackResult, Descent
from .inputs import (
    ITERATES,
    check_bounds,
    check_choice,
    check_count,
    check_generator,
    check_inputs,
    check_size,
    check_values,
    refuse,
    to_state,
)
from .losses import Loss, get_loss
from .verify import NORMS

Model = Callable[[Tensor], Tensor]


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
        self._loss = get_loss(loss)
        self._views: weakref.WeakKeyDictionary[nn.Module, AttackView] = weakref.WeakKeyDictionary()

    def objective(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What is increased, (N,): the loss, or minus the loss for a target."""
        loss = self._loss(logits, labels)
        return -loss if self.targeted else loss

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_views"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._views = weakref.WeakKeyDictionary()

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
        with torch.inference_mode(False), torch.no_grad():
            descent = self._begin(model, images, labels, None)
            single = self.restarts == 1 and not self.early_stop
            return descent.unjudged() if single else descent.judged().adversarial

    def run(
        self, model: Model, images: Tensor, labels: Tensor, *, index: Tensor | None = None
    ) -> AttackResult:
        """As a call, with all that an evaluation needs.

        index: (N,) int64, which sample of the data set each one is: the same index draws the same
            random numbers in any batch. Default 0 .. N - 1.
        """
        with torch.inference_mode(False), torch.no_grad():
            return self._begin(model, images, labels, index).judged()

    def view(self, model: Model) -> AttackView:
        """The model as this attack computes gradients with it, with the model's current weights."""
        view = self._views.get(model) if isinstance(model, nn.Module) else None
        if view is None:
            view = AttackView(model, precision=self.precision)
            if isinstance(model, nn.Module):
                view.hold_weakly()
                self._views[model] = view
        else:
            view.refresh()
        return view

    def _begin(self, model: Model, images: Tensor, labels: Tensor, index: Tensor | None) -> Descent:
        """All checks, then a descent that is ready to go."""
        check_inputs(images, labels, index, eps=self.eps, step_size=self.step_size)
        check_generator(self.generator, images.device)
        view = self.view(model)
        check_values(images, labels, self.bounds, view.classes)
        if view.classes is None and len(images) > 0:
            view.confirm(to_state(images))
            check_values(images, labels, self.bounds, view.classes)
        return Descent(self, model, view, images, labels, index)
