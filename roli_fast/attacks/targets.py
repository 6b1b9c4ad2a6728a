"""Attacks that go towards one class after another."""

import torch
from torch import Tensor

from .attack import Attack
from .losses import rivals
from .trial import Trial


class TowardsTargets(Attack):
    """Of an attack whose runs go towards the likeliest of the other classes, by the model's own output for
    the clean images, ``restarts`` times each.

    targets: how many classes, fewer where the model has fewer others.
    """

    targets: int

    def runs(self, trial: Trial) -> int:
        return min(self.targets, trial.clean_output.shape[1] - 1) * self.restarts

    def pairs(self, trial: Trial, run: int) -> Tensor:
        """Label and target of each sample: (N, 2) int64."""
        assert trial.labels is not None
        target = rivals(trial.clean_output, trial.labels)[:, run // self.restarts]
        return torch.stack([trial.labels, target], dim=1)
