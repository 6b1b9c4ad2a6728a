"""Runs a function on another device with the tensors of this one: all devices have the same tests."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Moved:
    """Tensors on a device as they lie in memory: strides, offsets, and what they share."""

    def __init__(self, device: str):
        self._device = device
        self._memory: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, value: Any) -> Any:
        if type(value) is not Tensor or not value.is_cpu or value.layout != torch.strided:
            return value
        storage = value.untyped_storage()
        if storage.data_ptr() not in self._memory:
            here = torch.empty(0, dtype=torch.uint8).set_(storage)
            self._memory[storage.data_ptr()] = here, here.to(self._device)
        _, there = self._memory[storage.data_ptr()]
        moved = torch.empty(0, dtype=value.dtype, device=self._device)
        moved.set_(there.untyped_storage(), value.storage_offset(), value.shape, value.stride())
        return moved.requires_grad_(value.requires_grad)

    def copy_back(self) -> None:
        for here, there in self._memory.values():
            here.copy_(there)


def elsewhere(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """The function on the device; what it writes and returns comes back."""
    if device == "cpu":
        return function

    def call(*args: Any, **kwargs: Any) -> Any:
        moved = _Moved(device)
        args, kwargs = [moved(a) for a in args], {name: moved(value) for name, value in kwargs.items()}
        try:
            result = function(*args, **kwargs)
        finally:
            moved.copy_back()
        if isinstance(result, tuple):
            return tuple(one.cpu() for one in result)
        return result.cpu() if isinstance(result, Tensor) else result

    return call
