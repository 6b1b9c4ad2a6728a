"""Digests of models, functions and batches: the same in every process, so that a saved result can be compared
with what a later run has."""

import dis
import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from .modes import unwrap

_SIMPLE = (str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device)

# What nothing inside can change.
_LASTING = (*_SIMPLE, tuple, frozenset, types.FunctionType, types.MethodType, types.BuiltinFunctionType,
            functools.partial, type)  # fmt: skip

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")

# Attributes of which the digest is made elsewhere, or which do not change what a module computes.
_OF_TORCH = {*vars(nn.Module()), "_compiled_call_impl"}

# How far a model's answers to the same images may be apart, relative to their length. Another machine's
# kernels move them by some thousandths, in half precision by some hundredths; another model's are as far as
# they are long.
_NEAR = 0.05
_CALLS = 4  # by which a random model is known


def identity(function: Any) -> str:
    """The name of a callable and a digest of all it computes with: its code, the variables in its closure,
    the modules, tensors and functions of its own module that it names, and an object's attributes."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{name} {hashlib.sha256(repr(_content(function)).encode()).hexdigest()[:8]}"


def fingerprint(model: Any) -> str:
    """The class of a module and a digest of its printed structure, weights, buffers, hooks and attributes. Of
    another callable, its :func:`identity`.

    What a forward may change does not count: integers and tuples that a method other than ``__init__``
    assigns, such as a counter of calls, and what is in lists, dicts, objects and tensors that are not
    registered. :func:`answers_as_before` notices those.
    """
    model = unwrap(model)
    if not isinstance(model, nn.Module):
        return identity(model)
    digest = hashlib.sha256(repr(model).encode())
    for part in _held(model):
        digest.update(part)
    return f"{type(model).__qualname__} {digest.hexdigest()[:16]}"


def answers_as_before(before: Tensor, ask: Callable[[], Tensor]) -> bool:
    """Whether a model's answers are those of before, as far as rounding lets them be. Yes for a model whose
    answers are random: nothing can be told from them.

    before: answers (N, ...) to some images. ask: returns the model's answers to the same images now.
    """
    now = ask()
    if _are_near(before, now, _NEAR):
        return True
    return not all(_are_near(now, ask(), _NEAR / 2) for _ in range(_CALLS))


def _are_near(these: Tensor, those: Tensor, share: float) -> bool:
    if these.shape != those.shape:
        return False
    # A class that is masked out has an infinite logit.
    one, other = (t.cpu().double().nan_to_num(0, 0, 0) for t in (these, those))
    return bool((one - other).norm() <= share * torch.maximum(one.norm(), other.norm()))


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
    assigned = {kind: _assigned(kind) for kind in {type(module) for module in model.modules()}}
    for place, module in model.named_modules():
        own = sorted(_settings(module, assigned[type(module)]))
        hooks = [[_content(hook, lasting=True) for hook in vars(module)[table].values()] for table in _HOOKS]
        yield f"{place} {own} {hooks}".encode()
        if isinstance(module, torch.jit.ScriptModule) and not hasattr(module, "training"):
            # Frozen: its weights are constants of its code.
            constants = module.code_with_constants[1].const_mapping
            yield from (name.encode() + _bytes(constants[name]) for name in sorted(constants))


def _settings(module: nn.Module, assigned: set[str]) -> Iterator[tuple[str, object]]:
    """The attributes that a forward does not change. assigned: as :func:`_assigned` says."""
    for name, value in vars(module).items():
        lasts = name not in assigned and isinstance(value, _LASTING) and value is not None
        if name not in _OF_TORCH and (lasts or isinstance(value, (str, float, bool))):
            yield name, _content(value, lasting=True)


def _assigned(kind: type) -> set[str]:
    """The names of the attributes that methods of a class assign, but for ``__init__``."""
    methods = (
        inspect.unwrap(method)
        for above in kind.__mro__
        if above not in (nn.Module, object)
        for name, method in vars(above).items()
        if name != "__init__" and inspect.isfunction(method)
    )
    return {name for method in methods for name in _stored(method.__code__, "STORE_ATTR")}


def _stored(code: types.CodeType, instruction: str) -> set[str]:
    return {i.argval for i in dis.get_instructions(code) if i.opname == instruction}


def _content(value: Any, above: tuple[Any, ...] = (), lasting: bool = False) -> object:
    """What distinguishes a value, with a repr that says so. above: what holds it, so that circles end.
    lasting: whether of what can change in place only the kind counts."""
    if isinstance(value, _SIMPLE):
        return value
    if any(value is a for a in above):
        return "above"
    inside = functools.partial(_content, above=(*above, value), lasting=lasting)
    kind = type(value).__qualname__
    if isinstance(value, types.CodeType):
        return value.co_code, value.co_names, [inside(constant) for constant in value.co_consts]
    if isinstance(value, functools.partial):
        return inside(value.func), inside(value.args), inside(tuple(value.keywords.items()))
    if isinstance(value, types.MethodType):
        return inside(value.__func__), inside(value.__self__)
    if isinstance(value, types.FunctionType):
        return _content_of_function(value, inside, lasting)
    if isinstance(value, tuple):
        return kind, [inside(item) for item in value]
    if isinstance(value, frozenset):
        return kind, sorted(repr(inside(item)) for item in value)
    if lasting or isinstance(value, type):
        return kind, getattr(value, "__qualname__", "")
    if isinstance(value, Tensor):
        return kind, str(value.dtype), tuple(value.shape), hashlib.sha256(_bytes(value)).hexdigest()
    if isinstance(value, numpy.ndarray):
        return kind, value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, nn.Module):
        return fingerprint(value)
    if isinstance(value, list):
        return kind, [inside(item) for item in value]
    if isinstance(value, dict):
        return kind, [(repr(key), inside(item)) for key, item in value.items()]
    if isinstance(value, set):
        return kind, sorted(repr(inside(item)) for item in value)
    if not hasattr(value, "__dict__"):
        return kind, getattr(value, "__qualname__", "")
    return kind, inside(vars(value))


def _content_of_function(function: types.FunctionType, inside: Any, lasting: bool) -> object:
    """lasting: without what it assigns in its closure, such as a counter of its calls."""
    code = function.__code__
    assigned = _stored(code, "STORE_DEREF") if lasting else ()
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    enclosed = [inside(c.cell_contents) for name, c in cells if name not in assigned and _is_filled(c)]
    named = {name: function.__globals__.get(name) for name in code.co_names}
    own = {name: inside(v) for name, v in named.items() if _is_own(v, function.__module__)}
    defaults = inside(function.__defaults__), inside(tuple((function.__kwdefaults__ or {}).items()))
    return function.__qualname__, inside(code), defaults, enclosed, own


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
