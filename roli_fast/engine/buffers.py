"""Buffers of modules, which a forward pass in train mode may change."""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def buffers_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Afterwards these modules' own buffers are the same tensors with the same values. These are put back in
    place, since CUDA graphs know their addresses, and without waiting for the device."""
    places = [(module._buffers, name) for module in modules for name in module._buffers]
    tensors = [table[name] for table, name in places]
    written = [tensor for tensor in tensors if tensor is not None and can_be_written(tensor)]
    before = [torch.empty_like(tensor) for tensor in written]
    _copy(before, written)
    try:
        yield
    finally:
        for (table, name), tensor in zip(places, tensors, strict=True):
            table[name] = tensor
        _copy(written, before)


def can_be_written(tensor: Tensor) -> bool:
    """Not where elements share memory, as expand() makes them, nor where they have no places in it."""
    return tensor.layout == torch.strided and not tensor.is_quantized and 0 not in tensor.stride()


@torch.no_grad()
def _copy(into: list[Tensor], values: list[Tensor]) -> None:
    if into:
        torch._foreach_copy_(into, values)
