"""Converts objects of other libraries to this package's attacks."""

import importlib
import inspect
from typing import Any

from ..checks import refuse

LIBRARIES = ("torchattacks", "foolbox", "autoattack", "art", "cleverhans")


def accelerate(attack: Any) -> Any:
    """Returns the same attack, with the same settings, mode and way to call it, computed by this package.

    attack: an attack of torchattacks, foolbox, autoattack or ART, or an attack function of cleverhans. It is
        left unchanged.

    Raises ValueError for everything else: other attacks, subclasses of these, and settings that would mean
    something else here.
    """
    if isinstance(attack, type):
        refuse("attack", f"the class {attack.__module__}.{attack.__qualname__}", "an instance of it")
    kind = attack if inspect.isfunction(attack) else type(attack)
    library = kind.__module__.partition(".")[0]
    if library not in LIBRARIES:
        refuse(
            "attack",
            f"{kind.__module__}.{kind.__qualname__}",
            f"an attack of {', '.join(LIBRARIES)}, and no subclass of it, which may attack otherwise",
        )
    return importlib.import_module(f".{library}", __package__).accelerated(attack)
