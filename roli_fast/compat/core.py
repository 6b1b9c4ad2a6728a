"""What all faces share: how they make attacks, and how these compute. A face is a class, function or module
that has the name and the signature of another library's."""

import contextlib
import contextvars
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..attacks.attack import Attack, ViewCache, undirected_notes
from ..attacks.inputs import OutsideError, are_of_bytes, check_range, check_size, to_state
from ..attacks.trial import AttackResult
from ..checks import check_choice, refuse, warn
from ..engine import PRECISIONS
from ..engine.modes import Model
from ..models.normalized import Normalized
from ..ops.checks import state_dtype

_OPTIONS = contextvars.ContextVar[dict[str, Any]]("options")

_PACKAGE = f"{__name__.partition('.')[0]}."

# The box for libraries that need none: all finite float32 numbers.
UNBOUNDED = (torch.finfo(torch.float32).min, torch.finfo(torch.float32).max)


@contextlib.contextmanager
def options(*, precision: str | None = None, fold: bool | None = None) -> Iterator[None]:
    """Sets how the faces compute inside ``with``, where the originals have no argument for it.

    precision, fold: as in :class:`roli_fast.attacks.PGD`. None keeps what holds outside of this ``with``:
        without another one around it, "torch", as the originals compute, and True.

    Raises ValueError for an unknown precision.
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
    """The options that hold here, as arguments of an attack."""
    return {"precision": "torch", "fold": True, **_OPTIONS.get({})}


class _Copies(threading.local):
    """Makes all faces' attacks in a thread share one copy of each model, since many loops make a new attack
    for each batch. A copy lives as long as its model."""

    def __init__(self) -> None:
        self._by_options: dict[tuple[Any, ...], ViewCache] = {}

    def share(self, attack: Attack) -> None:
        attack.share_views(self._by_options.setdefault(tuple(chosen().values()), ViewCache()))


share_copies = _Copies().share


class _Wrappers:
    """Gives the same :class:`Normalized` to all faces that normalise a model in the same way, so that they
    share its copy. A wrapper keeps its model alive. It lives as long as a face that uses it; the last one
    also lives until another is asked for, since many loops make a new attack for each batch."""

    def __init__(self) -> None:
        self._living: weakref.WeakValueDictionary[tuple[Any, ...], Normalized] = weakref.WeakValueDictionary()
        self._last: Normalized | None = None

    def normalized(
        self, model: nn.Module, mean: Sequence[float], std: Sequence[float], device: torch.device | None
    ) -> Normalized:
        """``Normalized(model, mean, std)``. device: the model's, to which it is moved; None if not known."""
        if device is not None and device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())  # which "cuda" means
        key = id(model), tuple(mean), tuple(std), device
        wrapper = self._living.get(key)
        if wrapper is None:
            wrapper = self._living[key] = Normalized(model, mean, std).to(device)
        self._last = wrapper
        return wrapper


normalized = _Wrappers().normalized


class Maker(threading.local):
    """Makes the attack that a call asks for, and keeps it for further calls that ask for the same. Each
    thread has an attack of its own, since the originals may be called from several threads at once.

    Objects of other libraries may be changed between calls, and some take a list of sizes. Therefore eps and
    step size are tensors whose values change, and the copy of the model and its CUDA graphs are kept. If
    anything else changes, a new attack is made.
    """

    def __init__(self) -> None:
        self._settings: dict[str, Any] | None = None

    def __reduce__(self) -> tuple[type["Maker"], tuple[()]]:
        """Copies, and makers that were pickled, begin without an attack."""
        return (Maker, ())

    def __call__(self, kind: Callable[..., Attack], **settings: Any) -> Attack:
        """The attack ``kind(**settings)``. eps and step_size are numbers or tensors (N,)."""
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
    """Calls the attack. way_out: as in :func:`check_images`, for images that the attack refuses."""
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
    """Calls ``attack.run``, with a warning instead of an error for a batch without any gradient: it may be
    the one image that is left in a user's loop, and the originals return it unchanged. way_out: as in
    :func:`attacked`."""
    with _with_way_out(way_out):
        result = attack.run(model, images, labels, key=key, strict=False)
    warn_of_surroundings(model, images.device)
    for note in undirected_notes(result.undirected_by_stage):
        warn(note)
    return result


def warn_of_surroundings(model: Model, device: torch.device) -> None:
    """Warns if the caller has asked torch for autocast or several GPUs, which work for the originals, and not
    for attacks here."""
    # An attack switches autocast off on these two kinds of device alone.
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


# Models that were searched for DataParallel.
_SEEN: weakref.WeakSet[nn.Module] = weakref.WeakSet()


# How far rounding may move an image out of the box, such as by normalising it and back in float32.
_ROUNDING = 1e-6


def inside(images: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The images, with values clipped that are outside of the box by rounding alone. Values further outside
    are left, for the attack to refuse."""
    if not images.is_floating_point():
        return images
    clipped = images.clamp(*bounds)
    return torch.where((images - clipped).abs() <= _ROUNDING, clipped, images)


def check_images(images: Tensor, bounds: tuple[float, float], way_out: str) -> None:
    """Raises OutsideError for images outside of the box. Other errors are left to the attack.

    way_out: what the error advises if images are normalised: the original library's own way to say so.
    """
    if not images.is_floating_point() or images.numel() == 0:
        return
    smallest, largest = torch.stack(images.aminmax()).tolist()
    with _with_way_out(way_out):
        check_range((smallest, largest), bounds, state_dtype(images))


@contextlib.contextmanager
def _with_way_out(way_out: str | None) -> Iterator[None]:
    """Puts this advice, if any, into errors inside ``with`` for images outside of the box: in the place of
    the attack's own, or behind it for what seem to be pixels from 0 to 255."""
    try:
        yield
    except OutsideError as error:
        if way_out is None:
            raise
        if are_of_bytes(error.found, error.bounds):
            way_out = f"{error.way_out}. {way_out}"
        raise OutsideError(error.found, error.bounds, way_out) from None


def as_pixels(images: Tensor) -> Tensor:
    """The images, with uint8 values from 0 to 255 scaled to [0, 1]."""
    return to_state(images) if images.dtype == torch.uint8 else images


def as_classes(labels: Tensor) -> Tensor:
    """The labels, in int64 if they are uint8 or int32, which the originals accept too."""
    is_short = isinstance(labels, Tensor) and labels.dtype in (torch.uint8, torch.int32)
    return labels.long() if is_short else labels


class Closed:
    """Refuses a user's own versions of methods that the original calls and that nothing here calls.

    Raises ValueError for a subclass that defines such a method, and when one is assigned to an instance.

    _never_called: the methods' names.
    _caller: the name of the method that calls them in the original. If a user's subclass defines it, it may
        define them too.
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
        """Raises ValueError if a user's own caller calls ours, which ignores the user's other methods."""
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
    """An instance of the class of the same name in the module ``face``, with the present settings of an
    instance of the original: all public attributes that both have.

    covered: names of the classes that the module has.
    constructor, options: arguments with which the instance is made.
    settings: the object whose attributes are the settings; None for the original itself.

    Raises ValueError for a class that is not covered, for an instance whose methods were replaced, and for a
    setting that the face lacks although the class of the original has it.
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
    """Raises AttributeError, for the ``__getattr__`` of a face."""
    raise AttributeError(
        f"roli_fast.compat.{library}: got {name!r}, accepted: {', '.join(covered)}; the rest is in {library}"
    )
