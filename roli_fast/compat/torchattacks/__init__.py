"""torchattacks' classes (3.5.1), computed by this package's attacks: ``import
roli_fast.compat.torchattacks as torchattacks``."""

from typing import Any, NoReturn

from ...checks import refuse
from ..core import no_such, read
from .attack import Attack as Attack
from .ensembles import AutoAttack, MultiAttack
from .searches import APGD, APGDT, FAB, Square
from .steps import BIM, EOTPGD, FFGSM, FGSM, MIFGSM, PGD, PGDL2, RFGSM, TPGD, VANILA

__version__ = "3.5.1"

__all__ = [
    "APGD",
    "APGDT",
    "BIM",
    "EOTPGD",
    "FAB",
    "FFGSM",
    "FGSM",
    "MIFGSM",
    "PGD",
    "PGDL2",
    "RFGSM",
    "TPGD",
    "VANILA",
    "AutoAttack",
    "MultiAttack",
    "Square",
]


def __getattr__(name: str) -> NoReturn:
    no_such("torchattacks", name, __all__)


def accelerated(original: Any) -> Attack:
    """torchattacks' own attack as one of this module, in its mode and with its normalisation. Raises
    ValueError for one that cannot be converted."""
    name = type(original).__name__
    if name == "MultiAttack":
        parts = [accelerated(attack) for attack in original.attacks]
        face: Attack = read(original, __name__, __all__, parts)
        vars(face)["attacks"] = parts  # read() has put the original's own there
    elif name == "AutoAttack":
        face = read(original, __name__, __all__, original.model)
        vars(face)["_autoattack"] = accelerated(original._autoattack)
    else:
        face = read(original, __name__, __all__, original.model)
    face.supported_mode = list(face._modes)
    if original._model_training:
        face.set_model_training_mode(True)
    if face.targeted and "targeted" not in face.supported_mode:
        refuse("attack", f"{name} in the mode {face.attack_mode}", f"{name} in the default mode")
    face._kth_min = getattr(original, "_kth_min", 1)
    face._target_map_function = original._target_map_function
    return face
