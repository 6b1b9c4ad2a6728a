"""ART's evasion attacks of the PGD family (1.20), from numpy to numpy, computed by this package's attacks.

For example, ``from roli_fast.compat.art import ProjectedGradientDescentPyTorch``. The estimator is ART's own
PyTorchClassifier.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy
import rich.progress
import torch
from torch import Tensor, nn

from ..attacks import predict
from ..attacks.ascent import State
from ..attacks.inputs import check_size
from ..checks import check_count, check_flag, check_number, refuse
from .core import (
    UNBOUNDED,
    Closed,
    Maker,
    attacked,
    check_images,
    check_methods,
    inside,
    no_such,
    normalized,
    read,
)
from .steps import OwnStep, shrink_

Size = float | numpy.ndarray

_NORMS = {"inf": "linf", math.inf: "linf", 1: "l1", 2: "l2"}


class _ArtStep(OwnStep):
    """ART's step. In L1 it goes back into the ball along the line to the image.

    allowed: (N, ...) bool, where a sample may change; None for everywhere.
    """

    def __init__(self, *arguments: Any, allowed: Tensor | None = None, **options: Any):
        self.allowed = allowed
        super().__init__(*arguments, **options)

    def start(self, clean: Tensor, eps: float | Tensor, seed: Tensor, index: Tensor) -> Tensor:
        adv = super().start(clean, eps, seed, index)
        return adv if self.allowed is None else torch.where(self.allowed[index], adv, clean.to(adv.dtype))

    def into_ball_(self, state: State) -> None:
        if self.norm == "l1":
            shrink_(state.adv, state.clean, state.eps)
        else:
            super().into_ball_(state)


class _Masked(nn.Module):
    """A model that sees the clean image where no change is allowed, and therefore has no gradient there.

    clean, allowed: (N, ...), for as many samples as a batch may have. :meth:`cover` sets those of a batch.
    """

    clean: Tensor
    allowed: Tensor

    def __init__(self, model: nn.Module, clean: Tensor, allowed: Tensor):
        super().__init__()
        self.model = model
        self.register_buffer("clean", clean.clone())
        self.register_buffer("allowed", allowed.clone())

    def cover(self, clean: Tensor, allowed: Tensor) -> None:
        self.clean[: len(clean)] = clean
        self.allowed[: len(clean)] = allowed

    def forward(self, x: Tensor) -> Tensor:
        rows = slice(len(x))  # a copy is compared with the model on the first images alone
        return self.model(torch.where(self.allowed[rows], x, self.clean[rows].to(x.dtype)))


class _Attack(Closed):
    """The base of all attacks here.

    estimator: a PyTorchClassifier with cross-entropy, and with no preprocessing other than mean and standard
        deviation.
    norm: inf, "inf", 1 or 2.
    eps, eps_step: the ball's radius and a step's length: numbers, or arrays (N, 1, ..., 1) with one per
        sample.
    targeted: whether y are the classes to reach.
    num_random_init: number of random starts; 0 for a start at x.
    batch_size: samples that are attacked at once.

    Raises ValueError or TypeError for settings and estimators that are not accepted.
    """

    attack_params: Sequence[str] = ("norm", "eps", "eps_step", "targeted", "num_random_init", "batch_size")
    _never_called = ("_compute_perturbation", "_apply_perturbation", "_generate_batch")
    decay: float | None = None
    max_iter: int
    verbose: bool = False

    def __init__(
        self,
        estimator: Any,
        norm: float | str,
        eps: Size,
        eps_step: Size,
        targeted: bool,
        num_random_init: int,
        batch_size: int,
    ):
        self.estimator, self.norm, self.eps, self.eps_step = estimator, norm, eps, eps_step
        self.targeted, self.num_random_init, self.batch_size = targeted, num_random_init, batch_size
        self._make = Maker()
        self._model = _pixel_model(estimator)
        self._check_params()

    def set_params(self, **kwargs: Any) -> None:
        unknown = set(kwargs) - set(self.attack_params)
        if unknown:
            refuse(", ".join(sorted(unknown)), "an attribute to set", ", ".join(self.attack_params))
        before = {name: getattr(self, name) for name in kwargs}
        vars(self).update(kwargs)
        try:
            self._check_params()
        except Exception:
            vars(self).update(before)
            raise

    def _check_params(self) -> None:
        if self.norm not in _NORMS:
            refuse("norm", repr(self.norm), "inf, 'inf', 1, 2")
        for name in ("eps", "eps_step"):
            size = getattr(self, name)
            check_size(name, float(size.min()) if isinstance(size, numpy.ndarray) else size)
        check_flag("targeted", self.targeted)
        starts = self.num_random_init
        check_count("num_random_init", int(starts) if isinstance(starts, bool) else starts, 0)  # as in ART
        check_count("batch_size", self.batch_size)
        check_count("max_iter", self.max_iter)
        if self.decay is not None:
            check_number("decay", self.decay, 0)

    def generate(self, x: numpy.ndarray, y: numpy.ndarray | None = None, **kwargs: Any) -> numpy.ndarray:
        """Returns adversarial samples (N, ...) float32.

        x: (N, ...) within the estimator's clip_values.
        y: labels, or targets if targeted: integers (N,), or one-hot (N, classes); by default, the classes
            that the model predicts for x.
        mask: broadcastable to x; where it is 0, nothing changes.

        Raises ValueError for x outside of clip_values, and for arguments that are not accepted.
        """
        mask = kwargs.pop("mask", None)
        if kwargs:
            refuse(", ".join(kwargs), "an argument of generate", "x, y, mask")
        if y is None and self.targeted:
            refuse("y", None, "targets (N,) or (N, classes), since targeted=True")
        images = torch.from_numpy(numpy.array(x, dtype=numpy.float32))
        images = inside(images, _bounds(self.estimator))
        check_images(images, _bounds(self.estimator), _WAY_OUT)
        labels = None if y is None else _classes(numpy.asarray(y), len(images))
        attack = self._unmasked if mask is None else self._masked(images, numpy.asarray(mask))
        found = numpy.empty(images.shape, numpy.float32)
        starts = range(0, len(images), self.batch_size)
        shown = rich.progress.track(
            starts, "PGD", transient=True, disable=not self.verbose or len(starts) < 2
        )
        for start in shown:
            rows = slice(start, start + self.batch_size)
            batch = images[rows].to(self.estimator.device)
            target = predict(self._model, batch).argmax(dim=1) if labels is None else labels[rows]
            found[rows] = attack(batch, target.to(batch.device), rows).cpu().numpy()
        return found

    def _unmasked(self, images: Tensor, labels: Tensor, rows: slice) -> Tensor:
        """Adversarial images for a batch. rows: its place among all images."""
        return attacked(self._make(_ArtStep, **self._settings(images, rows)), self._model, images, labels)

    def _masked(self, images: Tensor, mask: numpy.ndarray) -> Callable[[Tensor, Tensor, slice], Tensor]:
        """A function as :meth:`_unmasked`, for batches of these images, which share one model and attack."""
        allowed = torch.from_numpy(numpy.broadcast_to(mask != 0, tuple(images.shape)).copy())
        largest = slice(self.batch_size)
        model = _Masked(self._model, images[largest], allowed[largest]).to(self.estimator.device)
        make = Maker()

        def attack(batch: Tensor, labels: Tensor, rows: slice) -> Tensor:
            where = allowed[rows].to(batch.device)
            model.cover(batch, where)
            core = make(_ArtStep, **self._settings(batch, rows), allowed=model.allowed)
            return torch.where(where, attacked(core, model, batch, labels), batch)

        return attack

    def _settings(self, images: Tensor, rows: slice) -> dict[str, Any]:
        return {
            "norm": _NORMS[self.norm],
            "eps": _size("eps", self.eps, images, rows),
            "step_size": _size("eps_step", self._step, images, rows),
            "steps": self.max_iter,
            "random_start": self.num_random_init > 0,
            "restarts": max(1, self.num_random_init),
            "targeted": self.targeted,
            "bounds": _bounds(self.estimator),
            "decay": self.decay,
        }

    @property
    def _step(self) -> Size:
        return self.eps_step

    def __repr__(self) -> str:
        settings = (f"{name}={getattr(self, name)}" for name in self.attack_params)
        return f"{type(self).__name__}({', '.join(settings)})"


_WAY_OUT = (
    "If they are normalised: x in pixels, and PyTorchClassifier(..., clip_values=(0, 1), "
    "preprocessing=(mean, std))"
)

_ESTIMATOR = "art.estimators.classification.pytorch.PyTorchClassifier"


def _pixel_model(estimator: Any) -> nn.Module:
    """The module inside the estimator, with the estimator's normalisation in front.

    Raises ValueError for an estimator that does more than that.
    """
    kind = f"{type(estimator).__module__}.{type(estimator).__name__}"
    if kind != _ESTIMATOR:
        refuse("estimator", f"a {kind}", f"{_ESTIMATOR}, and no subclass of it, which may compute otherwise")
    check_methods(estimator, "estimator")
    model = estimator.model
    _check_loss(estimator.loss)
    if estimator.postprocessing_defences:
        refuse("estimator", "one with postprocessing defences", "one without")
    for operation in estimator.preprocessing_operations:
        if type(operation).__name__ != "StandardisationMeanStdPyTorch":
            refuse("estimator", f"one with {type(operation).__name__}", "one with mean and std alone")
        mean, std = numpy.broadcast_arrays(operation.mean, operation.std)
        if (mean == 0).all() and (std == 1).all():
            continue
        channels = estimator.input_shape[0]
        if mean.size not in (1, channels) or not estimator.channels_first:
            refuse("estimator", f"one with a mean of shape {mean.shape}", "one number, or one per channel")
        mean, std = (numpy.broadcast_to(v.reshape(-1), channels).tolist() for v in (mean, std))
        model = normalized(model, mean, std, estimator.device)
    return model


def _check_loss(loss: Any) -> None:
    extras = []
    if type(loss) is nn.CrossEntropyLoss:
        given = {"weight": loss.weight is not None, "label_smoothing": loss.label_smoothing != 0}
        extras = [name for name, is_given in given.items() if is_given]
    if extras or type(loss) is not nn.CrossEntropyLoss:
        got = f"{loss!r} with {' and '.join(extras)}" if extras else repr(loss)
        refuse("estimator", f"one with the loss {got}", "torch.nn.CrossEntropyLoss() without such settings")


def _bounds(estimator: Any) -> tuple[float, float]:
    if estimator.clip_values is None:
        return UNBOUNDED
    lo, hi = (numpy.unique(numpy.asarray(value)) for value in estimator.clip_values)
    if len(lo) > 1 or len(hi) > 1:
        refuse("estimator", "clip_values per feature", "two numbers")
    return float(lo[0]), float(hi[0])


def _size(name: str, size: Size, images: Tensor, rows: slice) -> float | Tensor:
    if not isinstance(size, numpy.ndarray):
        return float(size)
    if size.size == 1:
        return float(size.reshape(()))
    if size.ndim != images.dim() or size.size != len(size):
        refuse(name, f"an array of shape {size.shape}", "a number, or one per sample, (N, 1, ..., 1)")
    return torch.from_numpy(size.reshape(-1)[rows])


def _classes(y: numpy.ndarray, samples: int) -> Tensor:
    """The classes (N,) int64, from integers or one-hot rows."""
    if y.ndim == 2 and y.shape[1] > 1:
        if not ((y == 0) | (y == 1)).all() or not (y.sum(axis=1) == 1).all():
            refuse("y", "rows that are not one-hot", "integers (N,), or one-hot (N, classes)")
        y = y.argmax(axis=1)
    if y.size != samples:
        refuse("y", f"shape {y.shape}", f"({samples},) or ({samples}, classes)")
    return torch.from_numpy(y.reshape(-1).astype(numpy.int64))


def _refuse_extras(**extras: Any) -> None:
    for name, value in extras.items():
        if value:
            refuse(name, repr(value), "False")


class ProjectedGradientDescent(_Attack):
    """Projected gradient descent, and with ``decay`` the momentum iterative method.

    estimator, norm, eps, eps_step, targeted, batch_size: as in all attacks here.
    decay: weight of the momentum; None for no momentum.
    max_iter: number of steps.
    num_random_init: number of random starts, of which a success is kept; 0 for a start at x.
    verbose: whether to show a progress bar over the batches.
    """

    attack_params = (
        *_Attack.attack_params,
        "decay",
        "max_iter",
        "random_eps",
        "summary_writer",
        "verbose",
    )

    def __init__(
        self,
        estimator: Any,
        norm: float | str = numpy.inf,
        eps: Size = 0.3,
        eps_step: Size = 0.1,
        decay: float | None = None,
        max_iter: int = 100,
        targeted: bool = False,
        num_random_init: int = 0,
        batch_size: int = 32,
        random_eps: bool = False,
        summary_writer: Any = False,
        verbose: bool = True,
    ):
        self.decay, self.max_iter, self.random_eps, self.verbose = decay, max_iter, random_eps, verbose
        self.summary_writer = summary_writer
        super().__init__(estimator, norm, eps, eps_step, targeted, num_random_init, batch_size)

    def _check_params(self) -> None:
        super()._check_params()
        _refuse_extras(random_eps=self.random_eps, summary_writer=self.summary_writer)


class ProjectedGradientDescentPyTorch(ProjectedGradientDescent):
    pass


class BasicIterativeMethod(ProjectedGradientDescent):
    def __init__(
        self,
        estimator: Any,
        eps: Size = 0.3,
        eps_step: Size = 0.1,
        max_iter: int = 100,
        targeted: bool = False,
        batch_size: int = 32,
        verbose: bool = True,
    ):
        sizes = numpy.inf, eps, eps_step, None, max_iter
        super().__init__(estimator, *sizes, targeted, batch_size=batch_size, verbose=verbose)


class MomentumIterativeMethod(ProjectedGradientDescent):
    def __init__(
        self,
        estimator: Any,
        norm: float | str = numpy.inf,
        eps: Size = 0.3,
        eps_step: Size = 0.1,
        decay: float = 1.0,
        max_iter: int = 100,
        targeted: bool = False,
        batch_size: int = 32,
        verbose: bool = True,
    ):
        sizes = norm, eps, eps_step, decay, max_iter
        super().__init__(estimator, *sizes, targeted, batch_size=batch_size, verbose=verbose)


class FastGradientMethod(_Attack):
    """One step of length eps. Of several random starts, the best one is kept for each sample, where ART keeps
    the best one for all samples together. eps_step has no effect; other arguments are as in
    :class:`ProjectedGradientDescent`."""

    attack_params = (*_Attack.attack_params, "minimal", "summary_writer")
    max_iter = 1

    def __init__(
        self,
        estimator: Any,
        norm: float | str = numpy.inf,
        eps: Size = 0.3,
        eps_step: Size = 0.1,
        targeted: bool = False,
        num_random_init: int = 0,
        batch_size: int = 32,
        minimal: bool = False,
        summary_writer: Any = False,
    ):
        self.minimal, self.summary_writer = minimal, summary_writer
        super().__init__(estimator, norm, eps, eps_step, targeted, num_random_init, batch_size)

    def _check_params(self) -> None:
        super()._check_params()
        _refuse_extras(minimal=self.minimal, summary_writer=self.summary_writer)

    @property
    def _step(self) -> Size:
        return self.eps


__all__ = [
    "BasicIterativeMethod",
    "FastGradientMethod",
    "MomentumIterativeMethod",
    "ProjectedGradientDescent",
    "ProjectedGradientDescentPyTorch",
]


def __getattr__(name: str) -> NoReturn:
    no_such("art", name, __all__)


def accelerated(original: Any) -> Any:
    """ART's own attack as one of this module. Raises ValueError for an attack that cannot be converted."""
    # General attacks hold the attack of the framework, which has all settings.
    settings = getattr(original, "_attack", original)
    face = read(original, __name__, __all__, settings.estimator, settings=settings)
    face._check_params()
    return face
