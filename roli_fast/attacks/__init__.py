"""Attacks on the fused ops, and the check that decides what they reached."""

from .apgd import APGD, APGDT
from .attack import Attack
from .autoattack import AutoAttack, AutoAttackResult
from .fab import FAB, FABT
from .options import AttackOptions, PGDOptions
from .pgd import FGSM, MIFGSM, NFGSM, PGD, TPGD, FeaturePGD
from .square import Square
from .trial import AttackResult
from .verify import Verification, predict, verify

__all__ = [
    "APGD",
    "APGDT",
    "FAB",
    "FABT",
    "FGSM",
    "MIFGSM",
    "NFGSM",
    "PGD",
    "TPGD",
    "Attack",
    "AttackOptions",
    "AttackResult",
    "AutoAttack",
    "AutoAttackResult",
    "FeaturePGD",
    "PGDOptions",
    "Square",
    "Verification",
    "predict",
    "verify",
]
