"""The folder of a training stage: what is saved in it, and read from it to resume."""

import csv
import importlib.util
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from ..checks import refuse
from ..distributed import rank
from ..files import PARTIAL, locked, read_json, write, write_json
from ..models import read_metadata, save_model
from ..models.checkpoints import architecture_json
from .processes import agree, by_the_first

OF_MODEL = "model."  # prefix of the settings that say how the model was built


def check_folder(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Raises ValueError for a folder with a run that is not to be resumed, or that had other settings."""
    path = folder / "recipe.json"
    if not path.exists():
        return
    if not resume:
        refuse("folder", f"{folder}, which has a run", "a new one, or resume=True to go on there")
    there = _settings(path)
    settings = json.loads(json.dumps(settings))  # tuples as lists, as in the file
    if not any(name.startswith(OF_MODEL) for name in there):  # an earlier version's, which only weights check
        settings = {name: value for name, value in settings.items() if not name.startswith(OF_MODEL)}
    changed = [n for n in settings if there.get(n) != settings[n]]
    if changed:
        got = ", ".join(f"{name}={settings[name]!r}" for name in changed)
        accepted = ", ".join(f"{name}={there.get(name)!r}" for name in changed)
        refuse("recipe", f"{got} for the run in {folder}", f"{accepted}, as it began")


def _settings(path: Path) -> dict[str, Any]:
    there = read_json(path)
    if not isinstance(there, dict):
        refuse("folder", f"{path}, which holds no recipe", "another folder")
    return there


class Records:
    """The files of one stage. Only the first process writes, and no other run can while they are open.

    ``recipe.json``: the settings, to which the folder is bound, and the precision that was measured.
    ``last.pt``: all that is needed to resume.
    ``best.safetensors``: the model of the best epoch.
    ``metrics.csv``: a row for each epoch.
    ``lock``: held by the run that writes.
    """

    def __init__(self, folder: Path, model: nn.Module):
        try:
            architecture_json(model)
        except (TypeError, ValueError) as error:
            accepted = f"a model that can be saved, or no folder ({error})"
            refuse("folder", f"{folder} for a {type(model).__name__}", accepted)
        bytes_of_weights = sum(p.numel() * p.element_size() for p in model.parameters())
        self._needed = 12 * bytes_of_weights  # weights, two moments, an average, the best; twice; some more
        self._folder = folder
        self._recipe, self._best = folder / "recipe.json", folder / "best.safetensors"
        self.last = folder / "last.pt"
        self._began_here = False  # and not in an earlier process
        self._lock: Any = None
        self._writer: Any = None
        self._shown = 0  # rows
        self.has_tensorboard = importlib.util.find_spec("tensorboard") is not None

    @property
    def has_last(self) -> bool:
        return self.last.exists()

    def open(self, settings: dict[str, Any], resume: bool, kept: Sequence[str]) -> dict[str, Any] | None:
        """The last checkpoint of the run to resume; None if a run begins. kept: what a checkpoint must hold.

        Raises ValueError if the folder has a run that is not to be resumed, had other settings, or still
        runs; and for a checkpoint that cannot be read or that not all processes see.
        """
        by_the_first(lambda: self._bind(settings, resume))
        saved = self._read_last(kept)
        self._check_shared(saved)
        return saved

    def close(self) -> None:
        for resource in (self._writer, self._lock):
            if resource is not None:
                resource.close()

    def _check_shared(self, saved: dict[str, Any] | None) -> None:
        own = "none" if saved is None else f"one of epoch {saved.get('epoch')}, step {saved.get('step')}"
        first = agree(own)
        if own != first:
            got = f"{self.last}: process {rank()} sees {own}, the first sees {first}"
            refuse("folder", got, "a folder that all processes share")

    def _bind(self, settings: dict[str, Any], resume: bool) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = locked(self._folder / "lock")
        for unfinished in self._folder.glob(f"*{PARTIAL}"):  # a killed run's
            unfinished.unlink()
        check_folder(self._folder, settings, resume)
        if not self._recipe.exists():
            self._check_space()
            write_json(self._recipe, settings)
            self._began_here = True

    @property
    def precision(self) -> str | None:
        """The precision of this run's attacks, if it was measured already; else None."""
        return _settings(self._recipe).get("measured_precision") if rank() == 0 else None

    def note_precision(self, precision: str) -> None:
        if rank() == 0:
            write_json(self._recipe, _settings(self._recipe) | {"measured_precision": precision})

    def forget_what_never_began(self) -> None:
        """Frees the folder again, if the run began here and has saved nothing."""
        if self._began_here and not self.has_last and not self._best.exists():
            self._recipe.unlink(missing_ok=True)

    def _check_space(self) -> None:
        """Refuses a disk without room for best and last checkpoint, each beside the one that it replaces."""
        free = shutil.disk_usage(self._folder).free
        if free < self._needed:
            accepted = f"{self._needed / 2**20:.0f} MiB for checkpoints"
            refuse("folder", f"{self._folder} with {free / 2**20:.0f} MiB free", accepted)

    def _read_last(self, kept: Sequence[str]) -> dict[str, Any] | None:
        if not self.has_last:
            return None
        try:
            saved = torch.load(self.last, map_location="cpu", weights_only=True)
            missing = set(kept) - {*saved} if isinstance(saved, dict) else kept
            if missing:
                raise ValueError(f"it has no {', '.join(sorted(missing))}")
            return saved
        except Exception as error:  # what zipfile and pickle say of a broken file
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"folder: {self.last} cannot be read ({reason}), accepted: a whole one; without it the stage "
                f"begins anew, and {self._best} has the best weights so far"
            ) from error

    def write_last(self, state: dict[str, Any]) -> None:
        if rank() == 0:
            self._saving(self.last, lambda: write(self.last, lambda file: torch.save(state, file)))

    def write_best(self, model: Any, row: dict[str, Any]) -> None:
        if rank() == 0:
            facts = {name: json.dumps(row[name]) for name in ("epoch", "val_clean", "val_robust")}
            self._saving(self._best, lambda: save_model(model, self._best, facts))

    def restore_best(self, model: Any, row: dict[str, Any]) -> None:
        """Writes the best model again if the file is not of this epoch: a run may have been killed after it
        wrote one checkpoint and before it wrote the other."""
        try:
            there = read_metadata(self._best).get("epoch")
        except (OSError, ValueError):
            there = None
        if there != json.dumps(row["epoch"]):
            self.write_best(model, row)

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Writes metrics.csv, and new rows to TensorBoard."""
        if rank() != 0 or not history:
            return
        rows = [{**{k: v for k, v in row.items() if k != "cost"}, **row["cost"]} for row in history]
        text = io.StringIO()
        table = csv.DictWriter(text, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
        path = self._folder / "metrics.csv"
        self._saving(path, lambda: write(path, text.getvalue().encode()))
        self._show(rows)

    def _show(self, rows: list[dict[str, Any]]) -> None:
        """Writes rows to TensorBoard, if it is installed."""
        if not self.has_tensorboard:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=0)  # an interrupted run's rows go
        for row in rows[self._shown :]:
            for name, value in row.items():
                if value is not None and name != "epoch":
                    self._writer.add_scalar(name, value, row["epoch"])
        self._shown = len(rows)
        self._writer.flush()

    def _saving(self, path: Path, save: Any) -> None:
        try:
            save()
        except (OSError, safetensors.SafetensorError, RuntimeError) as error:
            kept = "what was saved before it is whole"
            raise OSError(f"{path} cannot be written ({error}); {kept}") from error
