"""Training, with or without an attack in the loop: one stage, or RoLI's two."""

from .cost import Cost
from .recipe import Recipe, paper_settings
from .roli import Outcome, roli
from .stage import DivergedError, Trained, train

__all__ = ["Cost", "DivergedError", "Outcome", "Recipe", "Trained", "paper_settings", "roli", "train"]
