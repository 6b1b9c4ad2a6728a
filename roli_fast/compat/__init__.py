"""This package's attacks under other libraries' names and signatures: only the import has to change.

For example, ``import roli_fast.compat.torchattacks as torchattacks``; likewise ``roli_fast.compat.foolbox``,
``autoattack``, ``art`` and ``cleverhans``. None of these libraries has to be installed. :func:`accelerate`
converts an object of theirs that exists already. ``docs/switching.md`` says what differs from the originals.
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
