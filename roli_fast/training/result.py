"""What a stage of training ends with."""

import dataclasses
from typing import Any

from torch import Tensor, nn

from .cost import Cost


class DivergedError(RuntimeError):
    """Training has diverged: a loss, a feature or a weight is NaN or infinite.

    epoch, step: where that was found, both from 0.
    index: (N,) int64, the places in the data set of the batch's images; None where a weight is not finite.
    """

    def __init__(self, epoch: int, step: int, index: Tensor | None, kept: str):
        super().__init__(epoch, step, index, kept)  # all arguments, for pickle
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
    """The result of a training stage.

    model: in eval mode, with the weights of the best epoch.
    history: a dict for each epoch: epoch (from 1), lr, train_loss and train_accuracy (on the images trained
        on, so adversarial ones where there is an attack), val_clean, val_robust (None without an attack),
        images_per_second, and cost (the fields of :class:`Cost`).
    best: index into history of the best epoch: the one with the highest robust accuracy on validation images,
        and among equals the highest clean accuracy.
    cost: of all epochs together.
    warnings: of overfitting, a sentence each.
    precision: what the attacks computed in.
    """

    model: nn.Module
    history: list[dict[str, Any]]
    best: int
    cost: Cost
    warnings: list[str]
    precision: str


def merit(row: dict[str, Any]) -> tuple[float, float]:
    """What validation ranks the rows of a history by, higher being better: robust accuracy, then clean."""
    robust = row["val_robust"]
    return (row["val_clean"] if robust is None else robust, row["val_clean"])
