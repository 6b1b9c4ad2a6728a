"""Which callables of a caller's a CUDA graph may contain."""

import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_CONSTANTS = (str, bytes, bool, int, float, complex, type(None), torch.dtype)
_OF_LIBRARIES = (types.BuiltinFunctionType, types.ModuleType, type)


def is_closed(function: Any) -> bool:
    """Whether a callable computes with its arguments and constants alone: a recorded graph of it then stays
    right. Of another, such as a closure over a batch's soft labels, the graph would read what there was when
    it was recorded.

    Closed are functions without a closure whose globals are constants, classes, modules or closed functions;
    a functools.partial of such with constants; and torch's own modules.
    """
    if isinstance(function, functools.partial):
        given = (*function.args, *function.keywords.values())
        return is_closed(function.func) and all(isinstance(value, _CONSTANTS) for value in given)
    if isinstance(function, nn.Module):
        return type(function).__module__.startswith("torch.nn.")
    return _is_closed(function, ())


def _is_closed(value: Any, above: tuple[types.FunctionType, ...]) -> bool:
    """above: functions that are looked at already, which may call each other."""
    if isinstance(value, (*_CONSTANTS, *_OF_LIBRARIES)):
        return True
    if not isinstance(value, types.FunctionType):
        return False
    if value in above or value.__module__.split(".")[0] == "torch":
        return True
    space = value.__globals__
    named = [space[name] for name in _names(value.__code__) if name in space]
    enclosed = [*named, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return value.__closure__ is None and all(_is_closed(held, (*above, value)) for held in enclosed)


def _names(code: types.CodeType) -> Iterator[str]:
    """What code names, and functions that are defined in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
