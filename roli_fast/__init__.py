"""Fast, exact adversarial attacks and adversarial training for PyTorch.

``roli_fast.ops`` are the fused attack steps, ``roli_fast.attacks`` the attacks on them. Submodules are
imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import attacks, compat, data, engine, evaluation, models, ops, report, training
    from .compat.acceleration import accelerate
    from .ops.choice import backend, backends

__all__ = [
    "accelerate",
    "attacks",
    "backend",
    "backends",
    "compat",
    "data",
    "engine",
    "evaluation",
    "models",
    "ops",
    "report",
    "training",
]

_FROM = {"accelerate": "compat.acceleration", "backend": "ops.choice", "backends": "ops.choice"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _FROM:
        return getattr(importlib.import_module(f"{__name__}.{_FROM[name]}"), name)
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
