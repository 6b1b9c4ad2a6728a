"""What of a model, besides the values of its weights, decides whether a copy of it still stands for it."""

import array
import collections
import contextlib
import copy
import copyreg
import ctypes
import datetime
import decimal
import enum
import functools
import io
import logging
import operator
import random
import struct
import types
import weakref
import zlib
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from types import CodeType, FunctionType, MemberDescriptorType, MethodType, MethodWrapperType
from typing import Any

import numpy
import torch
from torch import Tensor, fx, nn

from .buffers import can_be_written

# Where torch keeps what a module has registered, and the hooks that a forward or backward pass calls.
_TABLES = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_HOOKS = _TABLES[3:]
# The rest of its hooks are for files.
_OF_FILES = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)

_STRANGER = "it reaches a module that it has not registered there, which a copy would not follow"
_POINTER = struct.calcsize("P")

# Values that cannot change in place.
_FIXED = (
    *(bool, int, float, complex, str, bytes, type(None), range, slice, type, enum.Enum, PurePath),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, numpy.generic, numpy.dtype),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, decimal.Decimal),
    *(types.GenericAlias, types.UnionType, operator.itemgetter, operator.attrgetter, operator.methodcaller),
    *(torch._ops.OpOverload, torch._ops.OpOverloadPacket, torch.Tag),
)

# The bases of what ctypes makes have no public names.
_CTYPES = tuple(kind.__mro__[-2] for kind in (ctypes.c_int, ctypes.Structure))
# Plain memory, compared by its content.
_MEMORY = (numpy.ndarray, bytearray, array.array, io.BytesIO, io.StringIO, *_CTYPES)


# A copy draws other numbers than the model, and where these matter, does not confirm.
_GENERATORS = (
    *(numpy.random.Generator, numpy.random.RandomState, numpy.random.BitGenerator),
    *(torch.Generator, random.Random),
)

_PLAIN = (dict, collections.OrderedDict, list, tuple, set)

# Objects that count as a whole, whatever changes inside.
_WHOLE = (
    logging.Logger,  # which a copy shares
    *_GENERATORS,
    fx.Graph,  # of which a module's forward is made
)


class Structure:
    """A snapshot of all that a copy of a model depends on except the values of its tensors: modules, classes,
    hooks, attributes, dtypes and devices. A later snapshot tells whether the copy has to be made anew.

    It does not hold the model itself, which a cache must not keep alive; what the model holds, it does.

    loose: tensors that the model holds without having registered them, in lists and objects too. A copy has
        to follow their values, as it follows parameters and buffers.
    obstacle: why a copy would not follow the model, None if it would. It reaches a module in another way than
        by having registered it, such as a teacher in a list, or itself in a lambda: a copy would run that
        module instead of its own.
    generator: under which name it holds a random generator of its own; None if it holds none.
    """

    def __init__(self, model: nn.Module):
        self._tensors = [*model.parameters(), *model.buffers()]
        # Compared by identity: modules, tensors, arrays, and objects of which nothing else is known.
        self._modules = list(model.modules())[1:]
        self._kinds = [type(model), *map(type, self._modules)]
        self._objects: list[object] = [*self._modules, *self._kinds, *self._tensors]
        # Compared by what they compute: torch.fx makes them anew when a module's mode is set.
        self._forwards = _forwards_of(self._kinds)
        # Compared by value: the names of simple attributes with what they hold.
        self._facts: list[object] = []
        self.loose: list[Tensor] = []
        # Of these, changes in place are looked for, since nothing copies them.
        self._odd: list[Tensor] = []
        self._memory: list[Any] = []
        self.obstacle: str | None = None
        self.generator: str | None = None
        self._registered = set(map(id, model.modules()))
        self._seen: set[int] = set()
        containers: list[Any] = []
        for module in model.modules():
            for name, value in _kept_of_module(module).items():
                if name in _HOOKS:
                    for hook in value.values():
                        self._note(name, hook, containers)
                elif name == "_graph" and isinstance(module, fx.GraphModule):
                    pass  # a model may have several that say the same: the forward and its code tell
                elif name not in (*_TABLES, *_OF_FILES):
                    self._note(name, value, containers)
            held = vars(module)
            containers += [held, *(held[table] for table in _TABLES if table in held)]
        del self._seen, self._registered
        # Most tables, those of hooks, are empty: that they still are is told at once.
        self._empty = [c for c in containers if not c]
        self._containers = [c for c in containers if c]
        self._state = self._state_of_tensors()
        self._everything = self._everything_now(model)

    def _note(self, name: str, value: object, containers: list[Any]) -> None:
        """Takes down what a module holds under this name, and what is inside it, at any depth; adds the
        containers that it comes to."""
        if type(value) in weakref.ProxyTypes:  # asks, whatever it is asked, what may be no more
            self._objects.append(value)
            if _is_module(value):
                self.obstacle = _STRANGER
        elif isinstance(value, _FIXED) or _is_fixed_tuple(value):
            # Whether a module trains does not matter to a copy, which is in eval mode.
            self._facts.append(name if name == "training" else (name, value))
        elif isinstance(value, nn.Module):
            self._objects.append(value)
            if id(value) not in self._registered:
                self.obstacle = _STRANGER
        elif id(value) in self._seen:
            self._facts.append((name, "seen"))
        else:
            self._seen.add(id(value))
            self._look_into(name, value, containers)

    def _look_into(self, name: str, value: object, containers: list[Any]) -> None:
        if isinstance(value, Tensor):
            self._objects.append(value)
            (self.loose if can_be_written(value) else self._odd).append(value)
            return
        if isinstance(value, _MEMORY):
            self._objects.append(value)
            self._memory.append(value)
            return
        if isinstance(value, FunctionType):  # which a copy shares, with all that it refers to
            self._objects.append(value)
            if _refers_to_a_module(value):
                self.obstacle = _STRANGER
            return
        is_plain = type(value) in _PLAIN  # as most are
        inside = _parts(value, None if is_plain else _kept(value))
        if (
            inside is not None and not is_plain and _is_shared(value)
        ):  # such as a logging run, with all that it counts
            self._objects.append(value)
            if _refers_to_a_module(value):
                self.obstacle = _STRANGER
            return
        if inside is None:  # a copy has such an object of its own, and what changes inside is not followed
            self._objects.append(value)
            if isinstance(value, _GENERATORS):
                self.generator = name
            return
        self._facts.append((name, type(value), sum(map(len, inside))))
        containers += inside
        for container in inside:
            for item in _items(container):
                self._note(name, item, containers)

    def is_that_of(self, model: nn.Module) -> bool:
        """Whether the model is still built as it was when this was taken."""
        if self.is_untouched(model):
            return self._state == self._state_of_tensors()
        other = Structure(model)
        if (
            other.obstacle is not None
            or self._facts != other._facts
            or self._state != other._state
            or not _same(self._objects, other._objects)
            or len(self._forwards) != len(other._forwards)
            or not all(map(_compute_the_same, self._forwards, other._forwards))
        ):
            return False
        vars(self).update(vars(other))  # equal, and taken of the containers as they are now
        return True

    def is_untouched(self, model: nn.Module) -> bool:
        """Whether the model holds the very same objects. Between two steps of training it does: to ask costs
        a hundredth of a new snapshot."""
        return not any(self._empty) and _same(self._everything_now(model), self._everything)

    def difference(self, other: "Structure") -> str:
        """What differs, in words: the names of the attributes, where it is attributes that do."""
        these, those = ({repr(fact): fact for fact in facts} for facts in (self._facts, other._facts))
        odd = [(these | those)[shown] for shown in these.keys() ^ those.keys()]
        names = {str(fact[0]) for fact in odd if isinstance(fact, tuple)}
        return ", ".join(sorted(names)) or "what it holds"

    def _everything_now(self, model: nn.Module) -> list[object]:
        """All that the modules hold, their modes and classes too, and the items of their dicts and lists.
        Where a container was replaced, the one around it shows that."""
        kinds = [type(model), *map(type, self._modules)]
        found: list[object] = [*kinds, *_forwards_of(kinds)]
        for container in self._containers:
            found += _items(container)
        return found

    def _state_of_tensors(self) -> tuple[list[Any], list[Any], list[Any]]:
        kinds: list[Any] = [(t.dtype, t.device) for t in self._tensors]
        kinds += [(t.dtype, t.device, t.shape) for t in self.loose]
        versions = [None if t.is_inference() else t._version for t in self._odd]
        return kinds, versions, list(map(_checksum, self._memory))


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


class _Slots:
    """The values of an object's slots, as they are now."""

    def __init__(self, owner: object, names: list[str]):
        self._owner, self._names = owner, names

    def __iter__(self) -> Iterator[object]:
        return (getattr(self._owner, name) for name in self._names if hasattr(self._owner, name))

    def __len__(self) -> int:
        return len(self._names)


def _checksum(memory: Any) -> object:
    if isinstance(memory, (io.BytesIO, io.StringIO)):
        # Where it is read next is part of what a copy copies.
        return None if memory.closed else (hash(memory.getvalue()), memory.tell())
    return zlib.crc32(memory.tobytes() if isinstance(memory, numpy.ndarray) else memory)


def _items(container: Any) -> Iterable[object]:
    return container.values() if isinstance(container, dict) else container


def _is_fixed_tuple(value: object) -> bool:
    """Strides and sizes: nothing in it can change."""
    return isinstance(value, tuple) and all(isinstance(item, _FIXED) for item in value)


def _parts(value: object, held: Any = None) -> list[Any] | None:
    """The containers of what is inside a value, however a copy copies it; None where that cannot be seen.

    held: what to look into instead of its attributes."""
    if isinstance(value, MethodType):
        return [(value.__self__, value.__func__)]
    if isinstance(value, MethodWrapperType):
        return [(value.__self__,)]
    if isinstance(value, BaseException):  # where it was raised, a copy leaves out
        return [_Slots(value, ["args"]), vars(value)]
    if isinstance(value, functools.partial):
        return [(value.func, *value.args), value.keywords]
    is_container = isinstance(value, (dict, list, tuple, set, frozenset, collections.deque))
    slots = slots_of(type(value))
    is_opaque = not (is_container or _is_of_python(type(value), len(slots)))
    if isinstance(value, (*_WHOLE, *_MEMORY)) or is_opaque:
        return None
    found: list[Any] = [value] if is_container else []
    if hasattr(value, "__dict__"):
        found.append(vars(value) if held is None else held)
    return [*found, _Slots(value, slots)] if slots else found


def slots_of(kind: type) -> list[str]:
    """The names of the slots of a class's objects."""
    return [
        name
        for base in kind.__mro__
        if "__slots__" in vars(base)
        for name, member in vars(base).items()
        if isinstance(member, MemberDescriptorType)
    ]


def _is_of_python(kind: type, slots: int) -> bool:
    """Whether objects of this class hold nothing but their attributes and slots: one that is written in C, or
    made of one that is, is larger."""
    references = slots + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    return kind.__basicsize__ <= object.__basicsize__ + references * _POINTER


def _is_shared(value: object) -> bool:
    """Whether a copy of what holds this value holds the very same one, since its class says so."""
    with contextlib.suppress(Exception):  # nor can its holder be copied then, which is told there
        if hasattr(type(value), "__deepcopy__"):
            return copy.deepcopy(value) is value
        return _reduces_itself(type(value)) and isinstance(value.__reduce_ex__(4), str)
    return False


def _reduces_itself(kind: type) -> bool:
    own = kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__
    return own or kind in copyreg.dispatch_table


def _gives_state(kind: type) -> bool:
    """Whether a copy takes what the class's own ``__getstate__`` returns."""
    own = getattr(kind, "__getstate__", None) is not getattr(object, "__getstate__", None)
    return own and not hasattr(kind, "__deepcopy__")


def _kept_of_module(module: nn.Module) -> dict[str, Any]:
    """What a copy takes of a module's attributes: all, unless the module says otherwise, as a LightningModule
    does of its trainer."""
    held = vars(module)
    if not _gives_state(type(module)):
        return held
    state: Any = module.__getstate__()
    return {name: value for name, value in held.items() if state.get(name) is value}


class _State:
    """The values of what an object gives of its attributes to a copy, as they are now."""

    def __init__(self, owner: Any):
        self._owner = owner

    def __iter__(self) -> Iterator[object]:
        with contextlib.suppress(Exception):  # that it fails is a change, too
            return iter(self._owner.__getstate__().values())
        return iter(())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _kept(value: Any) -> _State | None:
    """What a copy takes of an object's attributes; None for all of them, and where it computes something
    from them."""
    if not _gives_state(type(value)) or _reduces_itself(type(value)) or not hasattr(value, "__dict__"):
        return None
    with contextlib.suppress(Exception):
        state, held = value.__getstate__(), vars(value)
        if isinstance(state, dict) and all(
            item is None or held.get(name) is item for name, item in state.items()
        ):
            return _State(value)
    return None


def _is_module(value: object) -> bool:
    with contextlib.suppress(ReferenceError):  # of a proxy whose object is gone
        return isinstance(value, nn.Module)
    return False


def _refers_to_a_module(shared: object) -> bool:
    """Whether a function reaches a module by what it has been given, or an object by what it holds, at any
    depth."""
    seen: set[int] = set()
    left: list[object] = [shared]
    while left:
        value = left.pop()
        if _is_module(value):
            return True
        if id(value) in seen or type(value) in weakref.ProxyTypes:
            continue
        if isinstance(value, (Tensor, numpy.ndarray, *_FIXED)):
            continue
        seen.add(id(value))
        inside = _given(value) if isinstance(value, FunctionType) else _parts(value) or []
        for container in inside:
            left += _items(container)
    return False


def _given(function: FunctionType) -> list[Any]:
    cells: list[object] = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # of a variable that is not bound yet
            cells.append(cell.cell_contents)
    return [cells, function.__defaults__ or (), function.__kwdefaults__ or {}, vars(function)]


def _forwards_of(kinds: list[type]) -> list[object]:
    """The forwards that each class has or inherits: both can be replaced, as a class can."""
    return [vars(base).get("forward") for kind in dict.fromkeys(kinds) for base in kind.__mro__]


def _compute_the_same(this: object, that: object) -> bool:
    """Whether two forwards are one, or of the same code with the same objects for its names."""
    if this is that:
        return True
    if not (isinstance(this, FunctionType) and isinstance(that, FunctionType)):
        return False
    return this.__code__ == that.__code__ and _same(_bound(this), _bound(that))


def _bound(function: FunctionType) -> list[object]:
    names = sorted(_names_in(function.__code__))
    found = [function.__globals__.get(name) for name in names]
    for container in _given(function):
        found += _items(container)
    return found


def _names_in(code: CodeType) -> set[str]:
    inner = (_names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def _same(these: list[object], those: list[object]) -> bool:
    return len(these) == len(those) and all(map(operator.is_, these, those))
