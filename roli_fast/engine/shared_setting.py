"""Settings of torch's that all threads of a process share."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

Value = TypeVar("Value")


class SharedSetting(Generic[Value]):
    """The first thread that comes changes the setting, and the last that goes restores it; who needs another
    value waits until then.

    change: sets a value, and what was before afterwards.
    """

    def __init__(self, change: Callable[[Value], AbstractContextManager[None]]):
        self._change = change
        self._changed = threading.Condition()
        self._threads = 0  # inside, all for the same value
        self._now: Value | None = None
        self._restore = contextlib.ExitStack()
        self._this_thread = threading.local()

    @contextlib.contextmanager
    def set_to(self, value: Value) -> Iterator[None]:
        if getattr(self._this_thread, "inside", False):  # as a model may be that attacks another one
            with self._change(value):
                yield
            return
        with self._changed:
            self._changed.wait_for(lambda: self._threads == 0 or self._now == value)
            if self._threads == 0:
                self._restore.enter_context(self._change(value))
            self._threads, self._now = self._threads + 1, value
        self._this_thread.inside = True
        try:
            yield
        finally:
            self._this_thread.inside = False
            with self._changed:
                self._threads -= 1
                if self._threads == 0:
                    self._restore.close()
                    self._changed.notify_all()
