"""What all faces share: how they make their attacks, and how these compute."""

import contextlib
import contextvars
import inspect
import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch

from ..attacks.attack import Attack
from ..attacks.inputs import check_choice, check_size, refuse
from ..engine import PRECISIONS

_OPTIONS = contextvars.ContextVar[dict[str, Any]]("options")

# A box for libraries that need none: every finite float32.
UNBOUNDED = (torch.finfo(torch.float32).min, torch.finfo(torch.float32).max)


@contextlib.contextmanager
def options(*, precision: str = "fp32", fold: bool = True) -> Iterator[None]:
    """How the faces compute inside ``with``, for which the originals have no argument.

    precision, fold: as in :class:`roli_fast.attacks.PGD`. Outside, they are "fp32", as the originals, and
        True.
    """
    check_choice("precision", precision, tuple(PRECISIONS))
    token = _OPTIONS.set({"precision": precision, "fold": fold})
    try:
        yield
    finally:
        _OPTIONS.reset(token)


def chosen() -> dict[str, Any]:
    """The options of this ``with``, as arguments of an attack."""
    return _OPTIONS.get({"precision": "fp32", "fold": True})


class Maker:
    """Makes the attack that a call asks for, and keeps it for the next that asks for the same.

    Objects of other libraries may be changed between calls, and some take a list of sizes: eps and step size
    are tensors whose values change, which keeps the copy of the model and its CUDA graphs. Where anything
    else is another, so is the attack.
    """

    def __init__(self) -> None:
        self._settings: dict[str, Any] | None = None

    def __call__(self, kind: Callable[..., Attack], **settings: Any) -> Attack:
        """kind(**settings); eps and step_size are numbers or tensors (N,)."""
        sizes = {name: settings.pop(name) for name in ("eps", "step_size") if name in settings}
        for name, size in sizes.items():
            check_size(name, size)
        values = {name: torch.as_tensor(size, dtype=torch.float64) for name, size in sizes.items()}
        settings.update(chosen())
        wanted = {"kind": kind, **settings, "shapes": [v.shape for v in values.values()]}
        if wanted != self._settings:
            self._sizes = {name: value.clone() for name, value in values.items()}
            self._attack = kind(**self._sizes, **settings)
            self._settings = wanted
        for name, value in values.items():
            self._sizes[name].copy_(value)
        return self._attack


def read(
    original: Any,
    face: str,
    covered: Sequence[str],
    *,
    settings: Any = None,
    elsewhere: Mapping[str, Callable[[Any], Any]] = {},
) -> Any:
    """The class of the same name in the module ``face``, with the settings of an instance of the original.

    settings: whose attributes they are; default the original's own.
    elsewhere: where those are that have no attribute of their name, by the argument's name.

    Raises ValueError for a class that is not covered, and for an instance whose methods were replaced.
    """
    kind = type(original)
    if kind.__name__ not in covered:
        refuse("attack", f"{kind.__module__}.{kind.__name__}", ", ".join(covered))
    for name in vars(original):
        if callable(getattr(kind, name, None)):
            refuse("attack", f"{kind.__name__} with a {name} of its own", "one whose methods are its class's")
    settings = original if settings is None else settings
    twin = getattr(sys.modules[face], kind.__name__)
    arguments = inspect.signature(twin).parameters
    return twin(**{name: elsewhere.get(name, operator.attrgetter(name))(settings) for name in arguments})


def no_such(library: str, name: str, covered: Sequence[str]) -> NoReturn:
    """For the ``__getattr__`` of a face."""
    raise AttributeError(
        f"roli_fast.compat.{library}: got {name!r}, accepted: {', '.join(covered)}; the rest is in {library}"
    )
