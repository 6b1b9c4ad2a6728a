"""cleverhans' attack functions (4.0, for torch), computed by this package's attacks."""

import functools
import math
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..attacks import predict
from ..attacks.inputs import to_state
from ..attacks.norms import NORMS, uniform_draws
from ..checks import refuse, warn
from ..engine.modes import Model
from .core import UNBOUNDED, Maker, as_classes, attacked, chosen, no_such
from .steps import OwnStep

_NORMS = {math.inf: "linf", 2: "l2", 1: "l1"}


class _OwnStart(OwnStep):
    """Starts at a uniformly random point of a cube, projected onto the ball.

    reach: half the cube's side; None for eps, 0 for a start at the image, clipped to the box.
    takes_outside: whether images may be outside of the box.
    """

    def __init__(self, *arguments: Any, reach: float | None, takes_outside: bool, **options: Any):
        self.reach, self.takes_outside = reach, takes_outside
        super().__init__(*arguments, **options)

    def start(self, clean: Tensor, eps: float | Tensor, seed: Tensor, index: Tensor) -> Tensor:
        adv = to_state(clean)
        adv.add_(uniform_draws(clean, seed, index) * (eps if self.reach is None else self.reach))
        NORMS[self.norm].project_(adv, clean, eps, *self.bounds)
        return adv


# A maker for each combination of settings other than sizes, of those that calls use in turn.
_maker = functools.lru_cache(maxsize=4)(lambda **settings: Maker())


def fast_gradient_method(
    model_fn: Model,
    x: Tensor,
    eps: float,
    norm: float,
    clip_min: float | None = None,
    clip_max: float | None = None,
    y: Tensor | None = None,
    targeted: bool = False,
    sanity_checks: bool = False,
) -> Tensor:
    """One step of length eps from x (N, ...). Returns the adversarial samples (N, ...).

    model_fn: a module or another callable that returns logits (N, classes).
    norm: inf, 1 or 2.
    clip_min, clip_max: the box to which results are clipped; both or neither.
    y: (N,) int64, the labels, or targets if targeted; by default, the classes that the model predicts for x.
    sanity_checks: whether x outside of the box is an error; otherwise it causes a warning.

    Raises ValueError for another norm, negative eps, and one bound of the box alone; AssertionError for x
    outside of the box.
    """
    _check(norm, (math.inf, 2, 1), eps=eps)
    box = _box(x, clip_min, clip_max, sanity_checks)
    if eps == 0:
        return x
    settings = {"norm": _NORMS[norm], "targeted": bool(targeted), "random_start": False, **box}
    # The result is only clipped: a ball around an image outside of the box would hold the clipping back.
    ball = math.inf if box["takes_outside"] else eps
    return _attack(model_fn, x, y, eps=ball, step_size=eps, steps=1, reach=None, **settings)


def projected_gradient_descent(
    model_fn: Model,
    x: Tensor,
    eps: float,
    eps_iter: float,
    nb_iter: int,
    norm: float,
    clip_min: float | None = None,
    clip_max: float | None = None,
    y: Tensor | None = None,
    targeted: bool = False,
    rand_init: bool = True,
    rand_minmax: float | None = None,
    sanity_checks: bool = True,
) -> Tensor:
    """nb_iter steps of length eps_iter in the ball of radius eps around x (N, ...). Returns the adversarial
    samples (N, ...).

    norm: inf or 2.
    rand_init: whether to start at a uniformly random point of the cube with half side rand_minmax (default
        eps), projected onto the ball.

    Other arguments and errors are as in :func:`fast_gradient_method`. Also raises AssertionError for an
    eps_iter larger than eps, and NotImplementedError for norm 1.
    """
    if norm == 1:
        refuse("norm", 1, "inf, 2; for L1, roli_fast.attacks.PGD('l1')", NotImplementedError)
    _check(norm, (math.inf, 2), eps=eps, eps_iter=eps_iter)
    if eps_iter > eps > 0:
        refuse("eps_iter", eps_iter, f"at most eps = {eps}", AssertionError)
    box = _box(x, clip_min, clip_max, sanity_checks)
    if eps == 0 or eps_iter == 0:
        return x
    settings = {"norm": _NORMS[norm], "targeted": bool(targeted), **box}
    settings["random_start"] = bool(rand_init or box["takes_outside"])
    reach = rand_minmax if rand_init else 0
    return _attack(model_fn, x, y, eps=eps, step_size=eps_iter, steps=nb_iter, reach=reach, **settings)


def _attack(
    model: Model, x: Tensor, y: Tensor | None, eps: float, step_size: float, **settings: Any
) -> Tensor:
    x = _as_taken(x.detach(), model)
    y = predict(model, x).argmax(dim=1) if y is None else as_classes(y)
    attack = _maker(**settings, **chosen())(_OwnStart, eps=eps, step_size=step_size, **settings)
    return attacked(attack, model, x, y)


def _as_taken(x: Tensor, model: Model) -> Tensor:
    """Images in float32, as in cleverhans, including integers, by their value. Half precision is kept, and so
    is float64 for a model that computes in it."""
    if not x.is_floating_point():
        return x.float()
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return x.to(torch.float32 if parameter is None else parameter.dtype) if x.dtype == torch.float64 else x


def _check(norm: float, accepted: tuple[float, ...], **sizes: float) -> None:
    if norm not in accepted:
        refuse("norm", repr(norm), ", ".join(map(str, accepted)))
    for name, size in sizes.items():
        if size < 0:
            refuse(name, size, "0 or more")


def _box(x: Tensor, lo: float | None, hi: float | None, sanity_checks: bool) -> dict[str, Any]:
    if lo is None and hi is None:
        return {"bounds": UNBOUNDED, "takes_outside": False}
    if lo is None or hi is None:
        refuse("clip_min, clip_max", f"{lo}, {hi}", "both or none")
    if lo > hi:
        refuse("clip_min", lo, f"at most clip_max = {hi}")
    least, most = torch.stack(x.aminmax()).tolist() if x.numel() > 0 else (lo, hi)
    outside = least < lo or most > hi
    if outside:
        got, accepted = f"values in [{least:.8g}, {most:.8g}]", f"values in [{lo}, {hi}]"
        if sanity_checks:
            way_out = (
                f"If it is normalised: x in [{lo}, {hi}] and roli_fast.models.Normalized(model_fn, mean, std)"
            )
            refuse("x", got, f"{accepted}. {way_out}", AssertionError)
        warn(f"x has {got}, and what is returned has {accepted}: is it normalised?")
    return {"bounds": (float(lo), float(hi)), "takes_outside": outside}


__all__ = ["fast_gradient_method", "projected_gradient_descent"]


def __getattr__(name: str) -> NoReturn:
    no_such("cleverhans", name, __all__)


def accelerated(original: Any) -> Any:
    """This module's function of the same name."""
    name = original.__name__
    if ".torch." not in original.__module__ or name not in __all__:
        refuse("attack", f"{original.__module__}.{name}", f"{', '.join(__all__)} of cleverhans.torch")
    return globals()[name]
