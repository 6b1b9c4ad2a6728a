"""Which implementations of the ops there are, and which one runs.

``cpu`` are the native kernels, ``reference`` is plain torch and runs wherever torch does. The default
of each device is fixed at import, by ``ROLI_FAST_BACKEND`` where that is set; ``with backend(name):``
changes the choice for the current thread. A choice that cannot run raises: nothing falls back in silence.
"""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

_LIBRARY = Path(__file__).parent.parent / "lib" / "libroli_fast_cpu.so"


@dataclasses.dataclass(frozen=True)
class Backend:
    """One implementation of the ops.

    devices: device types that it runs on, ``("any",)`` for all of torch's.
    default_for: device types whose tensors take it unless told otherwise; ``other`` are the unnamed ones.
    missing: why it cannot run here; None where it can.
    """

    name: str
    devices: tuple[str, ...]
    default_for: tuple[str, ...]
    missing: str | None

    def runs_on(self, device_type: str) -> bool:
        return self.missing is None and (self.devices == ("any",) or device_type in self.devices)


def _load_native() -> str | None:
    """Loads the native library; returns why there is none, or None."""
    if not _LIBRARY.exists():
        return "not built: the package was installed with ROLI_FAST_NATIVE=0"
    try:
        torch.ops.load_library(_LIBRARY)
    except OSError as error:
        return f"built, but does not load with torch {torch.__version__}: {error}"
    try:
        from .. import _C
    except ImportError as error:
        return f"built in part: {error}"
    try:
        _C.cpu_capability()
    except RuntimeError as error:  # ROLI_FAST_CPU_CAPABILITY names what cannot run
        raise ImportError(str(error)) from error
    return None


def _find_backends() -> dict[str, Backend]:
    missing = _load_native()
    wanted = os.environ.get("ROLI_FAST_BACKEND") or None
    for_cpu = wanted or ("reference" if missing else "cpu")
    found = {
        "cpu": Backend("cpu", ("cpu",), ("cpu",) if for_cpu == "cpu" else (), missing),
        "reference": Backend(
            "reference", ("any",), ("other",) if for_cpu == "cpu" else ("cpu", "other"), None
        ),
    }
    if for_cpu not in found:
        raise ImportError(f"ROLI_FAST_BACKEND: got {for_cpu!r}, accepted: {', '.join(found)}")
    if found[for_cpu].missing:
        raise ImportError(f"ROLI_FAST_BACKEND={for_cpu} cannot run: {found[for_cpu].missing}")
    return found


_BACKENDS = _find_backends()
_DEFAULT = {device: name for name, backend in _BACKENDS.items() for device in backend.default_for}


class _Choice(threading.local):
    def __init__(self) -> None:
        # In the instance: torch.compile guards on its dictionary, and a class attribute would not be there.
        self.name: str | None = None


_choice = _Choice()


def backends() -> dict[str, Backend]:
    """All backends by name: what each runs on, what it is the default for, and why it is missing."""
    return dict(_BACKENDS)


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Runs the ops inside the ``with`` block, on this thread, on the backend ``name``.

    The choice is taken when a function is traced by torch.compile or captured in a CUDA graph.
    Raises ValueError for a name that does not exist and RuntimeError for a backend that cannot run.
    """
    if name not in _BACKENDS:
        raise ValueError(f"backend: got {name!r}, accepted: {', '.join(_BACKENDS)}")
    if _BACKENDS[name].missing:
        raise RuntimeError(f"backend {name!r} cannot run: {_BACKENDS[name].missing}")
    before, _choice.name = _choice.name, name
    try:
        yield
    finally:
        _choice.name = before


def default_of(device_type: str) -> str:
    """The name of the backend that tensors on this type of device take unless told otherwise."""
    return _DEFAULT.get(device_type, _DEFAULT["other"])


def chosen(tensor: torch.Tensor) -> str:
    """The name of the backend that an op on this tensor takes."""
    name = _choice.name
    if name is None:
        return _DEFAULT["cpu" if tensor.is_cpu else "other"]
    if not _BACKENDS[name].runs_on(tensor.device.type):
        raise RuntimeError(
            f"backend {name!r} runs on {', '.join(_BACKENDS[name].devices)}; got a tensor on {tensor.device}"
        )
    return name
