"""BatchNorm folded into the convolution or linear layer before it: exact up to rounding, since an attack runs
in eval mode.

Only what tracing proves is folded: the layer's output goes to the BatchNorm and nowhere else, both are called
once, nothing is hooked in between and the weights are shared with nobody. A forward that later takes another
path, such as by a global flag, fails where it would have used a folded output for a plain one, or a plain one
for a folded, and where it reads the weights of a folded layer.
"""

import dataclasses
import functools
import operator
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checks import brief

# Exact types: a subclass may do something else with its weights.
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


@dataclasses.dataclass(frozen=True)
class Fold:
    """A layer and the BatchNorm that follows it, by their names in the model."""

    layer: str
    norm: str


_one_at_a_time = threading.Lock()


class _Tracer(fx.Tracer):
    """While fx traces, it has its own functions in the place of nn.Module's: they act as those do for what
    other threads do meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, _BatchNorm) or super().is_leaf_module(module, name)


class _Trace:
    """A model's modules as its forward calls them."""

    def __init__(self, model: nn.Module):
        tracer = _Tracer()
        try:
            with _one_at_a_time:
                graph = tracer.trace(model)
        finally:
            # It is part of a cycle, and would keep the model until that is collected. What other threads are
            # in the middle of needs the rest.
            for name in vars(tracer).keys() - {"_thread", "_autowrap_function_ids"}:
                del vars(tracer)[name]
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._calls: dict[int, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                self._calls.setdefault(id(self.module(node)), []).append(node)
        # Parameters that are known under several names, or that the forward reads itself.
        names: dict[int, int] = {}
        for _, parameter in model.named_parameters(remove_duplicate=False):
            names[id(parameter)] = names.get(id(parameter), 0) + 1
        self.shared = {parameter for parameter, count in names.items() if count > 1}
        for node in graph.nodes:
            if node.op == "get_attr":
                self.shared.add(id(operator.attrgetter(str(node.target))(model)))

    def module(self, node: fx.Node) -> nn.Module:
        return self._modules[str(node.target)]

    def calls(self, module: nn.Module) -> list[fx.Node]:
        return self._calls.get(id(module), [])


def find_folds(model: nn.Module) -> tuple[list[Fold], dict[str, str]]:
    """What may be folded, and for every other BatchNorm the reason why it may not."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    if not norms:
        return [], {}
    if (hooked := _hooked_inside(model)) is not None:
        return [], dict.fromkeys(norms, f"a hook of {hooked} may see what folding changes")
    try:
        trace = _Trace(model)
    except Exception as error:  # whatever a forward does to a tracer
        return [], dict.fromkeys(norms, f"the model cannot be traced: {brief(error)}")
    folds, left = [], {}
    for name, norm in norms.items():
        found = _layer_before(norm, trace)
        if isinstance(found, fx.Node):
            folds.append(Fold(str(found.target), name))
        else:
            left[name] = found
    return folds, left


def _hooked(module: nn.Module) -> bool:
    return any(
        getattr(module, hooks)
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )


def _hooked_inside(model: nn.Module) -> str | None:
    """A module within which tracing looks and that has hooks, or where all modules have some: these would be
    called with what is traced, which is no tensor, and see no layer's own output after folding."""
    if nn.modules.module._has_any_global_hook():
        return "all modules"
    tracer = _Tracer()
    modules = ((name, module) for name, module in model.named_modules() if name)  # not what is traced itself
    return next((n for n, m in modules if _hooked(m) and not tracer.is_leaf_module(m, n)), None)


def _layer_before(norm: _BatchNorm, trace: _Trace) -> fx.Node | str:
    """The layer that may take the BatchNorm up, or the reason why none may."""
    if type(norm) not in _NORMS and not _has_activation(norm):
        return f"{type(norm).__name__} is not a plain BatchNorm"
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    calls = trace.calls(norm)
    if len(calls) != 1:
        return f"it is called {len(calls)} times"
    before = calls[0].args[0] if calls[0].args else None
    if not isinstance(before, fx.Node) or before.op != "call_module":
        return "it does not follow a layer"
    layer = trace.module(before)
    if type(layer) not in _LAYERS:
        return f"it follows a {type(layer).__name__}"
    if norm.num_features != len(cast(Tensor, layer.weight)):
        return f"it normalises another dimension of {before.target}'s output"
    if len(before.users) != 1 or len(trace.calls(layer)) != 1:
        return f"{before.target} is used elsewhere too"
    if _hooked(layer) or _hooked(norm):
        return f"a hook stands between {before.target} and it"
    if trace.shared & {id(p) for p in (*layer.parameters(), *norm.parameters())}:
        return f"parameters of {before.target} or its own are shared"
    return before


def _has_activation(norm: nn.Module) -> bool:
    """Whether it is timm's BatchNormAct2d. Who holds one has imported timm, which takes seconds."""
    layers = sys.modules.get("timm.layers")
    return layers is not None and type(norm) is layers.BatchNormAct2d


@dataclasses.dataclass(slots=True, eq=False)
class _Folded:
    """The output of a layer with its norm in it. No operation takes it, since it is no tensor: only what is
    left of this norm does."""

    output: Tensor
    mark: object


class FoldedLayer(nn.Module):
    """A layer with its norm in it. It has no weights of its own, which a forward that reads them would take
    for the layer's.

    folded: the layer that computes.
    """

    folded: Layer
    mark: object  # of the two
    has_bias: bool  # of the model's

    def forward(self, x: Tensor) -> _Folded:
        return _Folded(self.folded.forward(x), self.mark)  # hooks are called once

    @property
    def weight(self) -> Tensor:
        raise RuntimeError("a BatchNorm was folded into the weights of a layer that are read now")

    @property
    def bias(self) -> Tensor | None:
        return self.weight if self.has_bias else None

    def extra_repr(self) -> str:
        return ""  # the layer's own would read its bias


@functools.cache
def _folded(kind: Any) -> Any:
    return type(f"Folded{kind.__name__}", (FoldedLayer, kind), {})


class _Nothing(nn.Module):
    """What is left of a plain norm. Tracing knows no shapes: it is here that an output of another rank shows,
    whose channels are not where the norm looks for them (a linear layer's (N, L, C))."""

    def __init__(self, rank: int, mark: object):
        super().__init__()
        self.rank, self.mark = rank, mark

    def forward(self, folded: object) -> Tensor:
        if not isinstance(folded, _Folded) or folded.mark is not self.mark:
            raise RuntimeError("a BatchNorm was folded into a layer that it does not follow now")
        if folded.output.dim() != self.rank:
            raise RuntimeError(
                f"a BatchNorm was folded for an input of {self.rank} dimensions, not {folded.output.dim()}"
            )
        return folded.output


class _Activation(_Nothing):
    """A timm BatchNormAct2d without its norm; the names of what remains stay the same."""

    def __init__(self, rank: int, mark: object, norm: nn.Module):
        super().__init__(rank, mark)
        self.drop, self.act = cast(nn.Module, norm.drop), cast(nn.Module, norm.act)

    def forward(self, folded: object) -> Tensor:
        return self.act(self.drop(super().forward(folded)))


def without_norm(layer: Layer, norm: nn.Module) -> nn.Module:
    """What is left of a BatchNorm that is folded into a layer, which becomes a :class:`FoldedLayer`."""
    rank = layer.weight.dim()  # of its output, where it is folded
    kind: Any = type(layer)
    computing = kind.__new__(kind)
    vars(computing).update(vars(layer))
    here, mark = cast(FoldedLayer, layer), object()
    here.has_bias, here.mark = layer.bias is not None, mark
    here._parameters, here._modules = {}, {"folded": computing}
    here.__class__ = _folded(kind)
    return _Activation(rank, mark, norm) if _has_activation(norm) else _Nothing(rank, mark)


class FoldedLayers:
    """Layers that have taken up the BatchNorms behind them, and follow the model's.

    layers: (what computes in the copy, which gets a bias if it has none; that layer and its BatchNorm in the
        model).
    """

    def __init__(self, layers: list[tuple[Layer, Layer, _BatchNorm]]):
        self._layers = layers
        self._scratch: Tensor | None = None
        for layer, _, _ in layers:
            if layer.bias is None:
                layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)), requires_grad=False)

    def parameters(self) -> list[Tensor]:
        """What :meth:`take_over` writes."""
        return [t for layer, _, _ in self._layers for t in layer.parameters()]

    def sources(self) -> list[Tensor]:
        """What :meth:`take_over` reads."""
        read = (
            t
            for _, source, norm in self._layers
            for t in (*source.parameters(), *norm.parameters(), norm.running_mean, norm.running_var)
        )
        return [t for t in read if t is not None]

    @torch.no_grad()
    def take_over(self) -> None:
        """weight * scale and (bias - mean) * scale + beta, where scale = gamma / sqrt(var + eps)."""
        if not self._layers:
            return
        norms = [norm for _, _, norm in self._layers]
        variances = _wide([norm.running_var for norm in norms])
        zeros = [torch.zeros_like(variance) for variance in variances]
        ones = [torch.ones_like(variance) for variance in variances]
        scale = torch._foreach_add(variances, [norm.eps for norm in norms])
        torch._foreach_rsqrt_(scale)
        torch._foreach_mul_(scale, _wide([norm.weight for norm in norms], ones))
        shift = torch._foreach_mul(_wide([norm.running_mean for norm in norms]), -1.0)
        torch._foreach_add_(shift, _wide([source.bias for _, source, _ in self._layers], zeros))
        torch._foreach_mul_(shift, scale)
        torch._foreach_add_(shift, _wide([norm.bias for norm in norms], zeros))
        torch._foreach_copy_([cast(Tensor, layer.bias) for layer, _, _ in self._layers], shift)
        for (layer, source, _), factor in zip(self._layers, scale, strict=True):
            weight = source.weight.to(factor.dtype)
            factor = factor.reshape(-1, *[1] * (weight.dim() - 1))
            if layer.weight.dtype == weight.dtype:
                torch.mul(weight, factor, out=layer.weight)
            else:  # into the other layout and then into the other dtype: both at once takes twice as long
                layer.weight.copy_(
                    torch.mul(weight, factor, out=self._scratch_like(layer.weight, weight.dtype))
                )

    def _scratch_like(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Memory that all layers share: new memory would cost more than what is computed in it."""
        scratch = self._scratch
        if scratch is None or scratch.dtype != dtype or scratch.device != weight.device:
            most = max(layer.weight.numel() for layer, _, _ in self._layers)
            scratch = self._scratch = torch.empty(most, dtype=dtype, device=weight.device)
        return scratch.as_strided(weight.shape, weight.stride())


def _wide(tensors: Sequence[Tensor | None], missing: Sequence[Tensor | None] | None = None) -> list[Tensor]:
    """In float32, or float64 where they are; what a module does not have is taken from ``missing``."""
    pairs = zip(tensors, missing or tensors, strict=True)
    present = [cast(Tensor, m if t is None else t) for t, m in pairs]
    return [t if t.dtype == torch.float64 else t.float() for t in present]
