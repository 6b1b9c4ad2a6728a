"""Attacks on the fused ops, and the check that decides what they reached."""

from .pgd import PGD, AttackResult
from .verify import Verification, predict, verify

__all__ = ["PGD", "AttackResult", "Verification", "predict", "verify"]
