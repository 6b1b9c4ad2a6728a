"""foolbox's names (3.3.4) on this package's attacks: ``import roli_fast.compat.foolbox as foolbox``.

Models and criteria of foolbox itself are taken as well as the ones here, and eagerpy tensors as well as
torch's.
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
