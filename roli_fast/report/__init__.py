"""Reports on finished runs. First everything is measured, then pictures are drawn, then the page is
written."""

from .compare import Comparison, Gap, compare
from .examples import Example
from .measure import Ensemble, Found, Gradients, Measured, Point, Rate, TransferFound, measure
from .runs import Run, Stage, read_run
from .sanity import TOLERANCE, Check, sanity
from .write import IMAGES, write_report

__all__ = [
    "IMAGES",
    "TOLERANCE",
    "Check",
    "Comparison",
    "Ensemble",
    "Example",
    "Found",
    "Gap",
    "Gradients",
    "Measured",
    "Point",
    "Rate",
    "Run",
    "Stage",
    "TransferFound",
    "compare",
    "measure",
    "read_run",
    "sanity",
    "write_report",
]
