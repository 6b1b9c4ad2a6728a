"""torchattacks' attacks that take a number of gradient steps, or none."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import attacks as ours
from ...attacks.inputs import check_size, to_state
from ...attacks.norms import normal_draws, uniform_draws
from ...engine.modes import Model
from ...ops.reference.shared import over_batch
from .attack import Attack, Single


class VANILA(Attack):
    def __init__(self, model: Model):
        super().__init__("VANILA", model)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return images.detach().clone().to(self.device)


class FGSM(Single):
    _modes = ("default", "targeted")

    def __init__(self, model: Model, eps: float = 8 / 255):
        super().__init__("FGSM", model)
        self.eps = eps

    def _made(self) -> ours.Attack:
        sizes = {"eps": self.eps, "step_size": self.eps}
        return self._make(ours.PGD, **sizes, steps=1, random_start=False, targeted=self.targeted)


class _Steps(Single):
    """Several steps of size alpha in the Linf ball of radius eps, both in pixel units."""

    _modes: Sequence[str] = ("default", "targeted")
    _name: str
    random_start: bool = False

    def __init__(self, model: Model, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10):
        super().__init__(self._name, model)
        self.eps, self.alpha, self.steps = eps, alpha, steps

    def _made(self) -> ours.Attack:
        return self._make(ours.PGD, **self._settings())

    def _settings(self) -> dict[str, Any]:
        check_size("alpha", self.alpha)
        return {
            "eps": self.eps,
            "step_size": self.alpha,
            "steps": self.steps,
            "random_start": bool(self.random_start),
            "targeted": self.targeted,
        }


class BIM(_Steps):
    """steps: number of steps; 0 for as many as in its paper."""

    _name = "BIM"

    def __init__(self, model: Model, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10):
        super().__init__(model, eps, alpha, steps or int(min(eps * 255 + 4, 1.25 * eps * 255)))


class PGD(_Steps):
    _name = "PGD"

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        random_start: bool = True,
    ):
        super().__init__(model, eps, alpha, steps)
        self.random_start = random_start


class EOTPGD(_Steps):
    _name = "EOTPGD"

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        eot_iter: int = 2,
        random_start: bool = True,
    ):
        super().__init__(model, eps, alpha, steps)
        self.random_start, self.eot_iter = random_start, eot_iter

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "eot": self.eot_iter}


class FFGSM(_Steps):
    _name = "FFGSM"
    random_start = True
    steps = 1

    def __init__(self, model: Model, eps: float = 8 / 255, alpha: float = 10 / 255):
        Single.__init__(self, self._name, model)
        self.eps, self.alpha = eps, alpha


class _FromACorner(ours.PGD):
    """Starts with a step of random signs, which may lead out of the ball; the next step is projected onto it.

    reach: the size of that first step.
    """

    def __init__(self, *arguments: Any, reach: float, **options: Any):
        self.reach = reach
        super().__init__(*arguments, **options)

    def start(self, clean: Tensor, eps: float | Tensor, seed: Tensor, index: Tensor) -> Tensor:
        return (to_state(clean) + self.reach * uniform_draws(clean, seed, index).sign()).clamp(*self.bounds)


class RFGSM(_Steps):
    _name = "RFGSM"
    random_start = True

    def _made(self) -> ours.Attack:
        return self._make(_FromACorner, **self._settings(), reach=self.alpha)


class MIFGSM(_Steps):
    _name = "MIFGSM"

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
    ):
        super().__init__(model, eps, alpha, steps)
        self.decay = decay

    def _made(self) -> ours.Attack:
        return self._make(ours.MIFGSM, **self._settings(), decay=self.decay)


class TPGD(_Steps):
    _name = "TPGD"
    _modes = ("default",)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return super().forward(images, labels)

    def _made(self) -> ours.Attack:
        return self._make(ours.TPGD, **self._settings())

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        return {name: settings[name] for name in ("eps", "step_size", "steps")}


class _NearTheImage(ours.PGD):
    """Starts in the L2 ball at a distance from the image that is uniform from 0 to eps, which is nearer than
    most of the ball's points are."""

    def start(self, clean: Tensor, eps: float | Tensor, seed: Tensor, index: Tensor) -> Tensor:
        normal = normal_draws(clean, seed, index)
        other_stream = seed + (torch.arange(2, device=seed.device) << 32)
        radius = uniform_draws(torch.zeros_like(index, dtype=normal.dtype), other_stream, index).abs() * eps
        change = over_batch(radius / normal.flatten(1).norm(dim=1), normal) * normal
        return (to_state(clean) + change).clamp(*self.bounds)


class PGDL2(_Steps):
    """eps_for_division: has no effect, since a gradient of any length gives a full step, and a zero gradient
    none."""

    _name = "PGDL2"

    def __init__(
        self,
        model: Model,
        eps: float = 1.0,
        alpha: float = 0.2,
        steps: int = 10,
        random_start: bool = True,
        eps_for_division: float = 1e-10,
    ):
        super().__init__(model, eps, alpha, steps)
        self.random_start, self.eps_for_division = random_start, eps_for_division

    def _made(self) -> ours.Attack:
        return self._make(_NearTheImage, norm="l2", **self._settings())
