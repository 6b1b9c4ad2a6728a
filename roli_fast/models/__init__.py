"""Models whose input are pixels."""

from .normalized import Normalized
from .small_resnet import small_resnet

__all__ = ["Normalized", "small_resnet"]
