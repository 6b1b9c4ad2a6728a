"""What torchattacks' ``save`` writes of its batches, and what it measures."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...files import write


class Saved:
    """The library's file of adversarial images, and what else was asked for, to which batches are added.

    It is written whenever there are twice as many batches as it has; the library rewrites all of them after
    every batch. If the process is killed, the file has at least half of the batches.

    names: what is saved of a batch.
    as_saved: a function that converts images before they are saved.
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
        """Writes the file, unless it has all batches already."""
        if self._written == self._batches:
            return
        self._kept = {name: [torch.cat(kept)] for name, kept in self._kept.items()}
        content = {**{name: kept[0] for name, kept in self._kept.items()}, "save_type": self._save_type}
        write(self._path, lambda file: torch.save(content, file))
        self._written = self._batches


class Tally:
    """Counts images and how many of them are still right, and measures how far the others were moved."""

    def __init__(self) -> None:
        self.images = self._right = 0
        self._moved = 0.0

    def add(self, change: Tensor, right: Tensor) -> None:
        """Adds a batch. change: (N, ...), of each image. right: (N,) bool, whether it is still right."""
        self.images += len(right)
        self._right += int(right.sum())
        self._moved += change.flatten(1).norm(dim=1)[~right].double().sum().item()

    @property
    def accuracy(self) -> float:
        """The share of images that are still right, in %."""
        return 100 * self._right / self.images

    @property
    def distance(self) -> float:
        """The mean L2 norm of the changes of images that are wrong; NaN if there are none."""
        wrong = self.images - self._right
        return self._moved / wrong if wrong else math.nan
