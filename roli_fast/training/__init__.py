"""Training, with or without an attack in the loop."""

from .loop import Epoch, Fit, fit, train_epoch

__all__ = ["Epoch", "Fit", "fit", "train_epoch"]
