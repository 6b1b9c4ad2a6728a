"""Buffers of modules, which a forward pass in train mode may change."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


class Buffers:
    """These modules' own buffers, and other tensors, as they were when this was made.

    They are put back in place, since CUDA graphs know their addresses, and without waiting for the device.
    """

    def __init__(self, modules: Iterable[nn.Module], others: Iterable[Tensor] = ()):
        self._places = [(module._buffers, name) for module in modules for name in module._buffers]
        self._tensors = [table[name] for table, name in self._places]
        held = [*(tensor for tensor in self._tensors if tensor is not None), *others]
        self._written = [tensor for tensor in held if can_be_written(tensor)]
        self._values = [torch.empty_like(tensor) for tensor in self._written]
        _copy(self._values, self._written)

    def put_back(self) -> None:
        for (table, name), tensor in zip(self._places, self._tensors, strict=True):
            table[name] = tensor
        _copy(self._written, self._values)


@contextlib.contextmanager
def buffers_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Afterwards these modules' own buffers are the same tensors with the same values."""
    before = Buffers(modules)
    try:
        yield
    finally:
        before.put_back()


def can_be_written(tensor: Tensor) -> bool:
    """Not where elements share memory, as expand() makes them, nor where they have no places in it."""
    return tensor.layout == torch.strided and not tensor.is_quantized and 0 not in tensor.stride()


@torch.no_grad()
def _copy(into: list[Tensor], values: list[Tensor]) -> None:
    if into:
        torch._foreach_copy_(into, values)
