"""foolbox's names (3.3.4) for this package's attacks: ``import roli_fast.compat.foolbox as foolbox``.

Attacks accept foolbox's own models and criteria as well as those of this module, and eagerpy's tensors as
well as torch's.
"""

from typing import NoReturn

from ..core import no_such
from . import attacks, utils
from .attacks import accelerated as accelerated
from .criteria import Misclassification, TargetedMisclassification
from .models import PyTorchModel
from .utils import accuracy

__all__ = [
    "Misclassification",
    "PyTorchModel",
    "TargetedMisclassification",
    "accuracy",
    "attacks",
    "utils",
]

__version__ = "3.3.4"


def __getattr__(name: str) -> NoReturn:
    no_such("foolbox", name, __all__)
