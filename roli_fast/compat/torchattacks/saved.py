"""What torchattacks' ``save`` keeps of its batches."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...files import write


class Saved:
    """The library's file of adversarial images, and what else was asked for, batch by batch.

    It is written whenever there is twice as much as in it: after every batch, as by the library, all would be
    written as often as there are batches. Who is killed has half of them at least.

    names: what is kept of a batch. as_saved: what is done to images first.
    """

    def __init__(
        self, path: Path, names: Sequence[str], save_type: str, as_saved: Callable[[Tensor], Tensor]
    ):
        self._path, self._save_type, self._as_saved = path, save_type, as_saved
        self._kept: dict[str, list[Tensor]] = {name: [] for name in names}
        self._batches = self._written = 0

    def add(self, **batch: Tensor) -> None:
        for name, kept in self._kept.items():
            tensor = batch[name].detach()
            kept.append((self._as_saved(tensor) if name in ("adv_inputs", "clean_inputs") else tensor).cpu())
        self._batches += 1
        if self._batches >= 2 * self._written:
            self.write()

    def write(self) -> None:
        """What is not in the file yet."""
        if self._written == self._batches:
            return
        self._kept = {name: [torch.cat(kept)] for name, kept in self._kept.items()}
        content = {**{name: kept[0] for name, kept in self._kept.items()}, "save_type": self._save_type}
        write(self._path, lambda file: torch.save(content, file))
        self._written = self._batches


class Tally:
    """How many images there were, how many of them are still right, and how far the others were moved."""

    def __init__(self) -> None:
        self.images = self._right = 0
        self._moved = 0.0

    def add(self, change: Tensor, right: Tensor) -> None:
        """change: (N, ...), of each image; right: (N,) bool."""
        self.images += len(right)
        self._right += int(right.sum())
        self._moved += change.flatten(1).norm(dim=1)[~right].double().sum().item()

    @property
    def accuracy(self) -> float:
        """In %."""
        return 100 * self._right / self.images

    @property
    def distance(self) -> float:
        """The mean length of the changes of those that are wrong; NaN without any."""
        wrong = self.images - self._right
        return self._moved / wrong if wrong else math.nan
