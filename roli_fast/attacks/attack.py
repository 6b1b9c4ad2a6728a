"""What all attacks have in common: settings, checks, the views of their models, and what a call does."""

import contextlib
import functools
import math
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_count, check_flag, refuse
from ..engine import PRECISIONS, AttackView, Output, widened
from ..engine.identity import identity
from ..engine.modes import Model, few_or_all
from ..engine.outputs import check_output
from .inputs import (
    Values,
    check_bounds,
    check_generator,
    check_inputs,
    check_key,
    check_size,
    draw_key,
    refuse_one_class,
    to_state,
)
from .norms import NORMS
from .oracle import Oracle
from .trial import AttackResult, Trial
from .verify import is_fooled


class Views(weakref.WeakKeyDictionary[nn.Module, AttackView]):
    """Copies by their models. Where a model holds itself, as by a hook that is its own method, what its copy
    has to compare holds it, too, and it lives as long as this."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.RLock()


class Attack:
    """An attack on images within bounds, in a ball of a norm.

    ``attack(model, images, labels)`` returns adversarial images, ``attack.run(...)`` an
    :class:`AttackResult`. Every draw is a function of key, sample index, run, iteration and element: with
    key and index given to ``run``, a result does not depend on batch size or order where the model's own
    outputs do not. Settings are fixed; a size that changes from call to call is a tensor whose value changes.

    norm: "linf", "l2" or "l1".
    eps: the ball's radius in pixel units, measured in the norm: a number, or a tensor () or (N,).
    restarts: runs with different draws; per sample the best is kept: fooled first, then the highest loss.
    targeted: labels are targets.
    bounds, early_stop, precision, generator, eot, fold, output: as in :class:`PGD`.
    """

    _views: Views
    _oracles: weakref.WeakKeyDictionary[nn.Module, Oracle]

    # What some do otherwise.
    compares_with_clean = False  # the loss compares with the output for the clean images, not with labels
    label_free = False  # the output has no classes
    follows_gradients = True
    draws = True  # makes random draws
    takes_outside = False  # brings in images that lie outside of the bounds, where others refuse them

    def __init__(
        self,
        norm: str,
        eps: float | Tensor,
        *,
        restarts: int = 1,
        targeted: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
        early_stop: bool = False,
        precision: str = "fp32",
        generator: torch.Generator | None = None,
        eot: int = 1,
        fold: bool = True,
        output: Output = None,
    ):
        check_choice("norm", norm, tuple(NORMS))
        check_choice("precision", precision, tuple(PRECISIONS))
        check_size("eps", eps)
        check_count("restarts", restarts)
        check_count("eot", eot)
        check_flag("targeted", targeted)
        check_flag("early_stop", early_stop)
        check_flag("fold", fold)
        check_bounds(bounds)
        check_output(output)
        self.norm, self.eps, self.restarts, self.targeted = norm, eps, restarts, targeted
        self.bounds, self.early_stop, self.precision, self.generator = (
            bounds,
            early_stop,
            precision,
            generator,
        )
        self.eot, self.fold, self.output = eot, fold, output
        self._begin_caches()
        self._fixed = True

    # --- what an attack is ---------------------------------------------------------------------------------

    def objective(self, output: Tensor, target: Tensor) -> Tensor:
        """What the attack increases, (N,), by the output and what :meth:`loss_target` gives."""
        raise NotImplementedError

    def search(self, trial: Trial, rows: Tensor, run: int) -> None:
        """One run from new draws against these samples; has the model judge what it finds."""
        raise NotImplementedError

    def runs(self, trial: Trial) -> int:
        """How many there are."""
        return self.restarts

    def sizes(self) -> dict[str, float | Tensor]:
        """Settings that may be per sample, by name."""
        return {"eps": self.eps}

    def prepare(self, trial: Trial) -> None:
        """What has to be known before the first run; a model that cannot be asked says so here."""
        if "clean_output" not in vars(trial):
            few_or_all(trial.adversarial, 1, trial.ask)

    def loss_target(self, trial: Trial, run: int) -> Tensor:
        """What the objective compares with: (N, ...)."""
        assert trial.labels is not None
        return trial.labels

    def merit(self, trial: Trial, rows: Tensor, images: Tensor, output: Tensor) -> Tensor:
        """By what the best of a sample's adversarial images is chosen, (n,): the model's own loss there."""
        assert trial.labels is not None
        return self.objective(widened(output), trial.labels[rows])

    def fooled(self, output: Tensor, labels: Tensor | None) -> Tensor:
        """(N,) bool."""
        if labels is None:
            return torch.zeros(len(output), dtype=torch.bool, device=output.device)
        return is_fooled(output, labels, self.targeted)

    def _oracle_of(self, view: AttackView) -> Oracle:
        return Oracle(self, view)

    # --- what it does --------------------------------------------------------------------------------------

    def __call__(self, model: Model, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Adversarial images for a batch, in the images' dtype and layout (float32 for uint8 images).

        model: maps images (N, ...) to logits (N, classes); it is attacked in eval mode and left as it was. A
            callable that is no module, which has no modes, is called as it is.
        images: (N, ...) within bounds: any float dtype, or uint8 for v / 255.
        labels: (N,) int64 on images' device; TPGD and FeaturePGD need none.

        Raises ValueError or TypeError for inputs that do not fit, before anything is attacked.
        """
        return self.run(model, images, labels).adversarial

    def run(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        index: Tensor | None = None,
        key: Tensor | None = None,
        strict: bool = True,
    ) -> AttackResult:
        """As a call, with all that an evaluation needs.

        index: (N,) int64, which sample of the data set each one is: the same index draws the same
            random numbers in any batch. Default 0 .. N - 1.
        key: (1,) int64 of all draws, on images' device; default one from the generator. With the same key,
            the batches of a data set are attacked as one.
        strict: whether it is an error that no sample at all had a gradient to follow; otherwise the result
            says how many had none.
        """
        with self._alone():
            return self._judged(self._begin(model, images, labels, index, key), strict=strict)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """A call's surroundings: no gradients are recorded, and other threads wait, since all that share a
        copy of the model compute in it."""
        with self._views.lock, torch.inference_mode(False), torch.no_grad():
            yield

    def view(self, model: Model) -> AttackView:
        """The model as this attack computes with it, with the model's current weights."""
        return self._oracle(model).view

    def _judged(self, trial: Trial, rows: Tensor | None = None, *, strict: bool = True) -> AttackResult:
        """All runs, judged by the model. rows: against these samples alone. strict: whether a model without
        any gradient is an error."""
        rows = trial.rows if rows is None else rows
        if len(rows) > 0:
            self.prepare(trial)
        for run in range(self.runs(trial) if len(rows) > 0 else 0):
            stays = rows[~trial.fooled[rows]] if self.early_stop else rows
            if len(stays) == 0:
                break
            self.search(trial, stays, run)
        success = None if self.label_free else trial.fooled
        directed, fooled = trial.directed[rows], trial.fooled[rows]
        moved, stuck = torch.stack([directed.sum(), (~directed & ~fooled).sum()]).tolist()
        by_stage = {"": (stuck, len(rows))}
        if strict:
            self.check_directed(moved, by_stage, len(rows))
        return AttackResult(
            adversarial=trial.adversarial,
            success=success,
            loss=trial.loss,
            forwards=trial.forwards,
            gradients=trial.gradients,
            notes=(*trial.oracle.notes, *undirected_notes(by_stage)),
            directed=moved,
            undirected_by_stage=by_stage,
        )

    def check_directed(self, directed: int, by_stage: Mapping[str, tuple[int, int]], images: int) -> None:
        """Raises ValueError where no sample had a gradient to follow in any stage, and some withstood all:
        that is no robust accuracy. A loss that compares with the clean image has none there, as for an eps
        of 0.

        directed, by_stage: as in :class:`AttackResult`; images: that were attacked.
        """
        stuck = min((stuck for stuck, _ in by_stage.values()), default=0)
        if stuck > directed == 0 and not self.compares_with_clean:
            refuse(
                "model",
                f"one whose gradient with respect to the input is zero or NaN for all {images} images",
                "one that is differentiable where it is attacked (rounding, arg max and thresholds are not)",
            )

    def _begin(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor | None,
        index: Tensor | None,
        key: Tensor | None,
        checked: bool = False,
    ) -> Trial:
        """All checks, then a trial that is ready to go. checked: values of images and labels need none."""
        if labels is None and not self.compares_with_clean:
            refuse("labels", "None", "int64 (N,)", TypeError)
        if self.label_free:
            labels = None
        check_inputs(images, labels, index, **self.sizes())
        if images.dtype == torch.uint8 and tuple(self.bounds) != (0, 1):
            accepted = "float images in these bounds; bytes are v / 255, in (0, 1)"
            refuse("images", f"torch.uint8 with bounds={self.bounds}", accepted)
        if key is None:
            check_generator(self.generator, images.device)
        check_key(key, images.device)
        values = None if checked else Values(images, labels, self.sizes())
        oracle = self._oracle(model)
        view = oracle.view
        if values is not None:
            values.check(self._accepted, view.classes)
        if view.output_shape is None and len(images) > 0:
            view.confirm(to_state(images))
            (values or Values(images, labels, self.sizes())).check(self._accepted, view.classes)
        if view.output_shape is not None and view.classes is None and not self.label_free:
            shape = ", ".join(map(str, ("N", *view.output_shape)))
            refuse("model", f"an output of shape ({shape})", "float logits (N, classes)")
        if view.classes == 1 and not self.label_free:
            refuse_one_class()
        if key is None and self.draws:
            key = draw_key(self.generator, images.device)
        return Trial(self, model, oracle, images, labels, index, key if self.draws else None)

    @property
    def _accepted(self) -> tuple[float, float]:
        """Between what the images' pixels may lie."""
        return (-math.inf, math.inf) if self.takes_outside else self.bounds

    def _oracle(self, model: Model) -> Oracle:
        """The model's, with its current weights."""
        oracle = self._oracles.get(model) if isinstance(model, nn.Module) else None
        if oracle is not None:
            oracle.view.refresh()
            return oracle
        oracle = self._oracle_of(self._view(model))
        if isinstance(model, nn.Module):
            self._oracles[model] = oracle
        return oracle

    def _view(self, model: Model) -> AttackView:
        view = self._views.get(model) if isinstance(model, nn.Module) else None
        if view is not None:
            view.refresh()
            return view
        view = AttackView(model, precision=self.precision, fold=self.fold, output=self.output)
        if isinstance(model, nn.Module):
            view.hold_weakly()
            self._views[model] = view
        return view

    def share_views(self, views: Views) -> None:
        """From now on the copies of models are these: of attacks of the same precision, fold and output."""
        vars(self)["_views"] = views

    @property
    def stages(self) -> tuple[str, ...]:
        """What makes images wrong: nothing but their own class, and what attacks them."""
        return ("clean", type(self).__name__)

    # --- settings ------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: object) -> None:
        if "_fixed" in vars(self):
            raise AttributeError(
                f"{name}: the settings of an attack are fixed. Make another one, or keep eps and step_size "
                "in tensors and change their values"
            )
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in _CACHES}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._begin_caches()

    def _begin_caches(self) -> None:
        oracles: weakref.WeakKeyDictionary[nn.Module, Oracle] = weakref.WeakKeyDictionary()
        vars(self).update(_views=Views(), _oracles=oracles)

    @property
    def label(self) -> str:
        """What a result was reached with: our name and version, and all settings but the generator."""
        from .. import __version__

        return f"roli_fast {__version__} {self._described(without=('generator',))}"

    def __repr__(self) -> str:
        return self._described()

    def _described(self, without: tuple[str, ...] = ()) -> str:
        names = sorted(vars(self), key=lambda name: name not in ("norm", "eps"))
        shown = (
            f"{name}={readable(getattr(self, name))}"
            for name in names
            if name[0] != "_" and name not in without
        )
        return f"{type(self).__name__}({', '.join(shown)})"


def undirected_notes(by_stage: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """What is to be said of images that withstood without a gradient: of each stage how many, and of how many
    that it attacked."""
    return tuple(
        f"{stage}{': ' * bool(stage)}{stuck} of {images} images withstood without a gradient to follow"
        for stage, (stuck, images) in by_stage.items()
        if stuck > 0
    )


def readable(value: Any) -> str:
    """The same in every process, and another for another setting."""
    if isinstance(value, Tensor):
        return f"{value.tolist()} ({str(value.dtype).removeprefix('torch.')})"
    if isinstance(value, functools.partial):
        parts = (value.func, *value.args, *value.keywords.items())
        return f"partial({', '.join(map(readable, parts))})"
    if callable(value):
        return identity(value)
    return repr(value)


_CACHES = ("_views", "_oracles")
