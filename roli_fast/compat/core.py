"""What all faces share: how they make their attacks, and how these compute."""

import contextlib
import contextvars
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..attacks.attack import Attack, ViewCache, undirected_notes
from ..attacks.inputs import OutsideError, check_range, check_size, to_state
from ..attacks.trial import AttackResult
from ..checks import check_choice, refuse
from ..engine import PRECISIONS
from ..engine.modes import Model
from ..models.normalized import Normalized
from ..ops.checks import state_dtype

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
    wanted = {"precision": precision, "fold": fold}
    if precision is not None:
        check_choice("precision", precision, tuple(PRECISIONS))
    given = {name: value for name, value in wanted.items() if value is not None}
    token = _OPTIONS.set({**_OPTIONS.get({}), **given})
    try:
        yield
    finally:
        _OPTIONS.reset(token)


def chosen() -> dict[str, Any]:
    """The options of this ``with``, as arguments of an attack."""
    return {"precision": "fp32", "fold": True, **_OPTIONS.get({})}


class _Copies(threading.local):
    """What the attacks of all faces share in a thread: one copy of a model, however many attacks see it,
    since many a loop makes its attack anew for each batch. A copy lives as long as its model."""

    def __init__(self) -> None:
        self._by_options: dict[tuple[Any, ...], ViewCache] = {}

    def share(self, attack: Attack) -> None:
        attack.share_views(self._by_options.setdefault(tuple(chosen().values()), ViewCache()))


share_copies = _Copies().share


class _Wrappers:
    """One :class:`Normalized` for all who normalise a model alike, so that they share its copy. It holds the
    model: it lives as long as one of them does, and the last as long as no other is asked for, since many a
    loop makes its attack anew for each batch."""

    def __init__(self) -> None:
        self._living: weakref.WeakValueDictionary[tuple[Any, ...], Normalized] = weakref.WeakValueDictionary()
        self._last: Normalized | None = None

    def normalized(
        self, model: nn.Module, mean: Sequence[float], std: Sequence[float], device: torch.device | None
    ) -> Normalized:
        """``Normalized(model, mean, std)`` on the device; None where nobody knows of one."""
        if device is not None and device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())  # which is the same
        key = id(model), tuple(mean), tuple(std), device
        wrapper = self._living.get(key)
        if wrapper is None:
            wrapper = self._living[key] = Normalized(model, mean, std).to(device)
        self._last = wrapper
        return wrapper


normalized = _Wrappers().normalized


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


def attacked(
    attack: Attack, model: Model, images: Tensor, labels: Tensor | None, way_out: str | None = None
) -> Tensor:
    """As a call of the attack. way_out: as in :func:`check_images`, for images that it refuses."""
    with _with_way_out(way_out):
        found = attack(model, images, labels)
    warn_of_surroundings(model, images.device)
    return found


def run(
    attack: Attack,
    model: Model,
    images: Tensor,
    labels: Tensor | None,
    way_out: str,
    key: Tensor | None = None,
) -> AttackResult:
    """As ``attack.run``, where a batch without any gradient is no error but a warning: it may be the one
    image that a user's loop has left, and the originals return it as it was. way_out: as in
    :func:`attacked`."""
    with _with_way_out(way_out):
        result = attack.run(model, images, labels, key=key, strict=False)
    warn_of_surroundings(model, images.device)
    for note in undirected_notes(result.undirected_by_stage):
        warn(note)
    return result


def warn_of_surroundings(model: Model, device: torch.device) -> None:
    """Where the caller has asked torch for something that the originals get, and an attack here does not."""
    # Of these two alone an attack switches it off.
    autocast = device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type)
    if autocast and "precision" not in _OPTIONS.get({}):
        warn(
            "the attack computes in float32, whatever torch.autocast says: inside of "
            'roli_fast.compat.options(precision="bf16") it is faster, and precision="fp32" ends this warning'
        )
    if isinstance(model, nn.Module) and model not in _SEEN:
        _SEEN.add(model)
        if any(isinstance(m, nn.DataParallel) and len(m.device_ids) > 1 for m in model.modules()):
            warn(
                "the attack computes on one GPU, without torch.nn.DataParallel: torchrun, with a process for "
                "each GPU, uses them all"
            )


# Models that were looked through.
_SEEN: weakref.WeakSet[nn.Module] = weakref.WeakSet()


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


def check_images(images: Tensor, bounds: tuple[float, float], way_out: str) -> None:
    """Raises OutsideError for images outside of the box; what else is wrong is for the attack to say.
    way_out: what the library itself has for images that are normalised."""
    if not images.is_floating_point() or images.numel() == 0:
        return
    smallest, largest = torch.stack(images.aminmax()).tolist()
    with _with_way_out(way_out):
        check_range((smallest, largest), bounds, state_dtype(images))


@contextlib.contextmanager
def _with_way_out(way_out: str | None) -> Iterator[None]:
    """Where images are refused inside ``with``, for lying outside of the box."""
    try:
        yield
    except OutsideError as error:
        if way_out is None:
            raise
        raise OutsideError(error.found, error.bounds, way_out) from None


def as_pixels(images: Tensor) -> Tensor:
    """Images of integers from 0 to 255 in [0, 1]."""
    return to_state(images) if images.dtype == torch.uint8 else images


def as_classes(labels: Tensor) -> Tensor:
    """Labels in int64, where the originals take them in another type, too."""
    is_short = isinstance(labels, Tensor) and labels.dtype in (torch.uint8, torch.int32)
    return labels.long() if is_short else labels


class Closed:
    """Refuses methods of a user's own where the original would call them, and nothing here does.

    Raises ValueError for a subclass that has one, and for an instance that is given one.

    _never_called: their names.
    _caller: what calls them in the original. Where that is a user's own, they may be, too.
    """

    _never_called: Sequence[str] = ()
    _caller = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls._has_own_caller():
            cls._refuse(cls._own_methods())

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._never_called and not self._has_own_caller():
            self._refuse([name])
        super().__setattr__(name, value)

    def _check_methods(self) -> None:
        """Raises ValueError where a user's own caller has left the work to ours, and its methods with it."""
        if self._has_own_caller():
            self._refuse([*self._own_methods(), *(name for name in self._never_called if name in vars(self))])

    @classmethod
    def _has_own_caller(cls) -> bool:
        caller = getattr(cls, cls._caller, None)
        return caller is not None and not str(caller.__module__).startswith(_PACKAGE)

    @classmethod
    def _own_methods(cls) -> list[str]:
        return [
            name
            for base in cls.__mro__
            for name in vars(base).get("_never_called", ())
            if getattr(cls, name, None) is not getattr(base, name, None)
        ]

    @classmethod
    def _refuse(cls, names: Sequence[str]) -> None:
        for name in names:
            way_out = f" but a {cls._caller} of your own. Put it into a module around the model"
            accepted = f"none: nothing here would call it{way_out if cls._caller else ''}"
            refuse(name, f"one of {cls.__name__}'s own", accepted)


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
