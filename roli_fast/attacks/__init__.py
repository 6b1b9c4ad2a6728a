"""Attacks on the fused ops, and the check that decides what they reached."""

from .pgd import FGSM, MIFGSM, PGD, TPGD, FeaturePGD
from .trial import AttackResult
from .verify import Verification, predict, verify

__all__ = ["FGSM", "MIFGSM", "PGD", "TPGD", "AttackResult", "FeaturePGD", "Verification", "predict", "verify"]
