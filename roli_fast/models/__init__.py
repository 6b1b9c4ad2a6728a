"""Models whose input are pixels."""

from .normalized import Normalized

__all__ = ["Normalized"]
