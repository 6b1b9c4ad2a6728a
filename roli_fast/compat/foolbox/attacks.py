"""foolbox's attacks of the PGD family: ``attack(fmodel, inputs, criterion, epsilons=...)``."""

from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor

from ... import attacks as ours
from ...attacks.ascent import State
from ...attacks.inputs import check_size
from ...checks import check_count, refuse
from ..core import Closed, Maker, check_methods, no_such, read, run
from ..steps import OwnStep, shrink_, unit
from .criteria import goal, raw
from .models import pixel_model


class _FoolboxStep(OwnStep):
    """foolbox's step. In L1 it goes along the gradient itself, and back into the ball along the line to the
    image. Momentum is a sum of gradients scaled to length 1, or in Linf of their signs."""

    def accumulate_(self, momentum: Tensor, gradient: Tensor) -> None:
        assert self.decay is not None
        direction = gradient.sign() if self.norm == "linf" else unit(gradient, self.norm)
        momentum.mul_(self.decay).add_(direction)

    def step_(self, state: State, direction: Tensor) -> None:
        if self.norm != "l1":
            self._step(state, direction)
            return
        state.adv.add_(state.step_size * unit(direction, "l1"))
        shrink_(state.adv, state.clean, state.eps)
        state.adv.clamp_(*self.bounds)


class _GradientDescent(Closed):
    """The base of all attacks here. The defaults are PGD's; other attacks have others.

    rel_stepsize: a step's length, in multiples of epsilon.
    abs_stepsize: a step's length in pixel units, which replaces rel_stepsize; None to use the latter.
    steps: number of steps.
    random_start: whether to start at a uniformly random point of the ball rather than at the clean image.

    Raises ValueError or TypeError for sizes that are not accepted.
    """

    _never_called = (
        "get_loss_fn",
        "get_optimizer",
        "get_random_start",
        "normalize",
        "project",
        "run",
        "value_and_grad",
    )
    norm: str
    momentum: float | None = None

    def __init__(
        self,
        *,
        rel_stepsize: float = 0.025,
        abs_stepsize: float | None = None,
        steps: int = 50,
        random_start: bool = True,
    ):
        self._set(rel_stepsize, abs_stepsize, steps, random_start)

    def _set(self, rel_stepsize: float, abs_stepsize: float | None, steps: int, random_start: bool) -> None:
        check_size("rel_stepsize", rel_stepsize)
        if abs_stepsize is not None:
            check_size("abs_stepsize", abs_stepsize)
        self.rel_stepsize, self.abs_stepsize = rel_stepsize, abs_stepsize
        self.steps, self.random_start = steps, random_start
        self._make = Maker()

    def __call__(
        self, model: Any, inputs: Any, criterion: Any, *, epsilons: Any, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        """Returns the adversarial images (N, ...) as they were found, the same clipped to the ball, and
        (N,) bool, which of them are adversarial.

        model: a PyTorchModel.
        inputs: (N, ...) within the model's bounds.
        criterion: labels (N,), Misclassification or TargetedMisclassification.
        epsilons: a number; or K of them, for which the result is two lists of K and a tensor (K, N).

        Raises ValueError for inputs outside of the bounds, and for other models and criteria;
        NotImplementedError for an epsilon of None.
        """
        several = isinstance(epsilons, Iterable)
        each = list(epsilons) if several else [epsilons]
        if not each:
            refuse("epsilons", "none", "a number, or one at least")
        found, clipped, fooled = [], [], []
        for epsilon in each:
            images, success = self._found(model, inputs, criterion, epsilon, **kwargs)
            found.append(_like(inputs, images))
            clipped.append(_like(inputs, images.clone()))  # the images never leave the ball
            fooled.append(success)
        if several:
            return found, clipped, _like(inputs, torch.stack(fooled))
        return found[0], clipped[0], _like(inputs, fooled[0])

    def run(self, model: Any, inputs: Any, criterion: Any, *, epsilon: Any, **kwargs: Any) -> Any:
        """Adversarial images (N, ...) for one epsilon."""
        return _like(inputs, self._found(model, inputs, criterion, epsilon, **kwargs)[0])

    def _found(
        self, model: Any, inputs: Any, criterion: Any, epsilon: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The adversarial images, and (N,) bool, which of them are adversarial, by the model in eval mode."""
        if kwargs:
            raise TypeError(f"attack got an unexpected keyword argument {next(iter(kwargs))!r}")
        if epsilon is None:
            refuse(
                "epsilons", None, "numbers: these attacks do not look for the smallest", NotImplementedError
            )
        module, (classes, targeted) = pixel_model(model), goal(criterion)
        self._check(targeted)
        epsilon = float(epsilon)
        kind, own = (ours.PGD, {}) if self._steps_as_ours else (_FoolboxStep, {"decay": self.momentum})
        attack = self._make(
            kind,
            norm=self.norm,
            eps=epsilon,
            step_size=self.rel_stepsize * epsilon if self.abs_stepsize is None else self.abs_stepsize,
            steps=self.steps,
            random_start=bool(self.random_start),
            targeted=targeted,
            bounds=tuple(model.bounds),
            **own,
        )
        way_out = (
            f"If they are normalised: images in {list(model.bounds)} and PyTorchModel(model, bounds, "
            'preprocessing={"mean": mean, "std": std, "axis": -3})'
        )
        result = run(attack, module, raw(inputs), classes, way_out)
        assert result.success is not None
        return result.adversarial, result.success

    @property
    def _steps_as_ours(self) -> bool:
        return self.norm != "l1" and self.momentum is None

    def _check(self, targeted: bool) -> None:
        """Raises ValueError if the attack does not accept such a criterion."""

    def repeat(self, times: int) -> "_Repeated":
        """An attack that runs this one several times, and keeps the first success for each sample."""
        return _Repeated(self, times)

    def __getattr__(self, name: str) -> NoReturn:
        hint = f": it is the norm, {self.norm!r}" if name == "distance" else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}")

    def __repr__(self) -> str:
        settings = (f"{name}={value}" for name, value in vars(self).items() if name[0] != "_")
        return f"{type(self).__name__}({', '.join(settings)})"


class _Repeated:
    def __init__(self, attack: _GradientDescent, times: int):
        check_count("times", times)
        self.attack, self.times = attack, times

    def repeat(self, times: int) -> "_Repeated":
        return _Repeated(self.attack, self.times * times)

    def __call__(
        self, model: Any, inputs: Any, criterion: Any, *, epsilons: Any, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        several = isinstance(epsilons, Iterable)
        sizes = list(epsilons) if several else [epsilons]
        found, clipped, fooled = self.attack(model, inputs, criterion, epsilons=sizes, **kwargs)
        kept = raw(fooled)
        for _ in range(self.times - 1):
            again, again_clipped, now = self.attack(model, inputs, criterion, epsilons=sizes, **kwargs)
            new = raw(now) & ~kept
            for rows, old, other in zip(
                torch.cat([new, new]), found + clipped, again + again_clipped, strict=True
            ):
                raw(old)[rows] = raw(other)[rows]
            kept = kept | new
        if several:
            return found, clipped, _like(inputs, kept)
        return found[0], clipped[0], _like(inputs, kept[0])


def _like(inputs: Any, tensor: Tensor) -> Any:
    """The tensor, as an eagerpy tensor if inputs are one."""
    return tensor if isinstance(inputs, Tensor) else type(inputs)(tensor)


class L1ProjectedGradientDescentAttack(_GradientDescent):
    norm = "l1"


class L2ProjectedGradientDescentAttack(_GradientDescent):
    norm = "l2"


class LinfProjectedGradientDescentAttack(_GradientDescent):
    norm = "linf"

    def __init__(
        self,
        *,
        rel_stepsize: float = 0.01 / 0.3,
        abs_stepsize: float | None = None,
        steps: int = 40,
        random_start: bool = True,
    ):
        self._set(rel_stepsize, abs_stepsize, steps, random_start)


class _Bim(_GradientDescent):
    def __init__(
        self,
        *,
        rel_stepsize: float = 0.2,
        abs_stepsize: float | None = None,
        steps: int = 10,
        random_start: bool = False,
    ):
        self._set(rel_stepsize, abs_stepsize, steps, random_start)


class L1BasicIterativeAttack(_Bim):
    norm = "l1"


class L2BasicIterativeAttack(_Bim):
    norm = "l2"


class LinfBasicIterativeAttack(_Bim):
    norm = "linf"


class _Momentum(_GradientDescent):
    """momentum: weight of the previous direction."""

    def __init__(
        self,
        *,
        momentum: float = 1.0,
        rel_stepsize: float = 0.2,
        abs_stepsize: float | None = None,
        steps: int = 10,
        random_start: bool = False,
    ):
        self.momentum = momentum
        self._set(rel_stepsize, abs_stepsize, steps, random_start)


class L1MomentumIterativeFastGradientMethod(_Momentum):
    norm = "l1"


class L2MomentumIterativeFastGradientMethod(_Momentum):
    norm = "l2"


class LinfMomentumIterativeFastGradientMethod(_Momentum):
    norm = "linf"


class _FastGradient(_GradientDescent):
    """One step to the edge of the ball. It does not accept targets."""

    def __init__(self, *, random_start: bool = False):
        self._set(1.0, None, 1, random_start)

    def _check(self, targeted: bool) -> None:
        if targeted:
            raise ValueError(f"criterion: got targets, accepted by {type(self).__name__}: labels (N,)")


class L1FastGradientAttack(_FastGradient):
    norm = "l1"


class L2FastGradientAttack(_FastGradient):
    norm = "l2"


class LinfFastGradientAttack(_FastGradient):
    norm = "linf"


FGM = L2FastGradientAttack
FGSM = LinfFastGradientAttack
L1PGD = L1ProjectedGradientDescentAttack
L2PGD = L2ProjectedGradientDescentAttack
LinfPGD = LinfProjectedGradientDescentAttack
PGD = LinfPGD
MIFGSM = LinfMomentumIterativeFastGradientMethod

__all__ = [
    "FGM",
    "FGSM",
    "L1PGD",
    "L2PGD",
    "MIFGSM",
    "PGD",
    "L1BasicIterativeAttack",
    "L1FastGradientAttack",
    "L1MomentumIterativeFastGradientMethod",
    "L1ProjectedGradientDescentAttack",
    "L2BasicIterativeAttack",
    "L2FastGradientAttack",
    "L2MomentumIterativeFastGradientMethod",
    "L2ProjectedGradientDescentAttack",
    "LinfBasicIterativeAttack",
    "LinfFastGradientAttack",
    "LinfMomentumIterativeFastGradientMethod",
    "LinfPGD",
    "LinfProjectedGradientDescentAttack",
]


def __getattr__(name: str) -> NoReturn:
    no_such("foolbox.attacks", name, __all__)


def accelerated(original: Any) -> Any:
    """foolbox's own attack as one of this module. Raises ValueError for one that cannot be converted."""
    if type(original).__name__ == "Repeated":
        check_methods(original)
        return accelerated(original.attack).repeat(original.times)
    return read(original, __name__, __all__)
