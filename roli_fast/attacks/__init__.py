"""Attacks on the fused ops, and the check that decides what they reached."""

from .descent import AttackResult
from .pgd import PGD
from .verify import Verification, predict, verify

__all__ = ["PGD", "AttackResult", "Verification", "predict", "verify"]
