"""Methods that keep nothing alive."""

import weakref
from collections.abc import Callable
from typing import Any


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """A bound method without its hold on the object, for what that object holds in turn: in a cycle, copies
    and graphs of a dropped attack would stay on their device until Python looks for cycles."""
    reference = weakref.WeakMethod(method)

    def call(*arguments: Any) -> Any:
        bound = reference()
        assert bound is not None
        return bound(*arguments)

    return call
