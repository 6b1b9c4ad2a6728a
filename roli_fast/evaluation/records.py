"""Finished batches of an evaluation, in a folder."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..checks import refuse
from ..engine.identity import digest_of, fingerprint
from ..engine.modes import Model
from ..files import PARTIAL, check_name, read_json, write, write_json


@dataclasses.dataclass
class Record:
    """What an evaluation found for one batch. Tensors are on the CPU.

    answers: (..., classes), the model's logits for the clean images and some with noise.
    surroundings: what their rounding depends on.
    broken_by: (N,) int64, for each image the number of the stage that made it wrong, or -1.
    adversarial: (N, ...), the clean image where the attack found nothing; None without an attack, and once
        the record is saved.
    forwards, gradients: how many samples went through the model forward and backward.
    directed, undirected: directed and undirected_by_stage of the batch's AttackResult.
    """

    answers: Tensor
    surroundings: str
    broken_by: Tensor
    adversarial: Tensor | None
    notes: tuple[str, ...]
    forwards: int
    gradients: int
    seconds: float
    directed: int = 0
    undirected: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SavedBatch:
    """A batch of adversarial images that an evaluation has saved.

    index: (N,) int64, the samples' places in the data set.
    adversarial: (N, ...); the clean image where the attack found no adversarial one.
    labels: (N,) int64.
    """

    index: Tensor
    adversarial: Tensor
    labels: Tensor


class Records:
    """The folder of an evaluation: ``evaluation.json`` says of what model and attack it is; each finished
    batch has a file, and a line in ``log.txt``."""

    def __init__(self, folder: Path):
        self._folder = folder

    def open(self, attack: str, model: Model, key: int, seed: int | None) -> int:
        """Begins an evaluation with this random key, or finds one to go on with: returns the key to use.

        seed: that of the caller's own generator, if there is one; None goes on with any.

        Raises ValueError if the folder has an evaluation of another attack, model or seed, or other files.
        """
        check_name("folder", self._folder)
        bound: dict[str, Any] = {"attack": attack, "model": fingerprint(model)}
        path = self._folder / "evaluation.json"
        if not path.exists():
            if self._folder.exists() and not self._folder.is_dir():
                raise ValueError(f"folder: {self._folder} is a file, accepted: a folder")
            # What an interrupted write has left is nothing.
            if self._folder.is_dir() and any(not p.name.endswith(PARTIAL) for p in self._folder.iterdir()):
                raise ValueError(f"folder: {self._folder} holds something else, accepted: a new or empty one")
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(path, bound | {"key": key, "seed": seed})
            return key
        there = read_json(path)
        if seed is not None:
            bound["seed"] = seed
        for what, value in bound.items():
            if there.get(what) != value:
                raise ValueError(
                    f"folder: {self._folder} has an evaluation of another {what} ({there.get(what)}), "
                    f"accepted: the same ({value}), or another folder"
                )
        return int(there["key"])

    def save(self, number: int, first: int, images: Tensor, labels: Tensor, record: Record) -> None:
        """Saves a batch, whole or not at all. first: the index of its first sample."""
        kept = {"broken_by": record.broken_by, "labels": labels.cpu().contiguous()}
        kept["answers"] = record.answers.contiguous()
        if record.adversarial is not None:
            kept["adversarial"] = record.adversarial.contiguous()
        facts = {"notes": record.notes} | {
            name: getattr(record, name)
            for name in ("surroundings", "forwards", "gradients", "seconds", "directed", "undirected")
        }
        metadata = {"facts": json.dumps(facts), "first": str(first), "data": digest_of(images, labels)}
        self._forget_count()
        write(self._path(number), save(kept, metadata))
        right = int((record.broken_by < 0).sum())
        cost = f"{record.seconds:.1f} s, {record.forwards} forwards, {record.gradients} gradients"
        with (self._folder / "log.txt").open("a") as log:
            log.write(f"batch {number}: {right} of {len(labels)} right, {cost}\n")

    def load(self, number: int, images: Tensor, labels: Tensor) -> Record | None:
        """The saved record of a batch; None if it is not finished. Raises ValueError if it has other data."""
        path = self._path(number)
        if not path.exists():
            return None
        tensors, metadata = _opened(path, without="adversarial")
        if metadata["data"] != digest_of(images, labels):
            raise ValueError(
                f"folder: batch {number} of {self._folder} had other images or labels, accepted: the same "
                "data in the same order and batches, or another folder"
            )
        facts: dict[str, Any] = json.loads(metadata["facts"])
        # Of a version that judged otherwise: evaluated anew.
        if "directed" not in facts or "answers" not in tensors:
            return None
        facts["notes"] = tuple(facts["notes"])
        return Record(answers=tensors["answers"], broken_by=tensors["broken_by"], adversarial=None, **facts)

    def refuse_other_model(self) -> NoReturn:
        got = f"{self._folder}, in which the model answered otherwise to the same images"
        refuse("folder", got, "one of the same model, or another folder")

    def finish(self, count: int) -> None:
        """Notes how many batches the evaluation has: an earlier one may have left more."""
        path = self._folder / "evaluation.json"
        write_json(path, read_json(path) | {"batches": count})

    def _forget_count(self) -> None:
        """Undoes :meth:`finish`, for a finished evaluation to which this one adds batches."""
        path = self._folder / "evaluation.json"
        there = read_json(path)
        if there.pop("batches", None) is not None:
            write_json(path, there)

    def batches(self) -> Iterator[SavedBatch]:
        """The saved batches, in order; of an evaluation that was interrupted, those that there are."""
        count = read_json(self._folder / "evaluation.json").get("batches")
        for path in sorted(self._folder.glob("batch-*.safetensors"))[:count]:
            tensors, metadata = _opened(path)
            labels, first = tensors["labels"], int(metadata["first"])
            if "adversarial" in tensors:
                yield SavedBatch(torch.arange(first, first + len(labels)), tensors["adversarial"], labels)

    def _path(self, number: int) -> Path:
        return self._folder / f"batch-{number:08d}.safetensors"


def saved(folder: str | Path) -> Iterator[SavedBatch]:
    """Reads the adversarial images that ``evaluate(folder=...)`` has saved, batch by batch. Together with the
    clean images, :func:`roli_fast.attacks.verify` checks them against any model.

    Raises ValueError for a folder without an evaluation, and for a file that cannot be read.
    """
    path = Path(folder)
    if not (path / "evaluation.json").exists():
        raise ValueError(f"folder: {path} has no evaluation, accepted: what evaluate(folder=...) has made")
    return Records(path).batches()


def _opened(path: Path, without: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {n: file.get_tensor(n) for n in file.keys() if n != without}, file.metadata()  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"folder: {path} cannot be read ({error}); without it, its batch is evaluated anew"
        ) from error
