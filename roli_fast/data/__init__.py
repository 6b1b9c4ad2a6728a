"""Data sets."""

from .digits import Splits, digits

__all__ = ["Splits", "digits"]
