"""The names and signatures of other libraries on this package's attacks: the import is all that changes.

``import roli_fast.compat.torchattacks as torchattacks``; ``roli_fast.compat.foolbox``, ``autoattack``,
``art`` and ``cleverhans`` likewise. None of these libraries has to be installed. :func:`accelerate` does the
same for an object that is there already. What changes with the switch: ``docs/switching.md``.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .acceleration import LIBRARIES, accelerate
from .core import options

if TYPE_CHECKING:
    from . import art, autoattack, cleverhans, foolbox, torchattacks

__all__ = ["accelerate", "art", "autoattack", "cleverhans", "foolbox", "options", "torchattacks"]


def __getattr__(name: str) -> Any:
    if name not in LIBRARIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
