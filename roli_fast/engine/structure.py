"""What of a model, besides the values of its weights, decides whether a copy of it still stands for it."""

import operator
import zlib
from collections.abc import Iterator
from types import MethodType
from typing import Any

import numpy
from torch import Tensor, nn

# Where torch keeps what a module has registered, and its hooks.
_TABLES = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)

# Values that cannot change in place, and containers of such.
_FIXED = (bool, int, float, str, bytes, type(None))
_SIMPLE = (*_FIXED, dict, list, tuple, set)


class Structure:
    """A snapshot of all that a copy of a model depends on except the values of its weights: modules, hooks,
    attributes, dtypes and devices. A later snapshot tells whether the copy has to be made anew.

    It does not hold the model itself, which a cache must not keep alive; what the model holds, it does.

    holds_a_stranger: whether the model reaches a module that it has not registered, such as a teacher in a
        list or another module's forward: a copy would copy that along once, and then no longer follow it.
    """

    def __init__(self, model: nn.Module):
        self._tensors = [*model.parameters(), *model.buffers()]
        # Compared by identity: modules, tensors, arrays, and objects of which nothing else is known.
        self._objects: list[object] = [*list(model.modules())[1:], *self._tensors]
        # Compared by value: the names of simple attributes with what they hold.
        self._facts: list[object] = []
        # Of these, changes in place are looked for, since nothing copies them: tensors that are neither
        # parameter nor buffer, and arrays.
        self._attributes: list[Tensor] = []
        self._arrays: list[numpy.ndarray] = []
        containers: list[Any] = []
        registered = set(map(id, model.modules()))
        self.holds_a_stranger = False
        for module in model.modules():
            for name, value in _held(module, containers):
                owner = getattr(value, "__self__", None) if isinstance(value, MethodType) else value
                self.holds_a_stranger |= isinstance(owner, nn.Module) and id(owner) not in registered
                self._note(name, value)
        for module in model.modules():
            held = vars(module)
            containers += [held, *(held[table] for table in _TABLES if table in held)]
        # Most tables, those of hooks, are empty: that they still are is told at once.
        self._empty = [c for c in containers if not c]
        self._containers = [c for c in containers if c]
        self._state = self._state_of_tensors()
        self._everything = self._everything_now()

    def _note(self, name: str, value: object) -> None:
        """Takes down what a module holds under this name, by identity or by value."""
        if isinstance(value, Tensor):
            self._objects.append(value)
            self._attributes.append(value)
        elif isinstance(value, numpy.ndarray):
            self._objects.append(value)
            self._arrays.append(value)
        elif isinstance(value, tuple) and not all(isinstance(item, _FIXED) for item in value):
            self._facts.append((name, len(value)))  # its items come separately
        elif isinstance(value, (bool, int, float, str, tuple)):
            # Whether a module trains does not matter to a copy, which is in eval mode.
            self._facts.append(name if name == "training" else (name, value))
        elif not _is_data(value):
            self._objects.append(value)

    def is_that_of(self, model: nn.Module) -> bool:
        """Whether the model is still built as it was when this was taken."""
        # Between two steps of training nothing has changed: this costs a tenth of a new snapshot.
        if not any(self._empty) and _same(self._everything_now(), self._everything):
            return self._state == self._state_of_tensors()
        other = Structure(model)
        if (
            other.holds_a_stranger
            or self._facts != other._facts
            or self._state != other._state
            or not _same(self._objects, other._objects)
        ):
            return False
        vars(self).update(vars(other))  # equal, and taken of the containers as they are now
        return True

    def difference(self, other: "Structure") -> str:
        """What differs, in words: the names of the attributes, where it is attributes that do."""
        these, those = ({repr(fact): fact for fact in facts} for facts in (self._facts, other._facts))
        odd = [(these | those)[shown] for shown in these.keys() ^ those.keys()]
        names = {str(fact[0]) for fact in odd if isinstance(fact, tuple)}
        return ", ".join(sorted(names)) or "what it holds"

    def _everything_now(self) -> list[object]:
        """All that the modules hold, their modes too, and the items of their dicts and lists. Where a
        container was replaced, the one around it shows that."""
        found: list[object] = []
        for container in self._containers:
            found += container.values() if isinstance(container, dict) else container
        return found

    def _state_of_tensors(self) -> tuple[list[Any], list[Any], list[Any]]:
        kinds = [(t.dtype, t.device) for t in self._tensors]
        versions = [None if t.is_inference() else t._version for t in self._attributes]
        return kinds, versions, [zlib.crc32(array.tobytes()) for array in self._arrays]


def _held(module: nn.Module, containers: list[Any]) -> Iterator[tuple[str, object]]:
    """What a module holds, by name, and the items inside, at any depth; adds their containers to the list."""
    seen: set[int] = set()
    for name, value in vars(module).items():
        if name.endswith("_hooks") and isinstance(value, dict):
            yield from ((name, hook) for hook in value.values())
            continue
        yield name, value
        if name not in _TABLES:
            yield from _inside(name, value, containers, seen)


def _inside(name: str, value: object, containers: list[Any], seen: set[int]) -> Iterator[tuple[str, object]]:
    if isinstance(value, (*_FIXED, nn.Module, Tensor)):
        return
    container: Any = vars(value) if _is_data(value) else value
    if not isinstance(container, (dict, list, tuple, set)) or id(container) in seen:
        return
    if isinstance(container, tuple) and all(isinstance(item, _FIXED) for item in container):
        return  # strides and sizes: nothing in it can change
    seen.add(id(container))
    containers.append(container)
    for item in container.values() if isinstance(container, dict) else container:
        yield name, item
        yield from _inside(name, item, containers, seen)


def _is_data(value: object) -> bool:
    """Whether an object only holds values, as configurations do: it is then compared by these."""
    if isinstance(value, (nn.Module, Tensor, type)) or callable(value):
        return False
    held = getattr(value, "__dict__", {})
    return len(held) > 0 and all(isinstance(v, _SIMPLE) for v in held.values())


def _same(these: list[object], those: list[object]) -> bool:
    return len(these) == len(those) and all(map(operator.is_, these, those))
