"""Digests of models, functions and batches: the same in every process, so that a saved result can be compared
with what a later run has."""

import collections
import functools
import hashlib
import inspect
import logging
import math
import types
from collections.abc import Callable, Iterable, Iterator, Set
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from .bytecode import changes_of, looks_up, names, names_with
from .modes import unwrap
from .precision import products_now
from .structure import slots_of

_SIMPLE = (str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device)

# What nothing inside can change.
_LASTING = (*_SIMPLE, tuple, frozenset, types.FunctionType, types.MethodType, types.BuiltinFunctionType,
            functools.partial, type)  # fmt: skip

# What counts among the variables that a function names.
_DATA = (*_SIMPLE, tuple, list, dict, set, frozenset, numpy.ndarray, numpy.generic, Tensor, nn.Module,
         functools.partial)  # fmt: skip

# What a function may count or keep in.
_CONTAINERS = (list, dict, set, collections.deque, bytearray, numpy.ndarray, Tensor)
_NUMBERS = (int, float, complex, numpy.number)

_DEEPEST = 50  # objects within each other, of which the digest is made
_OPENED = 2000  # objects of a digest, from which on circles are not followed anew from each object in them
_NESTED = 4  # containers and functions within each other, in which a module's methods are looked for

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")

# Attributes of which the digest is made elsewhere, or which do not change what a module computes.
_OF_TORCH = {*vars(nn.Module()), "_compiled_call_impl"}

# How far a model's answers to the same images may be apart, relative to their length. The same kernels move
# them by their rounding at most, another machine's by some thousandths, in half precision by some hundredths.
_ROUNDING = 1e-4
_ELSEWHERE = 0.05
_ULPS = 4  # in half precision, whose unit in the last place is more than that

FEW = 8  # images, by whose answers a model is known

# By which a random model is known, and how much further than its answers in these calls are apart, an earlier
# one may be.
_CALLS = 4
_BY_CHANCE = 10

# What calls a module, and what brings it into eval mode.
_CALLED = frozenset({"__call__", "_call_impl", "forward", "train", "eval"})

# What makes an object: what these assign are its settings.
_MAKERS = frozenset({"__init__", "__new__", "__post_init__", "__setstate__"})


def identity(function: Any) -> str:
    """The name of a callable and a digest of all it computes with: its code, the variables in its closure,
    the data, functions and objects of its own module that it names, and an object's attributes.

    What is counted or kept during calls is left out: variables that the function assigns, containers and
    tensors that it changes, and of an object's attributes the numbers, tuples and containers that called
    methods assign or change. The model's answers tell whether that matters."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{name} {hashlib.sha256(repr(_content(function)).encode()).hexdigest()[:8]}"


def fingerprint(model: Any) -> str:
    """The class of a module and a digest of its printed structure, weights, buffers, hooks and attributes. Of
    another callable, its :func:`identity`.

    What a forward may change does not count: integers and tuples that it assigns, or a method that it calls,
    such as a counter of calls, and what is in lists, dicts, objects and tensors that are not registered.
    :func:`answers_as_before` notices those.
    """
    model = unwrap(model)
    if not isinstance(model, nn.Module):
        return identity(model)
    digest = hashlib.sha256(repr(model).encode())
    for part in _held(model):
        digest.update(part)
    return f"{type(model).__qualname__} {digest.hexdigest()[:16]}"


def surroundings(device: torch.device) -> str:
    """What the rounding of a model's answers depends on: torch, its kernels and how these multiply."""
    kernels = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
    )
    return f"torch {torch.__version__}, {kernels}, {' '.join(products_now())}"


def answers_as_before(before: Tensor, ask: Callable[[], Tensor], same_surroundings: bool) -> bool:
    """Whether a model's answers are those of before: as far as rounding lets them be, and for a model whose
    answers are random, as far as these are apart.

    before: answers (N, ...) to some images. ask: returns the model's answers to the same images now.
    same_surroundings: whether :func:`surroundings` are those of before.
    """
    now = ask()
    rounding = max(_ROUNDING, _ULPS * torch.finfo(now.dtype).eps)
    apart = _distance(before, now)
    if apart <= (rounding if same_surroundings else max(rounding, _ELSEWHERE)):
        return True
    return apart <= _BY_CHANCE * max(_distance(now, ask()) for _ in range(_CALLS))


def noisy(images: Tensor) -> Tensor:
    """Images (N, ...) with a tenth of noise, always the same, within their range: models that answer alike to
    clean ones, such as defences of another strength, may be told apart by these."""
    if images.numel() == 0:
        return images
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    lowest, highest = images.aminmax()
    return images.lerp(lowest + (highest - lowest) * noise, 0.1)


def _distance(these: Tensor, those: Tensor) -> float:
    """Relative to their length, up to 2."""
    if these.shape != those.shape:
        return math.inf
    # A class that is masked out has an infinite logit.
    one, other = (t.cpu().double().nan_to_num(0, 0, 0) for t in (these, those))
    longer = torch.maximum(one.norm(), other.norm()).item()
    return (one - other).norm().item() / (longer or 1)


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
    kinds = {type(module) for module in model.modules()}
    reached = _reached(kinds, _CALLED.union(*map(_called_by_its_own, model.modules())))
    assigned = {kind: _assigned(kind, reached) for kind in kinds}
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


def _called_by_its_own(module: nn.Module) -> set[str]:
    """The names of the methods that a module's hooks and attributes hold, and those that its functions of its
    own use, such as a forward that was replaced."""
    hooks = [hook for table in _HOOKS for hook in vars(module)[table].values()]
    own = [value for name, value in vars(module).items() if name not in _OF_TORCH]
    return set().union(*map(_callables_within, (*own, *hooks)))


def _callables_within(value: object, deep: int = 0) -> set[str]:
    """The names of the methods in a value, and those that functions in it use."""
    if deep > _NESTED or isinstance(value, (nn.Module, *_SIMPLE)):
        return set()
    if isinstance(value, functools.partial):
        inside: Iterable[object] = (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, dict):
        inside = value.values()
    elif isinstance(value, (tuple, list, set, frozenset)):
        inside = value
    elif isinstance(value, types.MethodType):
        return {value.__name__} | _callables_within(value.__func__, deep + 1)
    elif isinstance(value, types.FunctionType):
        # What a decorator wrapped is in its closure.
        inside = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        return set().union(names(value.__code__), *(_callables_within(i, deep + 1) for i in inside))
    else:
        return set()
    return set().union(*(_callables_within(item, deep + 1) for item in inside))


def _reached(kinds: Iterable[type], called: Set[str]) -> set[str]:
    """The names of all that methods of these names use, and the methods that these use, and so on: those of
    any of the classes, since a module calls methods of the modules in it. Signs such as [] call methods too:
    all of those are reached."""
    codes = [(name, code) for kind in kinds for name, code in _methods(kind) if name not in _MAKERS]
    methods = {name for name, code in codes}
    reached = set(called).union(name for name in methods if name.startswith("__"))
    before = -1
    while len(reached) > before:
        before = len(reached)
        for name, code in codes:
            if name in reached:
                reached |= methods if looks_up(code) else names(code)
    return reached


def _assigned(kind: type, reached: Set[str]) -> set[str]:
    """The names of the attributes that methods of a class assign, of those that are reached."""
    methods = [code for name, code in _methods(kind) if name in reached - _MAKERS]
    return {name for code in methods for name in names_with(code, "STORE_ATTR")}


def _methods(kind: type) -> Iterator[tuple[str, types.CodeType]]:
    for above in kind.__mro__:
        if above in (nn.Module, object):
            continue
        for name, method in vars(above).items():
            of_property = getattr(method, "fget", None) or getattr(method, "func", None)
            function = inspect.unwrap(getattr(method, "__func__", None) or of_property or method)
            if inspect.isfunction(function):
                yield name, function.__code__


class _Met:
    """What a digest is made of. known: the digests of what was met already, since a value may be held in many
    ways. circles: how often a value was within itself. opened: how many values were looked into."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[Any, str]] = {}
        self.circles = self.opened = 0


def _content(
    value: Any,
    above: tuple[Any, ...] = (),
    lasting: bool = False,
    called: Set[str] = frozenset(),
    counted: Set[str] = frozenset(),
    met: "_Met | None" = None,
) -> object:
    """What distinguishes a value, with a repr that says so. above: what holds it, so that circles end.
    lasting: whether of what can change in place only the kind counts. called: names that what holds it uses.
    counted: attributes that what holds it assigns or changes.
    met: what the digest is made of so far."""
    if isinstance(value, _SIMPLE):
        return value
    met = met or _Met()
    if any(value is a for a in above) or len(above) == _DEEPEST:
        met.circles += 1
        return "above"
    if id(value) in met.known:
        return met.known[id(value)][1]
    met.opened += 1
    circles = met.circles
    inside = functools.partial(
        _content, above=(*above, value), lasting=lasting, called=called, counted=counted, met=met
    )
    found = _opened(value, inside, lasting, called, counted)
    digest = hashlib.sha256(repr(found).encode()).hexdigest()
    # What is in a circle looks otherwise from elsewhere, and which of a set is met first is chance.
    if met.circles == circles or met.opened > _OPENED:
        met.known[id(value)] = value, digest  # held: ids are used again
    return digest


def _opened(
    value: Any, inside: Callable[..., object], lasting: bool, called: Set[str], counted: Set[str]
) -> object:
    """What is in a value. inside: :func:`_content` of what it holds."""
    kind = type(value).__qualname__
    if isinstance(value, types.CodeType):
        return value.co_code, value.co_names, [inside(constant) for constant in value.co_consts]
    if isinstance(value, functools.partial):
        return inside(value.func), inside(value.args), inside(tuple(value.keywords.items()))
    if isinstance(value, types.MethodType):
        return inside(value.__func__), inside(value.__self__, called={value.__name__})
    if isinstance(value, types.FunctionType):
        return _content_of_function(value, inside, lasting, called, counted)
    if isinstance(value, tuple):
        return kind, [inside(item) for item in value]
    if isinstance(value, frozenset):
        return kind, sorted(repr(inside(item)) for item in value)
    if lasting or isinstance(value, (type, types.ModuleType)):
        return kind, getattr(value, "__qualname__", getattr(value, "__name__", ""))
    if isinstance(value, Tensor):
        return kind, str(value.dtype), tuple(value.shape), hashlib.sha256(_bytes(value)).hexdigest()
    if isinstance(value, numpy.ndarray) and value.dtype.hasobject:
        return kind, value.dtype.str, value.shape, inside(value.tolist())  # its bytes are addresses
    if isinstance(value, logging.Logger):
        return kind, value.name  # it refers to all loggers of the process, and what these have answered
    if isinstance(value, (numpy.ndarray, numpy.generic)):
        return kind, value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, nn.Module):
        return fingerprint(value)
    if isinstance(value, list):
        return kind, [inside(item) for item in value]
    if isinstance(value, dict):
        return kind, [(inside(key), inside(item)) for key, item in value.items()]
    if isinstance(value, set):
        return kind, sorted(repr(inside(item)) for item in value)
    return kind, getattr(value, "__qualname__", ""), _content_of_object(value, inside, called, counted)


def _content_of_object(
    value: object, inside: Callable[..., object], called: Set[str], counted: Set[str]
) -> object:
    """Without what the methods that are called count or keep."""
    kind = type(value)
    reached = _reached([kind], called | {"__call__"})
    codes = [code for name, code in _methods(kind) if name in reached - _MAKERS]
    counted = set(counted).union(_assigned(kind, reached), *map(changes_of, codes))
    slots = {name: getattr(value, name) for name in slots_of(kind) if hasattr(value, name)}
    held = slots | getattr(value, "__dict__", {})
    return [
        (name, inside(item, called=reached, counted=counted))
        for name, item in held.items()
        if name not in counted
        or isinstance(item, bool)
        or not isinstance(item, (*_NUMBERS, tuple, *_CONTAINERS))
    ]


def _content_of_function(
    function: types.FunctionType,
    inside: Callable[..., object],
    lasting: bool,
    called: Set[str],
    counted: Set[str],
) -> object:
    """Without the variables that it assigns, such as a counter of its calls, and what it changes in place."""
    code = function.__code__
    changed = frozenset() if lasting else changes_of(code)
    counted = counted | names_with(code, "STORE_ATTR") | changed
    inside = functools.partial(inside, called=called | names(code), counted=counted)

    def kept(name: str, value: object) -> bool:
        return name in changed and isinstance(value, _CONTAINERS)

    assigned = names_with(code, "STORE_DEREF") & set(code.co_freevars)
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    filled = {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}
    enclosed = [inside(v) for name, v in filled.items() if name not in assigned and not kept(name, v)]
    assigned = names_with(code, "STORE_GLOBAL")
    named = {
        name: function.__globals__.get(name) for name in sorted(names_with(code, "LOAD_GLOBAL") - assigned)
    }
    own = {
        name: inside(v) for name, v in named.items() if _is_own(v, function.__module__) and not kept(name, v)
    }
    defaults = inside(function.__defaults__), inside(tuple((function.__kwdefaults__ or {}).items()))
    return function.__qualname__, inside(code), defaults, enclosed, own


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - raises where there is none yet
    except ValueError:
        return False
    return True


def _is_own(value: object, module: str) -> bool:
    """Of what a function names: its data, and functions that stand beside it and objects of classes that do;
    not those of libraries."""
    if isinstance(value, types.MethodType):
        return _is_own(value.__self__, module)
    if isinstance(value, types.FunctionType):
        return value.__module__ == module
    return isinstance(value, _DATA) or type(value).__module__ == module
