"""Which callables of a caller's a CUDA graph may contain."""

import builtins
import collections
import functools
import itertools
import types
from typing import Any

import torch
from torch import nn

from .bytecode import instructions

_CONSTANTS = (str, bytes, bool, int, float, complex, type(None), torch.dtype)
# Whose modules, classes and functions keep nothing of the caller's. Not all of the standard library: sys,
# random, time and os answer differently in another call.
_LIBRARIES = {
    *("torch", "roli_fast", "builtins"),
    *("cmath", "contextlib", "functools", "itertools", "math", "numbers", "operator", "typing", "warnings"),
}
_LOOKUPS = {"__import__", "eval", "exec", "getattr", "globals", "input", "open", "vars"}  # find any variable
_READS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_REACHES_OUT = {"IMPORT_NAME", "STORE_GLOBAL", "DELETE_GLOBAL"}


def is_closed(function: Any) -> bool:
    """Whether a callable computes with its arguments and constants alone: a recorded graph of it then stays
    right. Of another, such as a closure over a batch's soft labels, the graph would read what there was when
    it was recorded.

    Closed are functions without a closure whose globals are modules and classes of libraries, and closed
    functions under the names that they were defined by. A number or a tensor is none of these, nor is a
    function under another name: the caller may give that name to another. Closed are also the libraries' own
    functions, torch's modules without tensors, and a functools.partial of closed functions with constants.
    """
    return _is_closed(function, ())


def _is_closed(value: Any, above: tuple[types.FunctionType, ...]) -> bool:
    """above: functions that are looked at already, which may call each other."""
    if isinstance(value, (*_CONSTANTS, types.ModuleType, type, types.BuiltinFunctionType)):
        return isinstance(value, _CONSTANTS) or _is_of_a_library(value)
    if isinstance(value, types.FunctionType):
        return value in above or _is_closed_function(value, (*above, value))
    return (parts := _parts(value)) is not None and all(_is_closed(part, above) for part in parts)


def _parts(value: Any) -> list[Any] | None:
    """All that an object computes with, where it is of a kind of which that is known."""
    if type(value) is tuple:
        return [*value]
    if type(value) is functools.partial:
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, nn.Module) and type(value).__module__.startswith("torch.nn."):
        own = vars(value).values()  # tensors, submodules and hooks are in dicts
        tables = (held.values() if isinstance(held, dict) else held for held in own if _is_table(held))
        return [*itertools.chain(*tables), *(held for held in own if not _is_table(held))]
    return None


def _is_table(held: Any) -> bool:
    return isinstance(held, (dict, set))


def _is_of_a_library(value: types.ModuleType | type | types.BuiltinFunctionType) -> bool:
    if isinstance(value, types.ModuleType):
        return _is_library(value.__name__) and value.__name__ != "builtins"  # the lookups' own module
    if isinstance(value, type):
        return _is_library(value.__module__)
    owner = value.__self__  # a method's may be a tensor
    owned = owner is None or isinstance(owner, (types.ModuleType, type))
    home = value.__module__ or getattr(owner, "__module__", None)
    return owned and _is_library(home) and value.__name__ not in _LOOKUPS


def _is_library(name: str | None) -> bool:
    return (name or "").split(".")[0].removeprefix("_") in _LIBRARIES


def _is_closed_function(function: types.FunctionType, above: tuple[types.FunctionType, ...]) -> bool:
    space, closure = function.__globals__, function.__closure__ or ()
    if _is_library(space.get("__name__")):  # __module__ may be a copy of another's
        return all(_is_closed(cell.cell_contents, above) for cell in closure)
    if closure:
        return False
    steps = [*instructions(function.__code__)]
    if vars(function) or any(done.opname in _REACHES_OUT for done in steps):
        return False
    names = {done.argval for done in steps if done.opname in _READS}
    known = collections.ChainMap(space, vars(builtins))
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return all(_is_closed(value, above) for value in defaults) and all(
        name in known and _is_lasting(name, known[name]) and _is_closed(known[name], above) for name in names
    )


def _is_lasting(name: str, value: Any) -> bool:
    """Whether a global looks like an import or a definition rather than a variable."""
    return isinstance(value, types.ModuleType) or getattr(value, "__name__", None) == name
