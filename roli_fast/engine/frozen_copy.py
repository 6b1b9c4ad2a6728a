"""A copy of a module for inference, and how it follows the module's weights."""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .folding import Convolution, find_folds, folded_weights, without_norm


class FrozenCopy:
    """A copy in eval mode, float32 (float64 where the model is), whose parameters need no gradient and
    whose BatchNorms are folded where ``fold`` allows and :func:`find_folds` proves it.

    run: the copy.
    channels_last: whether it is laid out so, and wants its input so.
    folded, left: the BatchNorms that were folded, with the convolution that took each up, and those that were
        not, with the reason.
    """

    def __init__(self, model: nn.Module, fold: bool):
        with torch.inference_mode(False):
            self.run = copy.deepcopy(model).eval().requires_grad_(False)
            self.run.to(torch.float64 if _dtype(model) == torch.float64 else torch.float32)
        folds, self.left = find_folds(self.run) if fold else ([], {})
        self.folded = {f.norm: f.convolution for f in folds}
        self._folds: list[tuple[Convolution, Convolution, _BatchNorm]] = []
        for f in folds:
            convolution = cast(Convolution, self.run.get_submodule(f.convolution))
            if convolution.bias is None:
                bias = convolution.weight.new_zeros(len(convolution.weight))
                convolution.bias = nn.Parameter(bias, requires_grad=False)
            source = cast(Convolution, model.get_submodule(f.convolution))
            self._folds.append((convolution, source, cast(_BatchNorm, model.get_submodule(f.norm))))
            self.run.set_submodule(f.norm, without_norm(self.run.get_submodule(f.norm)))
        self.channels_last = any(isinstance(m, nn.Conv2d) for m in self.run.modules())
        if self.channels_last:
            self._lay_out(torch.channels_last)
        self.take_over(model)

    def give_up_channels_last(self) -> None:
        self.channels_last = False
        self._lay_out(torch.contiguous_format)

    def _lay_out(self, layout: torch.memory_format) -> None:
        cast(Any, self.run).to(memory_format=layout)  # unknown to the type stubs of torch 2.10

    @property
    def dtype(self) -> torch.dtype | None:
        """That of its parameters; None where it has none."""
        return _dtype(self.run)

    def cast_to(self, dtype: torch.dtype, model: nn.Module) -> None:
        """Casts the weights. A BatchNorm that could not be folded stays in float32: its statistics span
        more than half precision holds, and torch normalises half-precision inputs with float32 ones."""
        norms = [m for m in self.run.modules() if isinstance(m, _BatchNorm)]
        self.run.to(dtype)
        for norm in norms:
            norm.float()
        self.take_over(model)

    @torch.no_grad()
    def take_over(self, model: nn.Module) -> None:
        """Copies the model's parameters and buffers as they are now, without reallocating."""
        folded = {id(t) for convolution, _, _ in self._folds for t in convolution.parameters()}
        source = _tensors(model)
        pairs = [(t, source[name].detach()) for name, t in _tensors(self.run).items() if id(t) not in folded]
        if pairs:
            own, current = zip(*pairs, strict=True)
            torch._foreach_copy_(own, current)
        for convolution, source_convolution, norm in self._folds:
            weight, bias = folded_weights(source_convolution, norm)
            convolution.weight.copy_(weight)
            cast(Tensor, convolution.bias).copy_(bias)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _dtype(module: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)


class Structure:
    """What a copy of a model depends on besides the weights' values. Without the model itself, which a
    cache must not keep alive."""

    def __init__(self, model: nn.Module):
        # Objects are compared by identity, facts by value.
        self._objects: list[object] = [*list(model.modules())[1:], *model.parameters(), *model.buffers()]
        self._facts: list[object] = [(t.device, t.dtype) for t in self._objects if isinstance(t, Tensor)]
        for module in model.modules():
            for name, value in vars(module).items():
                if name.endswith("_hooks"):
                    self._objects.extend(value.values())
                elif isinstance(value, (bool, int, float, str, tuple)):
                    self._facts.append(name if name == "training" else (name, value))
                else:
                    self._objects.append(value)

    def is_that_of(self, model: nn.Module) -> bool:
        other = Structure(model)
        return (
            self._facts == other._facts
            and len(self._objects) == len(other._objects)
            and all(a is b for a, b in zip(self._objects, other._objects, strict=True))
        )
