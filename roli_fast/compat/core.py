"""What all faces share: how they make their attacks, and how these compute."""

import contextlib
import contextvars
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..attacks.attack import Attack, undirected_note
from ..attacks.inputs import check_choice, check_size, refuse
from ..attacks.trial import AttackResult
from ..engine import PRECISIONS
from ..engine.modes import Model

_OPTIONS = contextvars.ContextVar[dict[str, Any]]("options")

_PACKAGE = f"{__name__.partition('.')[0]}."

# A box for libraries that need none: every finite float32.
UNBOUNDED = (torch.finfo(torch.float32).min, torch.finfo(torch.float32).max)


@contextlib.contextmanager
def options(*, precision: str | None = None, fold: bool | None = None) -> Iterator[None]:
    """How the faces compute inside ``with``, for which the originals have no argument.

    precision, fold: as in :class:`roli_fast.attacks.PGD`; default as outside of this ``with``, which without
        another around it is "fp32", as the originals, and True.
    """
    given = {"precision": precision, "fold": fold}
    if precision is not None:
        check_choice("precision", precision, tuple(PRECISIONS))
    token = _OPTIONS.set({**chosen(), **{name: value for name, value in given.items() if value is not None}})
    try:
        yield
    finally:
        _OPTIONS.reset(token)


def chosen() -> dict[str, Any]:
    """The options of this ``with``, as arguments of an attack."""
    return _OPTIONS.get({"precision": "fp32", "fold": True})


class _Copies(threading.local):
    """What the attacks of all faces share in a thread: one copy of a model, however many attacks see it,
    since many a loop makes its attack anew for each batch. A copy lives as long as its model."""

    def __init__(self) -> None:
        self.holders: dict[tuple[Any, ...], Attack] = {}

    def share(self, attack: Attack) -> None:
        options = chosen()
        key = tuple(options.values())
        if key not in self.holders:
            self.holders[key] = Attack("linf", 0.0, **options)
        attack.share_views(self.holders[key])


share_copies = _Copies().share


class Maker(threading.local):
    """Makes the attack that a call asks for, and keeps it for the next that asks for the same. Each thread
    has its own: the originals may be called from several at once.

    Objects of other libraries may be changed between calls, and some take a list of sizes: eps and step size
    are tensors whose values change, which keeps the copy of the model and its CUDA graphs. Where anything
    else is another, so is the attack.
    """

    def __init__(self) -> None:
        self._settings: dict[str, Any] | None = None

    def __reduce__(self) -> tuple[type["Maker"], tuple[()]]:
        """A copy, or one that was pickled, begins anew."""
        return (Maker, ())

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
            share_copies(self._attack)
            self._settings = wanted
        for name, value in values.items():
            self._sizes[name].copy_(value)
        return self._attack


def run(
    attack: Attack, model: Model, images: Tensor, labels: Tensor | None, key: Tensor | None = None
) -> AttackResult:
    """As ``attack.run``, where a batch without any gradient is no error but a warning: it may be the one
    image that a user's loop has left, and the originals return it as it was."""
    result = attack.run(model, images, labels, key=key, strict=False)
    for note in undirected_note(result.undirected, len(images)):
        warn(note)
    return result


def warn(text: str) -> None:
    """At the line of the user's that called a face: once for each, as Python has it."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, RuntimeWarning, stacklevel=level)


# How far from the box an image may be by rounding, as by normalising it and back in float32.
_ROUNDING = 1e-6


def inside(images: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The images, with what is outside of the box by rounding alone brought in; the rest is for the attack to
    refuse."""
    if not images.is_floating_point():
        return images
    clipped = images.clamp(*bounds)
    return torch.where((images - clipped).abs() <= _ROUNDING, clipped, images)


class Closed:
    """Refuses methods of a user's own where the original would call them, and nothing here does.

    Raises ValueError for a subclass that has one, and for an instance that is given one.
    """

    _never_called: Sequence[str] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for base in cls.__mro__:
            for name in vars(base).get("_never_called", ()):
                if getattr(cls, name, None) is not getattr(base, name, None):
                    _refuse_method(cls, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._never_called:
            _refuse_method(type(self), name)
        super().__setattr__(name, value)


def _refuse_method(kind: type, name: str) -> NoReturn:
    refuse(name, f"one of {kind.__name__}'s own", "none: nothing here would call it")


def check_methods(original: Any, argument: str = "attack") -> None:
    """Raises ValueError for an instance whose methods were replaced."""
    kind = type(original)
    for name in vars(original):
        if callable(getattr(kind, name, None)):
            refuse(argument, f"{kind.__name__} with a {name} of its own", "one whose methods are its class's")


def read(
    original: Any, face: str, covered: Sequence[str], *constructor: Any, settings: Any = None, **options: Any
) -> Any:
    """The class of the same name in the module ``face``, with the settings of an instance of the original as
    they are now: what both have as a public attribute.

    constructor, options: what the class is made with.
    settings: whose attributes the settings are; default the original's own.

    Raises ValueError for a class that is not covered, for an instance whose methods were replaced, and for a
    setting that the face lacks though the class of the original has it.
    """
    kind = type(original)
    settings = original if settings is None else settings
    if kind.__name__ not in covered:
        refuse("attack", f"{kind.__module__}.{kind.__name__}", ", ".join(covered))
    check_methods(original)
    check_methods(settings)
    twin = getattr(sys.modules[face], kind.__name__)(*constructor, **options)
    for name in vars(settings):
        if name[0] != "_" and name not in vars(twin) and hasattr(type(settings), name):
            refuse(f"attack.{name}", "one of its own", f"{kind.__name__}'s, which has no such setting here")
    for name in vars(twin):
        if name[0] != "_" and hasattr(settings, name):
            vars(twin)[name] = getattr(settings, name)
    return twin


def no_such(library: str, name: str, covered: Sequence[str]) -> NoReturn:
    """For the ``__getattr__`` of a face."""
    raise AttributeError(
        f"roli_fast.compat.{library}: got {name!r}, accepted: {', '.join(covered)}; the rest is in {library}"
    )
