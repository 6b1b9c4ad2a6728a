"""One stage of training: from a model and a recipe to the weights that validation chose."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Loader, Splits
from ..distributed import rank, world_size
from ..engine.modes import device_of, gradients
from .attack import TrainingAttack
from .cost import Cost
from .history import History
from .learner import Learner
from .overfitting import overfitting
from .processes import agree, share_statistics, summed, synchronize_norms
from .progress import Progress
from .recipe import Recipe
from .records import Records
from .result import DivergedError, Trained
from .stage_checks import bound_settings, check_stage
from .surroundings import (
    derived_seed,
    for_evaluation,
    settled_precision,
    surroundings,
    to_device,
    trains_in_channels_last,
)

_LOOK = 20  # steps between two waits for the device, to look at losses
_SAVE_EVERY = 600.0  # seconds, within an epoch

# What the last checkpoint of a stage holds.
_KEPT = ("epoch", "step", "learner", "sums", "cost", "history", "warnings", "best", "best_weights")

# Called with the model as it was validated, in eval mode, and the epoch's row of history.
OnEpochEnd = Callable[[nn.Module, dict[str, Any]], object]


@gradients()
def train(
    model: nn.Module,
    splits: Splits,
    recipe: Recipe,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    workers: int | None = None,
    sync_bn: bool = False,
    on_epoch_end: OnEpochEnd | None = None,
    progress: bool = False,
    title: str = "train",
) -> Trained:
    """Trains a model by a recipe. It ends with the weights of the epoch that was best on validation images.
    The caller's no_grad, inference_mode and autocast do not matter.

    Trains the parameters that require a gradient, in place. The attack computes in a copy of the model. Under
    torchrun, with a process group, DistributedDataParallel averages gradients over the processes, and counts
    and measurements are of all processes together.

    model: maps images (N, C, H, W) in [0, 1] to logits (N, classes), on the device where it is to train.
    splits: from :func:`roli_fast.data.load`. Its test images are not used.
    folder: where the run is saved; None saves nothing. It gets ``last.pt`` (all that is needed to resume),
        ``best.safetensors`` (for :func:`roli_fast.models.load_model`), ``metrics.csv``, ``recipe.json``, and
        TensorBoard files where TensorBoard is installed. A model with a folder has to come from
        :func:`roli_fast.models.create_model`.
    resume: whether to go on where a run in the folder was interrupted; if there is none, it begins.
    workers: number of processes that decode images; see :class:`roli_fast.data.Loader`.
    sync_bn: whether BatchNorm takes its statistics over the batches of all processes.
    on_epoch_end: a function that is called in each process after an epoch has been saved, with the model as
        it was validated (in eval mode; not to be changed) and the epoch's row of history. A resumed run does
        not repeat calls.
    progress: whether to show a progress bar on stderr.
    title: what the bar calls the stage.

    Raises ValueError, before training begins, for arguments that do not fit together, and for a folder that
    has another run or one that is not to be resumed; TypeError for other splits than
        :class:`roli_fast.data.Splits`;
    :class:`DivergedError` for a loss or weight that is not finite; OSError where a file cannot be written,
    which leaves the files saved before intact.
    """
    with surroundings(model, recipe, folder, resume) as records:
        stage = _Stage(model, splits, recipe, records, resume, workers, sync_bn, on_epoch_end)
        with Progress(title, stage.total_steps, shown=progress and rank() == 0) as bar:
            return stage.run(bar)


class _Stage:
    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        recipe: Recipe,
        records: Records | None,
        resume: bool,
        workers: int | None,
        sync_bn: bool,
        on_epoch_end: OnEpochEnd | None,
    ):
        self.recipe, self.on_epoch_end = recipe, on_epoch_end
        self.device = device_of(model)
        check_stage(model, splits, recipe, sync_bn)
        self.channels_last = recipe.channels_last and trains_in_channels_last(model)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        model = model.to(memory_format=layout)
        self.model = synchronize_norms(model) if sync_bn and world_size() > 1 else model
        self.loader = Loader(
            splits.train, recipe.batch_size // world_size(), train=True, seed=recipe.seed, workers=workers
        )
        self.total_steps = recipe.epochs * len(self.loader)
        self.records = records
        saved = None
        if records is not None:
            saved = records.open(bound_settings(model, recipe, splits), resume, _KEPT)
        self.precision = settled_precision(self.model, self.loader, recipe, records)
        self.learner = Learner(self.model, recipe, self.precision, len(self.loader))
        self.attack = None
        if recipe.attack != "none":
            self.attack = TrainingAttack(self.model, recipe, self.precision)
        validation = for_evaluation(splits.val, recipe, workers)
        self.history = History(recipe, validation, self.precision, self.device)
        self.epoch = self.step = 0
        self.warnings: list[str] = []
        self._begin_epoch()
        if saved:
            self._restore(saved)

    # --- epochs --------------------------------------------------------------------------------------------

    def run(self, progress: Progress) -> Trained:
        self.progress = progress
        self.last_save = time.monotonic()
        attacks = "" if self.attack is None else f"attacks in {self.precision}, "
        progress.note(f"{attacks}training in {str(self.learner.amp_dtype).removeprefix('torch.')}")
        if self.channels_last != self.recipe.channels_last:
            progress.note(
                "in torch's default memory layout: in channels-last, its library for CPUs (oneDNN) gets "
                "gradients of this network's smallest convolutions wrong"
            )
        if self.records is not None and not self.records.has_tensorboard:
            progress.note("no events for TensorBoard: pip install 'roli-fast[train]'")
        progress.advance(self.epoch * len(self.loader) + self.step)
        while not self._is_done():
            self._train_epoch()
            self._finish_epoch()
        self.model.load_state_dict(self.history.best_weights)
        return self.history.finish(self.model, self.records, self.warnings)

    def _is_done(self) -> bool:
        """The same in all processes, since they share the validation results."""
        patience, best = self.recipe.patience, self.history.best
        if patience is not None and best is not None and self.epoch - 1 - best >= patience:
            return True
        return self.epoch == self.recipe.epochs

    def _begin_epoch(self) -> None:
        self.step = 0
        self.sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, hits, images
        self.unseen: list[tuple[int, Tensor, Tensor]] = []  # step, loss, index: not looked at yet

    def _train_epoch(self) -> None:
        self.learner.train()
        self.looked = time.monotonic()
        batches = self.loader.epoch(self.epoch, start=self.step)
        keys = self._keys()
        while self.step < len(self.loader):
            with self.history.watch("data"):
                images, labels, index = next(batches)
            key = keys[self.step : self.step + 1]
            batch = to_device(images, labels, self.device, self.channels_last)
            loss = self._train_step(*batch, index.to(self.device, non_blocking=True), key)
            self.unseen.append((self.step, loss, index))
            self.step += 1
            if self.step % _LOOK == 0 or self.step == len(self.loader):
                self._look()
            if self._is_time_to_save():
                self._look()
                self._save()

    def _is_time_to_save(self) -> bool:
        """Agreed between processes, which all save at the same step."""
        if self.records is None or self.step == len(self.loader):
            return False
        if world_size() > 1 and self.step % _LOOK:
            return False
        return agree(time.monotonic() - self.last_save > _SAVE_EVERY)

    def _keys(self) -> Tensor:
        """The keys of an epoch's attacks: (steps,) int64."""
        random = torch.Generator().manual_seed(derived_seed(self.recipe.seed, self.epoch))
        return torch.randint(-(2**63), 2**63 - 1, (len(self.loader),), generator=random).to(self.device)

    def _train_step(self, images: Tensor, labels: Tensor, index: Tensor, key: Tensor) -> Tensor:
        """Attacks a batch and trains on it. Returns its loss before the step, ()."""
        count, number = len(images), self.epoch * len(self.loader) + self.step
        # Dropout and stochastic depth draw the same in this step, whatever ran before it.
        torch.manual_seed(derived_seed(self.recipe.seed, self.epoch, self.step, rank()))
        adversarial = images
        if self.attack is not None:
            with self.history.watch("attack"):
                self.attack.grow(number / len(self.loader))
                adversarial, forwards, gradients = self.attack(images, labels, index, key)
            self.history.cost.forwards += forwards * world_size()
            self.history.cost.input_gradients += gradients * world_size()
        with self.history.watch("training"):
            loss, right = self.learner.step(number, images, adversarial, labels)
            found = (loss * count, right.sum(), torch.full_like(loss, count))
            self.sums += torch.stack([value.double() for value in found])
        passes = count * world_size() * self.learner.forwards
        self.history.cost.forwards += passes
        self.history.cost.weight_gradients += passes if self.learner.moves_backbone else 0
        return loss

    def _look(self) -> None:
        """Waits for the device, stops at a loss that is not finite, and moves the bar on."""
        if not self.unseen:
            return
        losses = torch.stack([loss for _, loss, _ in self.unseen]).double().tolist()
        for (step, _, index), loss in zip(self.unseen, losses, strict=True):
            if not abs(loss) < float("inf"):
                raise DivergedError(self.epoch, step, index, self._kept())
        done = len(self.unseen)
        self.unseen.clear()
        loss_sum, hits, images = self.sums.tolist()
        before, self.looked = self.looked, time.monotonic()
        rate = done * self.recipe.batch_size / (self.looked - before)
        self.progress.advance(
            done,
            f" {self.epoch + 1}/{self.recipe.epochs}: {rate:.0f} images/s, loss {loss_sum / images:.3f}, "
            f"right {hits / images:.0%}",
        )

    def _finish_epoch(self) -> None:
        share_statistics(self.learner.result)
        loss, hits, images = summed(self.sums).tolist()
        facts = {"lr": self.learner.lr, "train_loss": loss / images, "train_accuracy": hits / images}
        is_best = self.history.add(facts, images, self.learner.result, self.learner.result)
        row = self.history.rows[-1]
        self.progress.epoch(row)
        warning = None if self.attack is None else overfitting(self.history.rows, self.history.val_images)
        if warning is not None:
            self.warnings.append(warning)
            self.progress.note(warning)
        if is_best:
            self._refuse_what_is_not_finite(self.history.best_weights)
            if self.records is not None:
                self.records.write_best(self.learner.result, row)
        self.epoch += 1
        self._begin_epoch()
        self._save()
        if self.records is not None:
            self.records.write_history(self.history.rows)
        if self.on_epoch_end is not None:
            self.on_epoch_end(self.learner.result.eval(), dict(row))

    # --- what is kept --------------------------------------------------------------------------------------

    def _refuse_what_is_not_finite(self, weights: dict[str, Tensor]) -> None:
        if not all(w.isfinite().all() for w in weights.values()):
            raise DivergedError(self.epoch, self.step, None, self._kept())

    def _save(self) -> None:
        self.last_save = time.monotonic()
        if self.records is None:
            return
        self._refuse_what_is_not_finite(self.model.state_dict())
        history = self.history
        history.watch.read_into(history.cost)
        self.records.write_last(
            {
                "epoch": self.epoch,
                "step": self.step,
                "learner": self.learner.state(),
                "sums": summed(self.sums.clone()),
                "cost": dataclasses.asdict(history.cost),
                "history": history.rows,
                "warnings": self.warnings,
                "best": history.best,
                "best_weights": history.best_weights,
            }
        )

    def _restore(self, saved: dict[str, Any]) -> None:
        assert self.records is not None
        try:
            self.learner.load_state(saved["learner"])
        except (RuntimeError, ValueError) as error:  # as torch says that names or shapes differ
            there = self.records.last.parent
            raise ValueError(
                f"model: got one of another structure than the run in {there}, accepted: the same"
            ) from error
        self.epoch, self.step, self.warnings = saved["epoch"], saved["step"], saved["warnings"]
        if rank() == 0:  # the sums of all processes; the others begin again at 0
            self.sums = saved["sums"].to(self.device)
        history = self.history
        history.rows, history.cost = saved["history"], Cost(**saved["cost"])
        history.best, history.best_weights = saved["best"], saved["best_weights"]

    def _kept(self) -> str:
        if self.records is None or not self.records.has_last:
            return "No checkpoint was there yet."
        return f"{self.records.last} is the last good checkpoint."
