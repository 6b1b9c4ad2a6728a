"""BatchNorm folded into the convolution before it: exact up to rounding, since an attack runs in eval mode.

Only what tracing proves is folded: the convolution's output goes to the BatchNorm and nowhere else, both
are called once, nothing is hooked in between and the weights are shared with nobody.
"""

import dataclasses
import operator
from typing import cast

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Exact types: a subclass may do something else with its weights.
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNormAct2d)

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclasses.dataclass(frozen=True)
class Fold:
    """A convolution and the BatchNorm that follows it, by their names in the model."""

    convolution: str
    norm: str


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, _BatchNorm) or super().is_leaf_module(module, name)


class _Trace:
    """A model's modules as its forward calls them."""

    def __init__(self, model: nn.Module):
        graph = _Tracer().trace(model)
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
    try:
        trace = _Trace(model)
    except Exception as error:  # whatever a forward does to a tracer
        return [], dict.fromkeys(norms, f"the model cannot be traced: {str(error).splitlines()[0]}")
    folds, left = [], {}
    for name, norm in norms.items():
        found = _convolution_before(norm, trace)
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


def _convolution_before(norm: _BatchNorm, trace: _Trace) -> fx.Node | str:
    """The convolution that may take the BatchNorm up, or the reason why none may."""
    if type(norm) not in _NORMS:
        return f"{type(norm).__name__} is not a plain BatchNorm"
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    calls = trace.calls(norm)
    if len(calls) != 1:
        return f"it is called {len(calls)} times"
    before = calls[0].args[0] if calls[0].args else None
    if not isinstance(before, fx.Node) or before.op != "call_module":
        return "it does not follow a convolution"
    convolution = trace.module(before)
    if type(convolution) not in _CONVOLUTIONS:
        return f"it follows a {type(convolution).__name__}"
    if len(before.users) != 1 or len(trace.calls(convolution)) != 1:
        return f"{before.target} is used elsewhere too"
    if _hooked(convolution) or _hooked(norm):
        return f"a hook stands between {before.target} and it"
    if trace.shared & {id(p) for p in (*convolution.parameters(), *norm.parameters())}:
        return f"parameters of {before.target} or its own are shared"
    return before


class _Activation(nn.Module):
    """A timm BatchNormAct2d without its norm; the names of what remains stay the same."""

    def __init__(self, norm: BatchNormAct2d):
        super().__init__()
        self.drop, self.act = norm.drop, norm.act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(x))


def without_norm(norm: nn.Module) -> nn.Module:
    """What is left of a BatchNorm that has been folded."""
    return _Activation(norm) if isinstance(norm, BatchNormAct2d) else nn.Identity()


@torch.no_grad()
def folded_weights(convolution: Convolution, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does what both do, in float64."""
    mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = (var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -mean.double()
    if convolution.bias is not None:
        bias = bias + convolution.bias.double()
    bias = bias * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    weight = convolution.weight.double()
    return weight * scale.reshape(-1, *[1] * (weight.dim() - 1)), bias
