"""What all attacks have in common: settings, checks, the views of their models, and what a call does."""

import contextlib
import functools
import math
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

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
    check_rows,
    check_size,
    draw_key,
    refuse_one_class,
    to_state,
    warn_of_whole_range,
)
from .losses import Loss
from .norms import NORMS
from .oracle import Oracle
from .trial import AttackResult, Trial
from .verify import is_fooled

P = ParamSpec("P")
R = TypeVar("R")


def never_compiled(method: Callable[P, R]) -> Callable[P, R]:
    """The method, which torch.compile leaves out of its graphs: in a compiled training step, too, an attack
    runs as it is. As torch.compiler.disable, but for the seconds in which that imports torch._dynamo."""

    @functools.wraps(method)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        # There is none either while another thread imports it.
        disable = getattr(sys.modules.get("torch._dynamo"), "disable", None)
        called: Callable[P, R] = method if disable is None else disable(method)
        return called(*arguments, **options)

    return call


class ViewCache(weakref.WeakKeyDictionary[nn.Module, AttackView]):
    """The attacks' copies of models, by model. An entry is dropped with its model, unless the model refers to
    itself, such as by a hook that is its own method: that one lives as long as this cache."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.RLock()


class Attack:
    """What all attacks share: they look for adversarial images in a ball around the clean ones, within the
    bounds of valid pixels.

    ``attack(model, images, labels)`` returns the adversarial images; ``attack.run(...)`` returns an
    :class:`AttackResult`. A sample's random numbers are a function of a key, its index, the run, the
    iteration and the element: if ``run`` is given key and index, the result does not depend on batch size or
    order (as far as the model's own outputs do not). Settings are fixed once the attack is made.

    norm: "linf", "l2" or "l1".
    eps: the ball's radius in pixel units, measured in the norm: a number, or a tensor () or (N,).
    restarts: number of runs with different random numbers. The best result of each sample is kept: one that
        fools the model rather than one that does not, and then the one with the higher loss.
    targeted: whether labels are the classes to reach.
    bounds, early_stop, precision, generator, eot, fold, output: as in :class:`PGD`.
    """

    _loss: Loss  # of attacks that increase one
    _views: ViewCache
    _oracles: weakref.WeakKeyDictionary[nn.Module, Oracle]

    # Subclasses may set these otherwise.
    compares_with_clean = False  # whether the loss compares with the output for the clean images, not labels
    label_free = False  # whether the output has no classes
    follows_gradients = True
    draws = True  # whether it needs random numbers
    takes_outside = False  # whether images outside of the bounds are brought inside, rather than refused

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
        # In the order in which repr and label show them.
        self.bounds, self.early_stop, self.precision = bounds, early_stop, precision
        self.generator, self.eot, self.fold, self.output = generator, eot, fold, output
        self.share_views(ViewCache())
        if norm == "linf":
            warn_of_whole_range(bounds, eps, self.sizes().get("step_size", 0.0))
        self._fixed = True

    # --- what an attack is ---------------------------------------------------------------------------------

    def objective(self, output: Tensor, target: Tensor) -> Tensor:
        """What the attack increases, (N,): its loss, or minus the loss where it is targeted. target: what
        :meth:`loss_target` returns."""
        loss = self._loss(output, target)
        return -loss if self.targeted else loss

    def search(self, trial: Trial, rows: Tensor, run: int) -> None:
        """One run against these samples, with random numbers of its own. It has the model judge what it
        finds."""
        raise NotImplementedError

    def runs(self, trial: Trial) -> int:
        """How many runs there are."""
        return self.restarts

    def sizes(self) -> dict[str, float | Tensor]:
        """Settings that may be per sample, by name."""
        return {"eps": self.eps}

    def prepare(self, trial: Trial) -> None:
        """Computes what has to be known before the first run. A model that fails, fails here."""
        if "clean_output" not in vars(trial):
            few_or_all(trial.adversarial, 1, trial.ask)

    def loss_target(self, trial: Trial, run: int) -> Tensor:
        """What the objective compares with: (N, ...)."""
        assert trial.labels is not None
        return trial.labels

    def merit(self, trial: Trial, rows: Tensor, images: Tensor, output: Tensor) -> Tensor:
        """The score by which the best of a sample's adversarial images is chosen, (n,): the loss of the model
        itself."""
        assert trial.labels is not None
        return self.objective(widened(output), trial.labels[rows])

    def fooled(self, output: Tensor, labels: Tensor | None) -> Tensor:
        """(N,) bool: which outputs are a success; none where there are no labels."""
        if labels is None:
            return torch.zeros(len(output), dtype=torch.bool, device=output.device)
        return is_fooled(output, labels, self.targeted)

    def _oracle_of(self, view: AttackView) -> Oracle:
        return Oracle(self, view)

    # --- what it does --------------------------------------------------------------------------------------

    def __call__(self, model: Model, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Returns the adversarial images of a batch: (N, ...), in the images' dtype and memory layout
        (float32 where the images are uint8).

        model: maps images (N, ...) to logits (N, classes). It is attacked in eval mode and left unchanged;
            a callable that is no module has no modes, and is called as it is.
        images: (N, ...) within bounds, in any float dtype; uint8 images stand for their values / 255.
        labels: (N,) int64 on the images' device. TPGD and FeaturePGD need none.

        Raises ValueError or TypeError for inputs that do not fit, before anything is attacked.
        """
        return self.run(model, images, labels).adversarial

    @never_compiled
    def run(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        index: Tensor | None = None,
        key: Tensor | None = None,
        strict: bool = True,
        rows: Tensor | None = None,
    ) -> AttackResult:
        """As calling the attack, but returns all that an evaluation needs.

        index: (N,) int64, the place of each sample in the data set. A sample gets the same random numbers in
            whatever batch it comes. Default: 0 .. N - 1.
        key: (1,) int64 on the images' device, from which all random numbers of the call derive; give all
            batches of a data set the same one. Default: drawn from the attack's generator.
        strict: whether to raise ValueError if no sample at all had a gradient to follow; if not, the result
            says how many had none.
        rows: (n,) int64 on the images' device, in ascending order: which samples of the batch to attack. What
            is returned for the others has no meaning. On a GPU this is faster than a batch of these alone,
            whose size would change from call to call. Default: all.
        """
        with self._alone():
            trial = self._begin(model, images, labels, index, key, rows=rows)
            return self._result(trial, trial.rows if rows is None else rows, strict)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Around a call: autograd records nothing, and other threads that share the copy of the model wait,
        since it serves one call at a time."""
        with self._views.lock, torch.inference_mode(False), torch.no_grad():
            yield

    def view(self, model: Model) -> AttackView:
        """The model as this attack computes with it, with the model's current weights."""
        return self._oracle(model).view

    def _result(self, trial: Trial, rows: Tensor, strict: bool) -> AttackResult:
        """Makes all runs, and has the model judge their results. rows: the samples to attack. strict: as in
        :meth:`run`."""
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
        """Raises ValueError if no sample had a gradient to follow in any stage and some withstood all: what
        was measured is then not robustness. A loss that compares with the clean image is exempt: at an eps of
        0, for example, it rightly has no gradient.

        directed, by_stage: as directed and undirected_by_stage of :class:`AttackResult`. images: how many
            were attacked.
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
        rows: Tensor | None = None,
    ) -> Trial:
        """All checks, then a trial that is ready to go. checked: values of images and labels need none. rows:
        which of the batch will be attacked."""
        if labels is None and not self.compares_with_clean:
            refuse("labels", "None", "int64 (N,)", TypeError)
        if self.label_free:
            labels = None
        check_inputs(images, labels, index, **self.sizes())
        check_rows(rows, images)
        if images.dtype == torch.uint8 and tuple(self.bounds) != (0, 1):
            accepted = "float images in these bounds; bytes are v / 255, in (0, 1)"
            refuse("images", f"torch.uint8 with bounds={self.bounds}", accepted)
        if key is None:
            check_generator(self.generator, images.device)
        check_key(key, images.device)
        values = None if checked else Values(images, labels, self.sizes(), rows)
        oracle = self._oracle(model)
        view = oracle.view
        view.images_dtype = images.dtype if images.is_floating_point() else None
        if values is not None:
            values.check(self._accepted, view.classes)
        if view.output_shape is None and len(images) > 0:
            view.confirm(to_state(images))
            (values or Values(images, labels, self.sizes(), rows)).check(self._accepted, view.classes)
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
        """The lowest and the highest value that images may have."""
        return (-math.inf, math.inf) if self.takes_outside else self.bounds

    def _oracle(self, model: Model) -> Oracle:
        """The model's, with its current weights."""
        if not isinstance(model, nn.Module):
            return self._oracle_of(self._new_view(model))
        view = self._views.get(model)
        if view is None:
            view = self._views[model] = self._new_view(model)
            view.hold_weakly()
        else:
            view.refresh()
        if model not in self._oracles:
            self._oracles[model] = self._oracle_of(view)
        return self._oracles[model]

    def _new_view(self, model: Model) -> AttackView:
        return AttackView(model, precision=self.precision, fold=self.fold, output=self.output)

    def share_views(self, views: ViewCache) -> None:
        """Makes this attack use, and add to, these copies of models. Only attacks with the same precision,
        fold and output can share them."""
        vars(self).update(_views=views, _oracles=weakref.WeakKeyDictionary())

    @property
    def stages(self) -> tuple[str, ...]:
        """What an image may be misclassified by, in order: as it is ("clean"), or under an attack."""
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
        return {name: value for name, value in vars(self).items() if name not in ("_views", "_oracles")}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self.share_views(ViewCache())

    @property
    def label(self) -> str:
        """What a result was reached with: this package's version and all settings but the generator."""
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
    """A sentence for each stage that some images withstood without a gradient to follow. by_stage: of each
    stage, how many of these there were, and how many images it attacked."""
    return tuple(
        f"{stage}{': ' * bool(stage)}{stuck} of {images} images withstood without a gradient to follow"
        for stage, (stuck, images) in by_stage.items()
        if stuck > 0
    )


def readable(value: Any) -> str:
    """A setting as text that is the same in every process, and differs where the setting does."""
    if isinstance(value, Tensor):
        return f"{value.tolist()} ({str(value.dtype).removeprefix('torch.')})"
    if isinstance(value, functools.partial):
        parts = (value.func, *value.args, *value.keywords.items())
        return f"partial({', '.join(map(readable, parts))})"
    if callable(value):
        return identity(value)
    return repr(value)
