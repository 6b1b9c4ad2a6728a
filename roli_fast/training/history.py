"""A stage's history: a row for each epoch or fit, and the weights of the best one."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Loader
from ..evaluation import evaluate
from .attack import validation_attack
from .cost import Cost, Stopwatch
from .recipe import Recipe
from .records import Records
from .result import Trained, merit


class History:
    """Validates a model after each epoch or fit, keeps the results, and remembers the best weights.

    rows: a dict for each epoch or fit; see :class:`Trained`.
    val_images: how many images validate, once a row is there.
    best: index into rows of the best one; None before the first.
    best_weights: the weights of the best one, on the CPU.
    cost, watch: what the row to come has cost so far, and what measures its seconds.
    """

    def __init__(self, recipe: Recipe, validation: Loader, precision: str, device: torch.device):
        self._seed, self._validation, self._precision = recipe.seed, validation, precision
        self._generator = torch.Generator()
        self._attack = validation_attack(recipe, precision, self._generator)
        self.rows: list[dict[str, Any]] = []
        self.val_images = 0
        self.best: int | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.cost, self.watch = Cost(), Stopwatch(device)

    def add(self, facts: dict[str, Any], images: float, model: nn.Module, kept: nn.Module) -> bool:
        """Validates a model and adds its row. Returns whether it is the best so far; its weights are then
        remembered.

        facts: further entries of the row.
        images: how many images were trained on since the last row; for 0, its images_per_second is repeated.
        kept: the module whose weights are remembered.
        """
        self._generator.manual_seed(self._seed)  # all rows are held to the same starts
        with self.watch("evaluation"):
            # Not strict: in training, a model may have no gradient for a while and still recover.
            found = evaluate(model, self._validation, self._attack, strict=False)
        self.val_images = len(found.right)
        self.cost.forwards += found.forwards
        self.cost.input_gradients += found.gradients
        self.watch.read_into(self.cost)
        seconds = self.cost.attack + self.cost.training + self.cost.data
        row = {
            "epoch": len(self.rows) + 1,
            **facts,
            "val_clean": found.clean.value,
            "val_robust": None if self._attack is None else found.value,
            "images_per_second": images / seconds if images else self.rows[-1]["images_per_second"],
            "cost": dataclasses.asdict(self.cost),
        }
        self.cost = Cost()
        is_best = self.best is None or merit(row) > merit(self.rows[self.best])
        if is_best:
            self.best = len(self.rows)
            self.best_weights = {name: value.cpu().clone() for name, value in kept.state_dict().items()}
        self.rows.append(row)
        return is_best

    def finish(self, model: nn.Module, records: Records | None, warnings: list[str]) -> Trained:
        """The result of the stage. model: already with the best weights."""
        assert self.best is not None
        if records is not None:
            records.write_history(self.rows)
            records.restore_best(model, self.rows[self.best])
        cost = sum((Cost(**row["cost"]) for row in self.rows), Cost())
        return Trained(model.eval(), self.rows, self.best, cost, warnings, self._precision)
