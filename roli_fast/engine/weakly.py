"""What keeps nothing alive."""

import types
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import nn

from .modes import Model

Value = TypeVar("Value")

_KEPT = 16  # models


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A bound method without its hold on the object, for what that object holds in turn: in a cycle, copies
    and graphs of a dropped attack would stay on their device until Python looks for cycles."""
    reference = weakref.WeakMethod(method)

    def call(*arguments: Any) -> Any:
        bound = reference()
        assert bound is not None
        return bound(*arguments)

    return call


class Recent(Generic[Value]):
    """Something for each model, as long as that lives and is among the few that were used last. Where a model
    holds itself (a hook that is its own method), what is kept of it may hold it, too: it then lives until
    others come."""

    def __init__(self) -> None:
        self._values: weakref.WeakKeyDictionary[Model, Value] = weakref.WeakKeyDictionary()

    def last(self, model: Model) -> Value | None:
        """What was kept; now the latest."""
        value = self._values.pop(model, None) if _is_one(model) else None
        if value is not None:
            self._values[model] = value
        return value

    def keep(self, model: Model, value: Value) -> bool:
        """Whether it is kept: a method, or another object that is called, may be another in the next call."""
        if not _is_one(model):
            return False
        while len(self._values) >= _KEPT:
            self._values.pop(next(iter(self._values)), None)
        self._values[model] = value
        return True

    def __len__(self) -> int:
        return len(self._values)


def _is_one(model: Model) -> bool:
    """Whether it is the same object in the next call."""
    return isinstance(model, (nn.Module, types.FunctionType))
