"""Digests of models, functions and batches: the same in every process, so that a saved result can be compared
with what a later run has."""

import functools
import hashlib
import types
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from .modes import unwrap

_SIMPLE = (str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device)


def identity(function: Any) -> str:
    """The name of a callable and a digest of all it computes with: its code, the variables in its closure,
    the modules, tensors and functions of its own module that it names, and an object's attributes."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{name} {hashlib.sha256(repr(_content(function, ())).encode()).hexdigest()[:8]}"


def fingerprint(model: Any) -> str:
    """The class of a module and a digest of its printed structure, weights, buffers, and attributes that are
    strings, floats or bools (not integers, which may count calls). Of another callable, its
    :func:`identity`."""
    model = unwrap(model)
    if not isinstance(model, nn.Module):
        return identity(model)
    digest = hashlib.sha256(repr(model).encode())
    for part in _held(model):
        digest.update(part)
    return f"{type(model).__qualname__} {digest.hexdigest()[:16]}"


def digest_of(images: Tensor, labels: Tensor) -> str:
    """A digest of a batch, which is the same only for the same images and labels."""
    digest = hashlib.sha256(f"{tuple(images.shape)} {images.dtype}".encode())
    digest.update(_bytes(images))
    digest.update(_bytes(labels))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def _held(model: nn.Module) -> Iterator[bytes]:
    tensors = {**dict(model.named_buffers()), **model.state_dict()}
    for name, value in sorted(tensors.items()):
        if isinstance(value, Tensor):
            yield f"{name} {tuple(value.shape)} {value.dtype}".encode() + _bytes(value)
    for place, module in model.named_modules():
        own = {name: v for name, v in vars(module).items() if isinstance(v, (str, float)) or type(v) is bool}
        own.pop("training")
        yield f"{place} {sorted(own.items())}".encode()


def _content(value: Any, above: tuple[Any, ...]) -> object:
    """What distinguishes a value, with a repr that says so. above: what holds it, so that circles end."""
    if isinstance(value, _SIMPLE):
        return value
    if any(value is a for a in above):
        return "above"
    inside = functools.partial(_content, above=(*above, value))
    kind = type(value).__qualname__
    if isinstance(value, Tensor):
        return kind, str(value.dtype), tuple(value.shape), hashlib.sha256(_bytes(value)).hexdigest()
    if isinstance(value, numpy.ndarray):
        return kind, value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, nn.Module):
        return fingerprint(value)
    if isinstance(value, types.CodeType):
        return value.co_code, value.co_names, [inside(constant) for constant in value.co_consts]
    if isinstance(value, functools.partial):
        return inside(value.func), inside(value.args), inside(value.keywords)
    if isinstance(value, types.MethodType):
        return inside(value.__func__), inside(value.__self__)
    if isinstance(value, types.FunctionType):
        return _content_of_function(value, inside)
    if isinstance(value, (tuple, list)):
        return kind, [inside(item) for item in value]
    if isinstance(value, dict):
        return kind, [(repr(key), inside(item)) for key, item in value.items()]
    if isinstance(value, (set, frozenset)):
        return kind, sorted(repr(inside(item)) for item in value)
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return kind, getattr(value, "__qualname__", "")
    return kind, inside(vars(value))


def _content_of_function(function: types.FunctionType, inside: Any) -> object:
    enclosed = [inside(cell.cell_contents) for cell in function.__closure__ or () if _is_filled(cell)]
    named = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    own = {name: inside(v) for name, v in named.items() if _is_own(v, function.__module__)}
    defaults = inside(function.__defaults__), inside(function.__kwdefaults__)
    return function.__qualname__, inside(function.__code__), defaults, enclosed, own


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - raises where there is none yet
    except ValueError:
        return False
    return True


def _is_own(value: object, module: str) -> bool:
    """Of what a function names: its data, and functions that stand beside it; not those of libraries."""
    if isinstance(value, (nn.Module, Tensor, numpy.ndarray, functools.partial)):
        return True
    return isinstance(value, types.FunctionType) and value.__module__ == module
