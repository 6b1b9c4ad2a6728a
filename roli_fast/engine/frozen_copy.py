"""A copy of a module for inference, and how it follows the module's weights."""

import contextlib
import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from .folding import Fold, FoldedLayer, FoldedLayers, Layer, find_folds, without_norm
from .graphs import CudaRecording, GraphRunner
from .modes import eval_mode, float_dtype
from .on_cpu import cut_stems
from .structure import StructureWatch
from .weakly import weakly


class FrozenCopy:
    """A copy in eval mode, float32 (float64 where the model is), whose parameters need no gradient, whose
    parametrizations are materialised, and whose BatchNorms are folded where ``fold`` allows and
    :func:`find_folds` proves it.

    loose: tensors that the model holds without having registered them, and that the copy follows, too.

    module: the copy.
    dtype: of its input; None where it has no parameters, which takes any.
    channels_last: whether it is laid out so, and wants its input so.
    folded, left: the BatchNorms that were folded, with the layer that took each up, and those that were not,
        with the reason.
    """

    def __init__(self, model: nn.Module, fold: bool, loose: Sequence[Tensor] = ()):
        parametrized = _parametrized(model)
        # Computed in eval mode: spectral normalisation iterates in train mode when it is asked.
        self._while_read = eval_mode if parametrized else contextlib.nullcontext
        with torch.inference_mode(False), torch.no_grad(), self._while_read(model):
            copied, counterparts = _copied(model)
            self.module = copied.eval().requires_grad_(False)
            for module, tensors in _parametrized(self.module).values():
                _materialize(module, tensors)
            given = float_dtype(model)
            self.dtype = given and (torch.float64 if given == torch.float64 else torch.float32)
            self.module.requires_grad_(False).to(self.dtype)
            if any(id(t) not in counterparts for t in loose):
                raise TypeError("what it holds copies a tensor in a way of its own")
            self._loose = [(t, counterparts[id(t)].requires_grad_(False)) for t in loose]
            self._cast_loose(given, self.dtype)
        folds, self.left = find_folds(self.module) if fold else ([], {})
        cut_stems(self.module)
        self._fold(model, folds)
        self.channels_last = any(isinstance(m, nn.Conv2d) for m in self.module.modules())
        if self.channels_last:
            self._lay_out(torch.channels_last)
        self.holding = StructureWatch(self.module)
        self._pair_up(model)
        self.take_over(model)

    def _fold(self, model: nn.Module, folds: Sequence[Fold]) -> None:
        self.folded = {f.norm: f.layer for f in folds}
        for f in folds:
            layer, norm = self.module.get_submodule(f.layer), self.module.get_submodule(f.norm)
            self.module.set_submodule(f.norm, without_norm(cast(Layer, layer), norm))
        self._folds = FoldedLayers(
            [
                (
                    cast(FoldedLayer, self.module.get_submodule(f.layer)).folded,
                    cast(Layer, model.get_submodule(f.layer)),
                    cast(_BatchNorm, model.get_submodule(f.norm)),
                )
                for f in folds
            ]
        )

    def give_up_channels_last(self) -> None:
        self.channels_last = False
        self._lay_out(torch.contiguous_format)
        if self._graph is not None:
            self._graph.clear()

    def _lay_out(self, layout: torch.memory_format) -> None:
        """As torch's own ``to``, which fails if a model also has tensors of five dimensions."""
        self.module._apply(lambda t: t.to(memory_format=layout) if t.dim() == 4 else t)

    def cast_to(self, dtype: torch.dtype, model: nn.Module) -> None:
        """Casts the weights. A BatchNorm that could not be folded stays in float32: its statistics span
        more than half precision holds, and torch normalises half-precision inputs with float32 ones."""
        norms = [m for m in self.module.modules() if isinstance(m, _BatchNorm)]
        self.module.to(dtype)
        self._cast_loose(self.dtype, dtype)
        self.dtype = dtype
        for norm in norms:
            norm.float()
        self._pair_up(model)
        self.take_over(model)

    def _cast_loose(self, before: torch.dtype | None, dtype: torch.dtype | None) -> None:
        for _, own in self._loose:
            if dtype is not None and own.dtype == before:
                own.data = own.data.to(dtype)

    @torch.no_grad()
    def take_over(self, model: nn.Module) -> None:
        """Copies the model's parameters and buffers as they are now, without reallocating."""
        with self._while_read(model):  # folding reads weights, too
            if self._computed:
                self._copy([getattr(module, name) for module, name in self._computed])
            elif self._graph is None or torch.cuda.is_current_stream_capturing():
                self._copy()
            else:
                with torch.cuda.device_of(self._read[0]):
                    self._graph()

    def _copy(self, computed: Sequence[Tensor] = ()) -> None:
        if self._own:
            torch._foreach_copy_(self._own, [*self._plain, *computed])
        self._folds.take_over()

    def _as_graph(self) -> tuple[Tensor, ...]:
        self._copy()
        return ()

    def _pair_up(self, model: nn.Module) -> None:
        """Notes which of the model's tensors each of its own follows, after a change of either: looking their
        names up takes longer than copying a small model."""
        folded = {id(t) for t in self._folds.parameters()}
        own = {id(t): (name, t) for name, t in _tensors(self.module).items() if id(t) not in folded}
        computed = {
            prefix + name: (module, name)
            for prefix, (module, names) in _parametrized(model).items()
            for name in names
        }
        plain = _tensors(model)
        first = [(name, t) for name, t in own.values() if name not in computed]
        rest = [(name, t) for name, t in own.values() if name in computed]
        self._own = [*(t for _, t in first), *(own for _, own in self._loose), *(t for _, t in rest)]
        self._plain = [*(plain[name] for name, _ in first), *(t for t, _ in self._loose)]
        # Some hundred small operations: on a GPU, one graph.
        read = self._read = [*self._plain, *self._folds.sources()]
        self._graph: GraphRunner | None = None
        devices = {t.device for t in self._read}
        if len(devices) == 1 and devices.pop().type == "cuda":
            self._graph = GraphRunner(
                weakly(self._as_graph), reads=lambda: read, limit=1, recording=CudaRecording
            )
        self._computed = [computed[name] for name, _ in rest]


def _parametrized(model: nn.Module) -> dict[str, tuple[nn.Module, list[str]]]:
    """The modules with parametrized tensors, by prefix, and those tensors' names."""
    return {
        f"{name}." if name else "": (module, list(cast(nn.ModuleDict, module.parametrizations)))
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module)
    }


def _materialize(module: nn.Module, names: list[str]) -> None:
    """Puts plain tensors where parametrized ones are. torch's own removal deletes the properties of the
    class, which a copied module shares with the model's."""
    values = {name: getattr(module, name) for name in names}
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=False))


class _Bare(nn.Module):
    """A wrapped module without what its wrapper does; names stay the same."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def _copied(model: nn.Module) -> tuple[nn.Module, dict[int, Any]]:
    """A deep copy, in which no part waits for other processes or spreads over devices, and what stands in it
    for what the model holds, by id."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():  # what a hook computes, as torch.nn.utils.prune's, is no leaf
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            memo[id(module)] = _Bare(copy.deepcopy(module.module, memo))
    return copy.deepcopy(model, memo), memo


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """By every name: which one of a tied tensor comes first may differ between a model and its copy."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
