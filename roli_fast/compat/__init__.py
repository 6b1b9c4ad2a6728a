"""The names and signatures of other libraries on this package's attacks: the import is all that changes.

``import roli_fast.compat.torchattacks as torchattacks``; ``roli_fast.compat.foolbox``, ``autoattack``,
``art`` and ``cleverhans`` likewise. None of these libraries has to be installed. :func:`accelerate` does the
same for an object that is there already. What changes with the switch: ``docs/switching.md``.
"""

from .acceleration import accelerate
from .core import options

__all__ = ["accelerate", "options"]
