"""A copy of a model that computes the gradient with respect to its input cheaply."""

import contextlib
import dataclasses
import math
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..checks import brief, refuse, warn
from ..models.normalized import Normalized
from ..ops import prepare
from .frozen_copy import FrozenCopy
from .modes import Model, acts_on_mode, eval_mode, few_or_all, float_dtype, own_output, unwrap
from .on_cpu import attention
from .outputs import Output, check_output, select
from .precision import get_precision
from .structure import Structure

_NOTHING = contextlib.nullcontext()
_CONFIRM_SAMPLES = 4
_TOO_OFTEN = 3  # rebuilds in a row

# How far a copy's output may be from the model's, relative to its largest element, by the model's dtype:
# rounding in float32 stays below 1e-5, a wrong fold is of the order of 1.
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}


@dataclasses.dataclass
class ViewReport:
    """What a view did to its copy of the model.

    folded: names of the BatchNorms that were folded, each with the layer that it was folded into.
    left: names of the BatchNorms that were not folded, each with the reason.
    moved: how far the copy's output is from the model's on the first batch: the largest difference, relative
        to the output's largest element. None before the first batch.
    note: what else a user should know, such as why there is no copy; None if there is nothing.
    """

    folded: dict[str, str] = dataclasses.field(default_factory=dict)
    left: dict[str, str] = dataclasses.field(default_factory=dict)
    moved: float | None = None
    note: str | None = None


class _Uses(TorchFunctionMode):
    """Notes whether what this thread computes inside uses any of these tensors' memory. (A TorchDispatchMode
    would import torch._dynamo, which takes two seconds.)"""

    def __init__(self, tensors: Iterable[Tensor]):
        super().__init__()
        self._own = set(map(_memory, tensors)) - {0}
        self.found = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        self.found = self.found or any(_memory(tensor) in self._own for tensor in given)
        return function(*args, **(kwargs or {}))


def _memory(tensor: Tensor) -> int:
    """Where it begins; 0 for a tensor without memory of its own, such as a sparse one."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0


class AttackView:
    """A frozen copy of a model in eval mode, whose gradient with respect to the input is cheap to compute.
    The model itself is never changed.

    In the copy, parameters require no gradient, weights are cast to the precision once and laid out
    channels-last, BatchNorm is folded into the layer before it, and parametrizations (such as LoRA written as
    one) are replaced by their values. Where the model is a :class:`roli_fast.models.Normalized`,
    :meth:`prepare` normalises instead of the copy, before it casts, so that no precision is lost.

    Before the first use the copy's output is compared with the model's; :attr:`report` says what was done. A
    model that cannot be copied faithfully, or is no module, is used as it is. A forward that later uses its
    layers otherwise, such as by a global flag, costs the copy its folds. (A CUDA graph repeats what was
    captured, and sees nothing of what is outside of the model.)

    Call ``view(view.prepare(images))`` for the output, and :meth:`refresh` after the model's weights have
    changed.

    model: maps inputs (N, ...) to logits (N, classes), or to something in which ``output`` finds a tensor
        (N, ...). The wrappers DistributedDataParallel, DataParallel and torch.compile's are taken off.
    precision: "fp32" (float64 if the model is float64), "tf32", "bf16", "fp16" or "torch".
    fold: whether BatchNorm may be folded, where tracing proves that this is exact up to rounding.
    output: where the tensor is in what the model returns; see :func:`roli_fast.engine.select`.

    Raises ValueError for an unknown precision, for a half precision if the model cannot be copied, and for a
    model that is sharded by FSDP.
    """

    def __init__(self, model: Model, *, precision: str = "fp32", fold: bool = True, output: Output = None):
        check_output(output)
        self._precision, self._fold, self._output = get_precision(precision), fold, output
        self._held: Model | None = unwrap(model)
        self._model: Callable[[], Model | None] = lambda: self._held
        self._generation = 0
        self._rebuilt = 0  # times in a row
        # Of the caller's images: what a model that is no copy takes, where its parameters do not say.
        self.images_dtype: torch.dtype | None = None
        self._build()

    @property
    def is_copy(self) -> bool:
        """Whether there is a copy; if not, the model itself computes."""
        return self._copy is not None

    @property
    def generation(self) -> int:
        """A number that grows when the copy is made anew, so that its memory is another."""
        return self._generation

    def holding(self) -> int:
        """A number that grows when calls have changed what the copy holds, such as a mask for batches of one
        size, so that what was computed with is perhaps no more."""
        return 0 if self._copy is None else self._copy.holding()

    def hold_weakly(self) -> None:
        """From now on refers to the model weakly, for a cache whose entry goes when the model does."""
        if isinstance(self._held, nn.Module):
            self._model, self._held = weakref.ref(self._held), None

    def _build(self) -> None:
        model = self._model()
        self._generation += 1
        self.report = ViewReport()
        # Of a sample; known once the first batch has confirmed the copy.
        self.output_shape: torch.Size | None = None
        self._copy: FrozenCopy | None = None
        self._normalized = _is_normalized(model)
        if not isinstance(model, nn.Module):
            self._run_as_it_is("the model is a callable and no module")
            return
        self._structure = Structure(model)
        if self._structure.obstacle is not None:
            self._run_as_it_is(self._structure.obstacle)
            return
        try:
            self._copy = self._copied(model, self._fold)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a module holds that cannot be copied
            self._run_as_it_is(f"the model cannot be copied ({brief(error)})")
            return
        self.report.folded, self.report.left = self._copy.folded, self._copy.left

    def _copied(self, model: nn.Module, fold: bool) -> FrozenCopy:
        return FrozenCopy(self._inner(model), fold, self._structure.loose)

    def _run_as_it_is(self, reason: str) -> None:
        self._copy, self.report = None, ViewReport(note=f"{reason}: it runs as it is")
        self._refuse_half()

    def _refuse_half(self) -> None:
        if self._precision.is_half:
            refuse("precision", repr(self._precision.name), f"fp32, tf32, torch, since {self.report.note}")

    def _inner(self, model: nn.Module) -> nn.Module:
        """The module to copy: of a Normalized the one inside, since :meth:`prepare` normalises."""
        if not (self._normalized and isinstance(model, Normalized)):
            return model
        return cast(nn.Module, unwrap(model.model))

    @property
    def classes(self) -> int | None:
        """How many classes the output has; None before the first batch, and where it is not (N, classes)."""
        return self.output_shape[0] if self.output_shape is not None and len(self.output_shape) == 1 else None

    def __call__(self, x: Tensor) -> Tensor:
        """The output for prepared inputs (N, ...)."""
        if self._copy is not None:
            with attention(x):
                try:
                    return select(self._copy.module(x), self._output)
                except Exception as error:
                    if not self._may_unfold(x, error):
                        raise
                    reason = brief(error)
                return self._unfolded(x, reason)
        model = self._model()
        assert model is not None
        with eval_mode(model):
            return select(model(self._as_taken(x)), self._output)

    def _as_taken(self, images: Tensor) -> Tensor:
        """The images in the dtype that the model itself takes."""
        model = self._model()
        assert model is not None
        return images.to(float_dtype(model) or self.images_dtype or images.dtype)

    def _may_unfold(self, x: Tensor, error: Exception) -> bool:
        """Whether an error of a copy that was confirmed may be one of its folds."""
        assert self._copy is not None
        return (
            self.output_shape is not None
            and bool(self._copy.folded)
            and not isinstance(error, torch.OutOfMemoryError)
            and not (x.is_cuda and torch.cuda.is_current_stream_capturing())
        )

    def _unfolded(self, x: Tensor, reason: str) -> Tensor:
        """The output of a copy without folds, which then takes the place of the one that has failed. If it
        fails too, so does the model for these inputs, and all stays as it was."""
        model, before = self._model(), self._copy
        assert isinstance(model, nn.Module)
        assert before is not None
        copied = self._copied(model, fold=False)
        if self._precision.is_half:
            copied.cast_to(self._precision.dtype, self._inner(model))
        if not before.channels_last:
            copied.give_up_channels_last()
        output = select(copied.module(x), self._output)
        self._copy = copied
        self._generation += 1
        self.report.left |= dict.fromkeys(before.folded, reason)
        self.report.folded = {}
        self.report.note = "its layers are not used as they were at first: BatchNorm is no longer folded"
        return output

    def asked(self) -> AbstractContextManager[None]:
        """A context for calls and their backward passes. Keeps a model that is used as it is in eval mode for
        both: with activation checkpointing, a backward pass runs the forward again."""
        model = self._model()
        return contextlib.nullcontext() if self.is_copy or model is None else eval_mode(model)

    def prepare(self, adv: Tensor) -> Tensor:
        """The model's input for images adv (N, ...) in float32 or float64: normalised, cast to the precision,
        and in the copy's memory layout. The first call compares copy and model (:meth:`confirm`)."""
        if self.output_shape is None:
            self.confirm(adv)
        return self._input(adv)

    def _input(self, adv: Tensor) -> Tensor:
        dtype = self._copy.dtype if self._copy is not None else None
        mean, std = self.normalization(adv)
        layout = self.memory_format(adv)
        return prepare(adv, mean, std, dtype=dtype or adv.dtype, memory_format=layout)

    def normalization(self, adv: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The mean and std (C,) by which :meth:`prepare` normalises, in adv's dtype; None if it does not."""
        model = self._model()
        if self._copy is None or not (self._normalized and isinstance(model, Normalized)):
            return None, None
        return model.mean.to(adv), model.std.to(adv)

    def memory_format(self, images: Tensor) -> torch.memory_format:
        """The memory layout in which the copy takes these images."""
        channels_last = self._copy is not None and self._copy.channels_last and images.dim() == 4
        return torch.channels_last if channels_last else torch.preserve_format

    def refresh(self) -> None:
        """Copies the model's parameters and buffers as they are now.

        Memory is reused, so that captured CUDA graphs stay valid, unless the model's modules, devices or
        dtypes have changed: then the copy is made anew. A model that could not be followed gets a copy once
        it can.
        """
        model = self._model()
        if not isinstance(model, nn.Module):
            return
        if self._copy is None:
            if self._structure.obstacle is not None and not self._structure.is_untouched(model):
                self._build()
            return
        if self._structure.is_that_of(model):
            self._copy.take_over(self._inner(model))
            self._rebuilt = 0
            return
        before = self._structure
        self._build()
        self._rebuilt += 1
        if self._rebuilt >= _TOO_OFTEN and self.report.note is None:
            what = before.difference(self._structure)
            self.report.note = f"the model changes {what} from call to call: its copy is made anew each time"
            if self._rebuilt == _TOO_OFTEN:  # training asks for no notes
                warn(self.report.note)

    @torch.no_grad()
    def confirm(self, adv: Tensor) -> None:
        """Compares the copy's output with the model's for the first few of these images, then casts the copy
        to the precision. If they differ, folding is given up; if they still do, so is the copy. The first
        :meth:`prepare` calls this.

        Raises ValueError where the model's output is not (N, ...), and for a half precision if the model
        cannot be copied or leaves that precision's range.
        """
        model = self._model()
        assert model is not None

        def ask(images: Tensor) -> Tensor:
            return own_output(model, self._as_taken(images), self._output)

        # Without TF32, cuDNN's own choice, which would make equal networks differ.
        with get_precision("fp32").arithmetic(), eval_mode(model):
            adv, expected = few_or_all(adv, _CONFIRM_SAMPLES, ask)
            if self._copy is not None and self._depends_on_mode():
                self._run_as_it_is("what it holds depends on its mode, which a copy would not follow")
            largest = expected.abs().nan_to_num(0, posinf=0).max().item()
            if self._copy is not None:
                self._make_faithful(adv, expected, largest)
            else:
                self._refuse_half()
        if self._copy is not None and self._precision.name != "fp32":
            assert isinstance(model, nn.Module)
            if self._precision.is_half:
                self._copy.cast_to(self._precision.dtype, self._inner(model))
            with self._precision.arithmetic():
                moved, failure = self._moved_or_failed(adv, expected)
            self.report.moved = moved / (largest or 1)
            if not math.isfinite(moved):
                self._build()  # as it was before the cast, for another try with other weights
                name = repr(self._precision.name)
                if failure is not None:  # such as a layer that is given float32 whatever its weights are
                    refuse("precision", name, f"fp32, tf32, torch, since {failure}")
                refuse("precision", f"{name}, whose range this model leaves", "fp32, tf32, bf16")
        self.output_shape = expected.shape[1:]

    def _depends_on_mode(self) -> bool:
        """Whether the model, which has just been asked in eval mode, holds something else than before, and
        acts on a change of its mode, which may be when it is made anew: a copy has no such changes."""
        model = self._model()
        assert isinstance(model, nn.Module)
        return any(map(acts_on_mode, model.modules())) and not self._structure.is_that_of(model)

    def _make_faithful(self, adv: Tensor, expected: Tensor, largest: float) -> None:
        """Keeps a copy that gives the expected output: with its folds, else without them, else none."""
        model, copied = self._model(), self._copy
        assert isinstance(model, nn.Module)
        assert copied is not None
        tolerance = _TOLERANCE[expected.dtype] * largest
        uses = _Uses((*model.parameters(), *model.buffers()))
        moved, failure = self._moved_or_failed(adv, expected, uses)
        if uses.found:  # by some way, such as its name: in their mode, changing their statistics
            self._run_as_it_is("a copy would compute with some of the model's own tensors")
            return
        if failure is not None:  # perhaps by being watched
            moved, failure = self._moved_or_failed(adv, expected)
        if copied.folded and not moved <= tolerance:  # NaN is not, either
            reason = failure or f"folding it moved the first batch's output by {moved:.2g}"
            self._copy = self._copied(model, fold=False)
            self.report.folded, self.report.left = {}, copied.left | dict.fromkeys(copied.folded, reason)
            moved, failure = self._moved_or_failed(adv, expected)
        self.report.moved = moved / (largest or 1)
        if not moved <= tolerance:
            self._run_as_it_is(
                failure or f"a copy's output differs from the model's by {moved:.2g} (is it random?)"
            )

    def _moved_or_failed(
        self,
        adv: Tensor,
        expected: Tensor,
        around: AbstractContextManager[object] = _NOTHING,
    ) -> tuple[float, str | None]:
        """How far the copy's output is from the expected one, and how the copy failed, if it did. around: the
        copy's call."""
        try:
            return self._moved(adv, expected, around), None
        except torch.OutOfMemoryError:  # says nothing about the model
            raise
        except Exception as error:  # such as a dtype that the model's forward expects of its weights
            return math.inf, f"a copy fails ({brief(error)})"

    def _moved(self, adv: Tensor, expected: Tensor, around: AbstractContextManager[object]) -> float:
        """How far the copy's output is from the expected one."""
        assert self._copy is not None
        x = self._input(adv)
        try:
            with around:
                output = self(x)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # such as a view() of features, which wants them contiguous
            if not self._copy.channels_last:
                raise
            self._copy.give_up_channels_last()
            x = self._input(adv)
            with around:
                output = self(x)
        output = output.to(expected.dtype)
        same = (output == expected) | (output.isnan() & expected.isnan())  # infinite ones, such as masks, too
        return (output - expected).abs().masked_fill(same, 0).max().item()


def _is_normalized(model: object) -> bool:
    """Whether the model is what :class:`Normalized` says and no more: a subclass may do otherwise."""
    return type(model) is Normalized and not (model._forward_hooks or model._forward_pre_hooks)
