"""What of a model, besides the values of its tensors, decides whether a copy of it still stands for it."""

import collections
import contextlib
import copy
import copyreg
import enum
import functools
import gc
import io
import itertools
import logging
import operator
import pickle
import random
import types
import weakref
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch import Tensor, fx, nn

from ..checks import brief
from .buffers import can_be_written
from .bytecode import instructions

# Hooks, by numbers that count up.
_OF_TORCH = vars(nn.Module())
_HOOKS = {name for name, held in _OF_TORCH.items() if isinstance(held, collections.OrderedDict)}

# Whether a module trains does not matter to a copy, which is in eval mode, nor do its hooks for files.
_OF_NO_MATTER = {"training", *(name for name in _HOOKS if "state_dict" in name)}

_STRANGER = "it reaches a module that it has not registered there, which a copy would not follow"

# A copy draws other numbers than the model, and where these matter, does not confirm.
_GENERATORS = (
    *(numpy.random.Generator, numpy.random.RandomState, numpy.random.BitGenerator),
    *(torch.Generator, random.Random),
)

# What is not looked into: what a copy shares, and generators.
_WHOLE = (
    *(type, types.FunctionType, types.BuiltinFunctionType, types.CodeType, types.ModuleType, weakref.ref),
    *(enum.Enum, torch.dtype, torch.layout, torch.memory_format, *_GENERATORS),
)

# Values that refer to nothing.
_PLAIN = {str, int, float, complex, bool, bytes, type(None)}

# Of which the garbage collector sees all that a copy copies. So it does of objects of most classes.
_TRANSPARENT = {
    *(dict, collections.OrderedDict, collections.defaultdict, list, set, frozenset, collections.deque),
    *(torch.Size, functools.partial, types.MethodType, types.SimpleNamespace),
}

# By default a method is pickled by its name.
_REDUCED: Any = collections.ChainMap(
    {types.MethodType: lambda method: (types.MethodType, (method.__func__, method.__self__))},
    copyreg.dispatch_table,
)

# Beyond which a function reaches no module of its own.
_DEAD_ENDS = (type, types.ModuleType, types.CodeType, logging.Logger, Tensor, numpy.ndarray)


class Structure:
    """A snapshot of all that a copy of a model depends on except the values of its tensors: modules, classes,
    hooks, attributes, dtypes and devices. A later snapshot tells whether the copy has to be made anew.

    It knows tensors, modules and functions by their identity, and all else that copy.deepcopy would copy by
    what pickle would write, since both ask objects in the same way. What cannot be pickled is not copied.

    It does not hold the model itself, which a cache must not keep alive; what the model holds, it does.

    loose: tensors that the model holds without having registered them, in lists and objects too. A copy has
        to follow their values, as it follows parameters and buffers.
    obstacle: why a copy would not follow the model, None if it would. It holds what cannot be pickled, or
        reaches a module in another way than by having registered it, such as a teacher in a list, or itself
        in a lambda: a copy would run that module instead of its own.
    generator: under which name it holds a random generator of its own; None if it holds none.
    """

    def __init__(self, model: nn.Module):
        modules, registered = list(model.modules()), [*model.parameters(), *model.buffers()]
        look = _Look({*map(id, modules), *map(id, registered)})
        self._facts: dict[str, object] = {}  # by the names of attributes
        self.generator: str | None = None
        try:
            for place, module in model.named_modules():
                prefix = f"{place}." if place else ""
                self._facts[f"{prefix}__class__"] = look.at_class(type(module))
                for name, value in _kept(module).items():
                    self._facts[prefix + name] = look.at_hooks(value) if name in _HOOKS else look.at(value)
                    if look.has_met_a_generator and self.generator is None:
                        self.generator = name
        except torch.OutOfMemoryError:  # says nothing about the model
            raise
        except Exception as error:  # whatever an object does when it is copied
            look.obstacle = f"the model cannot be copied ({brief(error)})"
        self.obstacle, self.loose, self._unwritable = look.obstacle, look.loose, look.unwritable
        self._tensors = [*registered, *look.loose]
        self._whole = look.whole  # held, since ids are used again
        self._kinds = dict.fromkeys(map(type, modules))
        self._holders = [*modules[1:], *map(vars, modules), *look.holders.values()]
        self._dicts = [held for held in look.holders.values() if isinstance(held, dict) and held]
        self._opaque = look.opaque
        self._everything, self._state = self._everything_now(model), self._state_now()

    def is_that_of(self, model: nn.Module) -> bool:
        """Whether the model is still built as it was when this was taken."""
        if self.is_untouched(model):
            return True
        other = Structure(model)
        if other.obstacle is not None or self._facts != other._facts or self._state != other._state:
            return False
        vars(self).update(vars(other))  # equal, and taken of the containers as they are now
        return True

    def is_untouched(self, model: nn.Module) -> bool:
        """Whether the model holds the very same objects. Between two steps of training it does: to ask costs
        a hundredth of a new snapshot."""
        now = self._everything_now(model)
        same = len(now) == len(self._everything) and all(map(operator.is_, now, self._everything))
        return same and self._state == self._state_now()

    def difference(self, other: "Structure") -> str:
        """What differs, in words: the name of the first attribute that does."""
        names = {**other._facts, **self._facts}
        return next((n for n in names if self._facts.get(n) != other._facts.get(n)), "what it holds")

    def _everything_now(self, model: nn.Module) -> list[object]:
        """All that the model and what it holds refer to, by slots too, their classes, and modules' forwards.
        Where a container was replaced, the one around it shows that."""
        found = gc.get_referents(model, *self._holders)
        found += itertools.chain.from_iterable(self._dicts)  # their keys, in order
        for kind in self._kinds:
            found += _forwards(kind)
        return found

    def _state_now(self) -> object:
        """What changes inside objects that stay the same: tensors, but for their values, and opaque ones."""
        opaque = None
        with contextlib.suppress(Exception):
            opaque = _Look(set()).at(self._opaque) if self._opaque else None
        versions = [None if t.is_inference() else t._version for t in self._unwritable]
        return [(t.dtype, t.device, t.shape) for t in self._tensors], versions, opaque


class StructureWatch:
    """Called, returns a number that is another one than before if the module's structure is."""

    def __init__(self, module: nn.Module):
        self._module, self._number = module, 0
        self._last: Structure | None = None  # before it is asked, it costs nothing

    def __call__(self) -> int:
        if self._last is None or not self._last.is_that_of(self._module):
            self._last = Structure(self._module)
            self._number += 1
        return self._number


class _Look(pickle.Pickler):
    """Looks into values as copy.deepcopy does.

    known: ids of modules, which are looked at one by one, and of tensors.
    whole: what was not looked into, and is known by its identity.
    holders: what was; by id.
    opaque: of these, those that can change without referring to something else.
    """

    def __init__(self, known: set[int]):
        self._written = io.BytesIO()
        super().__init__(self._written, protocol=5)
        self.dispatch_table = _REDUCED
        self._known = known
        self.whole: list[object] = []
        self.holders: dict[int, object] = {}
        self.opaque: list[object] = []
        self.loose: list[Tensor] = []
        self.unwritable: list[Tensor] = []
        self.obstacle: str | None = None
        self.has_met_a_generator = False

    def at(self, value: object) -> object:
        """What is another for another value."""
        if type(value) in _PLAIN:
            return repr(value)
        self._written.seek(0)
        self._written.truncate()
        self.dump(value)
        return hash(self._written.getvalue())

    def at_hooks(self, hooks: dict[int, Any]) -> object:
        self.holders[id(hooks)] = hooks
        return self.at(tuple(hooks.values())) if hooks else None

    def at_class(self, kind: type) -> object:
        """Of a module's class, with the forwards that it has and inherits. Those of a torch.fx graph are made
        anew when its mode is set, and compute the same if their code and what it names do."""
        forward, *inherited = _forwards(kind)
        code, parts = None, [kind, forward, *inherited]
        if issubclass(kind, fx.GraphModule) and isinstance(forward, types.FunctionType):
            code, parts = forward.__code__, [kind, *inherited, *forward.__globals__.values()]
        self.whole += parts
        return code, [*map(id, parts)]

    def persistent_id(self, value: Any) -> int | None:
        """Called for all that is pickled; what it returns is written instead, unless it is None."""
        kind = type(value)
        if kind in _PLAIN or kind is tuple:
            return None
        if kind in _TRANSPARENT:
            self.holders[id(value)] = value
            return None
        if isinstance(value, nn.Module):
            if id(value) not in self._known:
                self.obstacle = _STRANGER
        elif isinstance(value, Tensor):
            if id(value) not in self._known:
                self._known.add(id(value))
                (self.loose if can_be_written(value) else self.unwritable).append(value)
        elif isinstance(value, fx.Graph):
            return 0  # of which a module's forward is made, which tells
        elif isinstance(value, _WHOLE) or _is_shared(value):
            self.has_met_a_generator |= isinstance(value, _GENERATORS)
            if _reaches_a_module(value):
                self.obstacle = _STRANGER
        else:
            self.holders[id(value)] = value
            if hasattr(value, "__dict__"):  # which may be empty: then pickle does not write it
                self.holders[id(vars(value))] = vars(value)
            if not _is_transparent(kind):
                self.opaque.append(value)
            return None
        self.whole.append(value)
        return id(value)


def _kept(module: nn.Module) -> dict[str, Any]:
    """What a copy takes of a module's attributes, and that matters: all, unless the module says otherwise, as
    a LightningModule does of its trainer."""
    held = vars(module)
    # Python 3.10 has none of its own, as some versions of torch have none.
    gives = hasattr(module, "__getstate__") and not hasattr(type(module), "__deepcopy__")
    given: Any = module.__getstate__() if gives else held
    state = given if isinstance(given, dict) else held  # with slots it is a pair
    kept = {n: v for n, v in held.items() if n in _OF_TORCH or state.get(n) is v}
    return {n: value for n, value in kept.items() if n not in _OF_NO_MATTER}


def _is_transparent(kind: type) -> bool:
    """Whether objects of a class are copied as object does it: all that they refer to, and nothing else."""
    as_object = all(
        getattr(kind, name, None) is getattr(object, name, None)
        for name in ("__reduce_ex__", "__reduce__", "__getstate__")
    )
    return as_object and kind not in copyreg.dispatch_table and kind not in weakref.ProxyTypes


def _is_shared(value: object) -> bool:
    """Whether a copy of what holds this value holds the very same one, as of a logging run."""
    return hasattr(type(value), "__deepcopy__") and copy.deepcopy(value) is value


def _reaches_a_module(shared: object) -> bool:
    """Whether a function reaches a module by what it has been given or by a variable, or an object by what it
    refers to."""
    seen: set[int] = set()
    left: list[Any] = [shared]
    while left:
        value = left.pop()
        if isinstance(value, nn.Module):
            return True
        if id(value) in seen or isinstance(value, _DEAD_ENDS):
            continue
        seen.add(id(value))
        if isinstance(value, types.FunctionType):
            left += [value.__closure__, value.__defaults__, value.__kwdefaults__, value.__dict__]
            left += _named_in(value.__code__, value.__globals__)
        elif isinstance(value, weakref.ref):
            left.append(value())
        else:
            left += gc.get_referents(value)
    return False


def _named_in(code: types.CodeType, variables: dict[str, Any]) -> Iterator[object]:
    """The variables of a file that code in it names, but for functions of other files that hold nothing:
    these would lead through whole libraries."""
    for name in {step.argval for step in instructions(code) if step.opname == "LOAD_GLOBAL"}:
        value = variables.get(name)
        if not isinstance(value, types.FunctionType) or value.__closure__ or value.__globals__ is variables:
            yield value


def _forwards(kind: type) -> list[object]:
    """The forwards that a class has and inherits: both can be replaced, as a class can."""
    return [vars(base).get("forward") for base in kind.__mro__]
