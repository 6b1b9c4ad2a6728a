"""Data sets, their splits, and batches of their images."""

from .batch import Batch
from .digits import digits
from .images import ImageSet, Pictures, StoredImages
from .load import load
from .loader import Loader
from .sample import Sample
from .splits import Splits
from .stream import ImageStream

__all__ = [
    "Batch",
    "ImageSet",
    "ImageStream",
    "Loader",
    "Pictures",
    "Sample",
    "Splits",
    "StoredImages",
    "digits",
    "load",
]
