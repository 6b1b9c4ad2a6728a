"""Training, with or without an attack in the loop: one stage, or RoLI's two."""

from .cost import Cost
from .recipe import Recipe, paper_options, paper_settings
from .result import DivergedError, Trained
from .roli import Outcome, roli
from .rounds import Rounds, probe
from .stage import train

__all__ = [
    "Cost",
    "DivergedError",
    "Outcome",
    "Recipe",
    "Rounds",
    "Trained",
    "paper_options",
    "paper_settings",
    "probe",
    "roli",
    "train",
]
