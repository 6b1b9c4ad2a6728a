"""Attacks that go towards one class after another."""

import torch
from torch import Tensor

from .attack import Attack
from .losses import rivals
from .trial import Trial


class TowardsTargets(Attack):
    """Makes an attack run towards each of the likeliest wrong classes in turn, ``restarts`` times each. The
    model's own output for the clean images says which these are.

    targets: how many classes to aim at; fewer if the model has fewer wrong ones.
    """

    targets: int

    def runs(self, trial: Trial) -> int:
        return min(self.targets, trial.clean_output.shape[1] - 1) * self.restarts

    def pairs(self, trial: Trial, run: int) -> Tensor:
        """Label and target of each sample: (N, 2) int64."""
        assert trial.labels is not None
        target = rivals(trial.clean_output, trial.labels)[:, run // self.restarts]
        return torch.stack([trial.labels, target], dim=1)
