"""What a stage of training ends with."""

import dataclasses
from typing import Any

from torch import Tensor, nn

from .cost import Cost


class DivergedError(RuntimeError):
    """A loss or a weight is NaN or infinite.

    epoch, step: where, from 0. index: (N,) int64, the batch's images in their set; None for a weight.
    """

    def __init__(self, epoch: int, step: int, index: Tensor | None, kept: str):
        super().__init__(epoch, step, index, kept)  # of which another process makes it anew
        self.epoch, self.step, self.index, self._kept = epoch, step, index, kept

    def __str__(self) -> str:
        if self.index is None:
            what = f"a weight is not finite after step {self.step} of epoch {self.epoch + 1}"
        else:
            images = ", ".join(map(str, self.index.tolist()))
            place = f"in step {self.step} of epoch {self.epoch + 1}, on images {images}"
            what = f"the loss or a feature is not finite {place}"
        remedy = "A new run with a smaller learning rate, clip_grad or amp_dtype='float32' may help"
        return f"{what}. {self._kept} {remedy}"


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished stage, whose model has the weights of the best epoch.

    history: a row per epoch: epoch (from 1), lr, train_loss and train_accuracy (on what was trained on),
        val_clean, val_robust (None without an attack), images_per_second, and the epoch's :class:`Cost`.
    best: the number of the best epoch in history, by validation robustness, then clean accuracy.
    cost: of all epochs. warnings: of overfitting. precision: in which the attacks ran.
    """

    model: nn.Module
    history: list[dict[str, Any]]
    best: int
    cost: Cost
    warnings: list[str]
    precision: str


def merit(row: dict[str, Any]) -> tuple[float, float]:
    """By which validation chooses among the rows of a history: the larger, the better."""
    robust = row["val_robust"]
    return (row["val_clean"] if robust is None else robust, row["val_clean"])
