"""The implementations of the ops, and the choice of the one that runs.

``cpu`` and ``cuda`` are the native kernels, and ``triton`` has Triton kernels that do the same as ``cuda``.
``reference`` is plain torch and runs wherever torch does. The default of each device is fixed when the
package is imported; ``ROLI_FAST_BACKEND`` names a backend that is preferred on the devices that it runs on.
``with backend(name):`` changes the choice for the current thread. A choice that cannot run raises an error:
there is no silent fallback.
"""

import contextlib
import dataclasses
import importlib.util
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

_LIBRARIES = Path(__file__).parent.parent / "lib"

# By device, what is preferred where it runs. On CUDA the native kernels come first: they check and launch in
# C++, where Triton does both in Python and compiles at the first call. On an H200 a call on a small tensor
# takes a tenth of Triton's time; on large ones either is ahead in some ops (benchmarks/results).
_PREFERENCE = {
    "cpu": ("cpu", "reference"),
    "cuda": ("cuda", "triton", "reference"),
    "other": ("reference",),
}


@dataclasses.dataclass(frozen=True)
class Backend:
    """One implementation of the ops.

    devices: the device types that it runs on, or ``("any",)`` for all of torch's.
    default_for: the device types whose tensors use it by default; ``other`` stands for all types not named.
    missing: why it cannot run here, or None if it can.
    """

    name: str
    devices: tuple[str, ...]
    default_for: tuple[str, ...]
    missing: str | None

    def runs_on(self, device_type: str) -> bool:
        return self.missing is None and (self.devices == ("any",) or device_type in self.devices)


def _load(library: Path) -> str | None:
    """Loads a library of native kernels. Returns why it does not load, or None if it does."""
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return f"built, but does not load with torch {torch.__version__}: {error}"
    return None


def _load_cpu() -> str | None:
    """Loads the CPU kernels. Returns why they cannot run, or None if they can."""
    library = _LIBRARIES / "libroli_fast_cpu.so"
    if not library.exists():
        return "not built: the package was installed with ROLI_FAST_NATIVE=0"
    if reason := _load(library):
        return reason
    try:
        from .. import _C
    except ImportError as error:
        return f"built in part: {error}"
    try:
        _C.cpu_capability()
    except RuntimeError as error:  # ROLI_FAST_CPU_CAPABILITY names what cannot run
        raise ImportError(str(error)) from error
    return None


def _no_gpu() -> str | None:
    # By the driver's management library where that is there: the process can still be forked.
    return None if torch.cuda.device_count() else "torch sees no CUDA device"


def _load_cuda() -> str | None:
    """Loads the CUDA kernels if there is a device for them. Returns why they cannot run, or None if they
    can."""
    library = _LIBRARIES / "libroli_fast_cuda.so"
    if torch.version.cuda is None:
        return "torch is built without CUDA"
    if library.exists():
        return _no_gpu() or _load(library)
    try:
        from .. import _C
    except ImportError:
        return "not built: the package was installed with ROLI_FAST_NATIVE=0"
    return f"not built: {_C.build_config()['cuda']}"


def _interpreting() -> bool:
    """Whether Triton runs its kernels in Python, on the CPU."""
    value = os.environ.get("TRITON_INTERPRET", "").lower()
    return value in ("1", "true", "yes", "on", "y")  # as Triton reads it


def _find_triton() -> str | None:
    """Why Triton's kernels cannot run, or None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "not installed: the package triton"
    if _interpreting():
        return None
    reason = _no_gpu()
    return reason and f"{reason} (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"


def _find_backends() -> dict[str, Backend]:
    devices_and_missing = {
        "cpu": (("cpu",), _load_cpu()),
        "cuda": (("cuda",), _load_cuda()),
        "triton": (("cpu",) if _interpreting() else ("cuda",), _find_triton()),
        "reference": (("any",), None),
    }
    found = {name: Backend(name, d, (), missing) for name, (d, missing) in devices_and_missing.items()}
    wanted = os.environ.get("ROLI_FAST_BACKEND") or None
    if wanted not in (None, *found):
        raise ImportError(f"ROLI_FAST_BACKEND: got {wanted!r}, accepted: {', '.join(found)}")
    if wanted and found[wanted].missing:
        raise ImportError(f"ROLI_FAST_BACKEND={wanted} cannot run: {found[wanted].missing}")
    for device, preferred in _PREFERENCE.items():
        candidates = (*([wanted] if wanted else []), *preferred)
        default = next(found[name] for name in candidates if found[name].runs_on(device))
        found[default.name] = dataclasses.replace(default, default_for=(*default.default_for, device))
    return found


_BACKENDS = _find_backends()
_DEFAULT = {device: name for name, backend in _BACKENDS.items() for device in backend.default_for}


class _Choice(threading.local):
    def __init__(self) -> None:
        # In the instance: torch.compile guards on its dictionary, and a class attribute would not be there.
        self.name: str | None = None


_choice = _Choice()


def backends() -> dict[str, Backend]:
    """All backends by name. Each says on which devices it runs, for which it is the default, and why it
    cannot run if it is missing."""
    return dict(_BACKENDS)


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Inside the ``with`` block, the ops of this thread run on the backend of this name.

    A function that torch.compile traces, or that is captured in a CUDA graph, keeps the backend that was
    chosen at that time. Raises ValueError for a name that does not exist, and RuntimeError for a backend that
    cannot run.
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
    """The name of the backend that tensors on this type of device use by default."""
    return _DEFAULT.get(device_type, _DEFAULT["other"])


def chosen(tensor: torch.Tensor) -> str:
    """The name of the backend that runs an op on this tensor."""
    name = _choice.name
    if name is None:
        # The question first that costs least: a call on a small tensor takes three microseconds.
        return _DEFAULT["cpu"] if tensor.is_cpu else default_of(tensor.device.type)
    if not _BACKENDS[name].runs_on(tensor.device.type):
        raise RuntimeError(
            f"backend {name!r} runs on {', '.join(_BACKENDS[name].devices)}; got a tensor on {tensor.device}"
        )
    return name
