"""Digests of models, functions and batches: the same in every process, so that a saved result can be compared
with what a later run has."""

import functools
import hashlib
import math
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from .bytecode import instructions
from .modes import unwrap
from .precision import products_now

_SIMPLE = (str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device)
# Of what a function names, what counts besides all that is of its own module.
_DATA = (*_SIMPLE, tuple, frozenset, functools.partial, numpy.ndarray, numpy.generic, Tensor, nn.Module)

_OF_TORCH = {*vars(nn.Module()), "_is_torch_compile"}

_DEEPEST = 20  # values within each other, of which a digest is made

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


def fingerprint(model: Any) -> str:
    """The class of a module and a digest of its printed structure, its weights and buffers, and the floats,
    strings and booleans among its modules' attributes (integers often count calls). Of another callable, its
    name, and those of the modules that it reaches.

    What else a model computes with shows in its answers: see :func:`answers_as_before`.
    """
    model = unwrap(model)
    if not isinstance(model, nn.Module):
        return " ".join((_name(model), *_modules_in(model, {})))
    digest = hashlib.sha256(repr(model).encode())
    for part in _held(model):
        digest.update(part)
    return f"{type(model).__qualname__} {digest.hexdigest()[:16]}"


def _held(model: nn.Module) -> Iterator[bytes]:
    tensors = {**dict(model.named_buffers()), **model.state_dict()}
    for name, value in sorted(tensors.items()):
        if isinstance(value, Tensor):
            yield f"{name} {tuple(value.shape)} {value.dtype}".encode() + _bytes(value)
    for place, module in model.named_modules():
        own = {
            n: v for n, v in vars(module).items() if isinstance(v, (float, str, bool)) and n not in _OF_TORCH
        }
        yield f"{place} {sorted(own.items())}".encode()
        if isinstance(module, torch.jit.ScriptModule) and not hasattr(module, "training"):
            # Frozen: its weights are constants of its code.
            constants = module.code_with_constants[1].const_mapping
            yield from (name.encode() + _bytes(constants[name]) for name in sorted(constants))


def _modules_in(value: Any, met: dict[int, Any], deep: int = 0) -> Iterator[str]:
    """The fingerprints of modules that a callable reaches by what it is given, names and holds."""
    if isinstance(value, nn.Module):
        yield fingerprint(value)
        return
    if isinstance(value, (*_SIMPLE, type, types.ModuleType, Tensor)) or id(value) in met or deep == _DEEPEST:
        return
    met[id(value)] = value  # held: ids are used again
    if isinstance(value, dict):
        inside: Iterable[object] = [*value.values()]
    else:
        inside = [*value] if isinstance(value, (list, set, frozenset)) else _inside(value)
    for item in inside:
        yield from _modules_in(item, met, deep + 1)


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


def surroundings(device: torch.device) -> str:
    """What the rounding of a model's answers depends on: torch, its kernels and how these multiply."""
    kernels = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
    )
    return f"torch {torch.__version__}, {kernels}, {' '.join(products_now())}"


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


def identity(function: Any) -> str:
    """The name of a callable, such as an attack's loss, and a digest of what it computes with: its code, its
    defaults, what is in its closure, the data and functions of its own module that it names, and an object's
    attributes.

    What calls may change is left out: variables that the function assigns, and lists, dicts and sets."""
    return f"{_name(function)} {hashlib.sha256(repr(_content(function, {})).encode()).hexdigest()[:8]}"


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _content(value: Any, met: dict[int, tuple[int, Any]], deep: int = 0) -> object:
    """What distinguishes a value, with a repr that says so. met: what was looked into already, by its id."""
    if isinstance(value, _SIMPLE):
        return value
    if id(value) in met or deep == _DEEPEST:
        return "met", met.get(id(value), (-1,))[0]
    met[id(value)] = len(met), value  # held: ids are used again
    inside = functools.partial(_content, met=met, deep=deep + 1)
    kind = type(value).__qualname__
    if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
        return kind, value.__name__
    if isinstance(value, Tensor):
        return kind, str(value.dtype), tuple(value.shape), hashlib.sha256(_bytes(value)).hexdigest()
    if isinstance(value, (numpy.ndarray, numpy.generic)) and not value.dtype.hasobject:
        return kind, value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, nn.Module):
        return fingerprint(value)
    if isinstance(value, frozenset):
        return kind, sorted(repr(inside(item)) for item in value)
    if isinstance(value, types.CodeType):
        return value.co_code, value.co_names, [inside(constant) for constant in value.co_consts]
    if isinstance(value, (list, dict, set)):
        return kind
    return kind, [inside(part) for part in _inside(value)]


def _inside(value: Any) -> tuple[object, ...]:
    """What a callable computes with, or another object holds; attributes and keywords with their names."""
    if isinstance(value, types.FunctionType):
        return tuple(_parts(value))
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, functools.partial):
        return value.func, value.args, tuple(value.keywords.items())
    if isinstance(value, tuple):
        return value
    return tuple(getattr(value, "__dict__", {}).items())


def _parts(function: types.FunctionType) -> Iterator[object]:
    code = function.__code__
    assigned = {step.argval for step in instructions(code) if step.opname in ("STORE_DEREF", "STORE_GLOBAL")}
    yield code
    yield function.__defaults__
    yield tuple((function.__kwdefaults__ or {}).items())
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        if name not in assigned and _is_filled(cell):
            yield cell.cell_contents
    named = {step.argval for step in instructions(code) if step.opname == "LOAD_GLOBAL"} - assigned
    for name in sorted(named & function.__globals__.keys()):
        value = function.__globals__[name]
        if isinstance(value, _DATA) or getattr(value, "__module__", None) == function.__module__:
            yield value


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - raises where there is none yet
    except ValueError:
        return False
    return True
