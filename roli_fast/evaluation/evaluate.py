"""Accuracy on clean and on attacked images: by one process or several, in one go or resumed."""

import contextlib
import dataclasses
import datetime
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ..attacks import AutoAttackResult, predict
from ..attacks.attack import Attack, readable, undirected_notes
from ..attacks.inputs import as_floats, check_inputs, check_labels
from ..attacks.reliability import square_finds_more
from ..attacks.verify import mean_of
from ..checks import refuse
from ..distributed import rank, world_size
from ..engine import Output
from ..engine.identity import FEW, answers_as_before, noisy, surroundings
from ..engine.modes import Model, beside, few_or_all
from .accuracy import Accuracy
from .attack_rules import check_one_size_for_all, key_of, pooled_notes, verified
from .records import Record, Records


@dataclasses.dataclass(frozen=True)
class Evaluation(Accuracy):
    """The result of :func:`evaluate`: the robust accuracy, or without an attack the clean one. ``right`` says
    which images are right and stay right under the attack.

    clean: the accuracy without the attack.
    stages: "clean", and the names of the attacks that ran, in order.
    broken_by: (N,) int64, for each image the number of the stage that made it wrong (0: wrong as it is), or
        -1.
    label: what was run, with all settings and this package's version.
    notes: what else a user should know, such as reasons to distrust the result.
    forwards, gradients: how many samples went through the model forward and backward.
    seconds: time spent, added up over processes.
    """

    stages: tuple[str, ...]
    broken_by: Tensor
    label: str
    notes: tuple[str, ...]
    forwards: int
    gradients: int
    seconds: float

    @property
    def clean(self) -> Accuracy:
        return self.after("clean")

    def after(self, stage: str) -> Accuracy:
        """The accuracy after this stage and those before it. Raises ValueError for one that did not run."""
        if stage not in self.stages:
            raise ValueError(f"stage: got {stage!r}, accepted: {', '.join(self.stages)}")
        return Accuracy((self.broken_by < 0) | (self.broken_by > self.stages.index(stage)))


def evaluate(
    model: Model,
    batches: Iterable[tuple[Tensor, ...]],
    attack: Attack | None = None,
    *,
    output: Output = None,
    folder: str | Path | None = None,
    progress: bool = False,
    strict: bool = True,
) -> Evaluation:
    """Measures a model's accuracy in eval mode, clean or under an attack.

    Under an attack, an image counts as right if the model classifies it right both as it is and after the
    attack, as :func:`roli_fast.attacks.verify` decides. Images that are wrong as they are are not attacked.

    model: maps images (N, ...) to logits (N, classes); left unchanged.
    batches: tuples that begin with images (N, ...) and labels (N,) int64, in a fixed order. They are moved to
        the model's device. Under torchrun each process is given all batches and evaluates its share of them;
        a :class:`roli_fast.data.Loader` then needs rank=0 and world_size=1. All processes return the same
        result.
    attack: None for clean accuracy. All batches are attacked with one random key, so that the result does not
        depend on the batch size (as far as the model's own outputs do not).
    output: where the logits are in what the model returns; an attack has its own ``output``, and this is then
        left out. See :func:`roli_fast.engine.select`.
    folder: where each finished batch is saved, with its adversarial images (read them by :func:`saved`), and
        a log. Calling evaluate again with the same model, data and attack goes on after an interruption, to
        the same result; the model is asked about one batch that is finished, to see that it is the same.
        The random numbers are those with which the evaluation began, and an attack with a generator of
        another seed is refused. None saves nothing.
    progress: whether to show a bar on stderr.
    strict: whether to raise ValueError if the attack had no gradient to follow for any image, since what it
        measured is then no robustness; if not, a note says so.

    Raises ValueError for an attack that is targeted, on features, or with an eps or step size per sample; for
    an output that is not the attack's; for a Loader that gives a process its share alone; for a folder of
    another model, data set, attack or seed; and for no images. Raises RuntimeError if the attack left its
    ball or box.
    """
    _check_attack(attack)
    if attack is not None and output not in (None, attack.output):
        refuse("output", readable(output), f"None: the attack's own, {type(attack).__name__}(output=...)")
    _check_batches(batches)
    run = _Run(model, attack, attack.output if attack is not None else output, folder)
    found: dict[int, Record] = {}
    total, processes = 0, world_size()
    with _bar(batches, run.name, progress and rank() == 0) as advance:
        for number, (images, labels, *_) in enumerate(batches):
            images, labels = beside(model, images), beside(model, labels)
            check_inputs(images, labels, None)
            if number % processes == rank():
                found[number] = run.record(number, total, images, labels)
            total += len(images)
            advance(found)
    if total == 0:
        raise ValueError("batches: got none, accepted: at least one image")
    every = run.gathered(found)
    run.finish(len(every))
    return run.evaluation([every[number] for number in sorted(every)], strict)


def _check_attack(attack: Attack | None) -> None:
    if attack is None:
        return
    if not isinstance(attack, Attack):
        kind = attack if isinstance(attack, type) else type(attack)
        got = f"{'the class' if attack is kind else 'a'} {kind.__name__} of {kind.__module__}"
        refuse("attack", got, "an attack of roli_fast.attacks, such as PGD(eps=8 / 255), or None", TypeError)
    if attack.targeted or attack.label_free:
        kind = "a targeted one" if attack.targeted else f"{type(attack).__name__}, which has no success"
        raise ValueError(f"attack: got {kind}, accepted: one against the labels")
    check_one_size_for_all("attack", attack)


def _check_batches(batches: Iterable[object]) -> None:
    """Raises ValueError for a Loader of a process' share, of which it would evaluate only a share."""
    shares = getattr(batches, "world_size", 1)  # of a Loader
    if shares > 1 and world_size() > 1:
        got = f"a Loader of this process' share of {shares}"
        refuse("batches", got, "one with rank=0 and world_size=1: the processes share its batches")


class _Run:
    """One evaluation of a model."""

    def __init__(self, model: Model, attack: Attack | None, output: Output, folder: str | Path | None):
        self._model, self._attack, self._output = model, attack, output
        self.name = "clean" if attack is None else type(attack).__name__
        self._label = "clean" if attack is None else attack.label
        # What the folder is bound to. An attack's label says where the logits are; without one, this does.
        self._bound = self._label if attack is not None or output is None else f"clean, {readable(output)}"
        self._stages = ("clean",) if attack is None else attack.stages
        self._records = None if folder is None else Records(Path(folder))
        # One process may be done with its batches hours before the last, longer than a group usually waits.
        patience = datetime.timedelta(days=30)
        self._group: Any = dist.new_group(backend="gloo", timeout=patience) if world_size() > 1 else None
        self._key = self._common_key()
        self._has_answered = False  # to images of the folder, as it did when they were evaluated

    def record(self, number: int, first: int, images: Tensor, labels: Tensor) -> Record:
        """The record of a batch: from the folder if it is finished there, else measured. first: the index of
        its first sample."""
        record = None if self._records is None else self._records.load(number, images, labels)
        if record is None:
            record = self._measured(first, images, labels)
            if self._records is not None:
                self._records.save(number, first, images, labels, record)
        elif not self._has_answered:
            self._check_answers(record, images)
        # A data set's images are more than memory holds.
        return dataclasses.replace(record, adversarial=None, answers=record.answers.new_empty(0))

    def _check_answers(self, record: Record, images: Tensor) -> None:
        """Raises ValueError if the model answers otherwise to the images of a finished batch than it did: not
        all that a model computes with shows in its fingerprint."""
        assert self._records is not None
        same = record.surroundings == surroundings(images.device)
        if not answers_as_before(record.answers, lambda: self._answers(images, self._clean(images)), same):
            self._records.refuse_other_model()
        self._has_answered = True

    def _answers(self, images: Tensor, clean: Tensor) -> Tensor:
        """By what a model is known: its logits for a batch, and for some of its images with noise."""
        _, few = few_or_all(as_floats(images), FEW, lambda some: self._logits(noisy(some)))
        return torch.cat([clean, few])

    def _clean(self, images: Tensor) -> Tensor:
        return self._logits(as_floats(images))

    def _logits(self, images: Tensor) -> Tensor:
        calls = self._attack.eot if self._attack else 1
        return mean_of(calls, lambda: predict(self._model, images, self._output))

    def gathered(self, found: dict[int, Record]) -> dict[int, Record]:
        """The records of all processes."""
        if world_size() == 1:
            return found
        everyone: list[dict[int, Record]] = [{} for _ in range(world_size())]
        dist.all_gather_object(everyone, found, group=self._group)
        dist.destroy_process_group(self._group)  # a training evaluates hundreds of times
        return {number: record for of_one in everyone for number, record in of_one.items()}

    def finish(self, count: int) -> None:
        if self._records is not None and rank() == 0:
            self._records.finish(count)

    def evaluation(self, records: list[Record], strict: bool) -> Evaluation:
        broken_by = torch.cat([r.broken_by for r in records])
        notes = dict.fromkeys(note for r in records for note in r.notes)
        if self._attack is not None:
            attacked, directed = int((broken_by != 0).sum()), [r.directed for r in records]
            undirected = [r.undirected for r in records]
            notes |= dict.fromkeys(pooled_notes(self._attack, attacked, directed, undirected, strict))
        notes |= dict.fromkeys(square_finds_more(self._stages, broken_by))
        return Evaluation(
            right=broken_by < 0,
            stages=self._stages,
            broken_by=broken_by,
            label=self._label,
            notes=tuple(notes),
            forwards=sum(r.forwards for r in records),
            gradients=sum(r.gradients for r in records),
            seconds=sum(r.seconds for r in records),
        )

    def _measured(self, first: int, images: Tensor, labels: Tensor) -> Record:
        begin = time.perf_counter()
        logits = self._clean(images)
        check_labels(labels, logits.shape[1])
        broken_by = torch.where(logits.argmax(dim=1) == labels, -1, 0)
        calls = self._attack.eot if self._attack else 1
        answers = logits if self._records is None else self._answers(images, logits)
        where = surroundings(images.device)
        record = Record(answers.cpu(), where, broken_by, None, (), calls * len(images), 0, 0.0)
        if self._attack is not None:
            self._under(self._attack, first, images, labels, record)
        record.broken_by = record.broken_by.cpu()
        record.seconds = time.perf_counter() - begin
        return record

    def _under(self, attack: Attack, first: int, images: Tensor, labels: Tensor, record: Record) -> None:
        """Attacks the images that are right as they are, and adds what came of it to the record."""
        adversarial = as_floats(images)
        rows = (record.broken_by < 0).nonzero().flatten()
        if len(rows) > 0:
            index = torch.arange(first, first + len(images), device=images.device)
            key = self._key.to(images.device)
            result = attack.run(self._model, images, labels, index=index, key=key, strict=False, rows=rows)
            success = verified(self._model, attack, images[rows], result.adversarial[rows], labels[rows])
            broken = rows[success]
            record.broken_by[broken] = result.broken_by[broken] if isinstance(result, AutoAttackResult) else 1
            adversarial[broken] = result.adversarial[broken]
            record.directed, record.undirected = result.directed, result.undirected_by_stage
            own = undirected_notes(result.undirected_by_stage)  # counted for all batches together
            record.notes = tuple(note for note in result.notes if note not in own)
            record.forwards += result.forwards + len(rows) * attack.eot
            record.gradients += result.gradients
        record.adversarial = adversarial.cpu()

    def _common_key(self) -> Tensor:
        """The random key of all batches, the same in all processes; the folder's if an evaluation goes on."""
        agreed: list[int | Exception] = [0]
        if rank() == 0:
            try:
                key, seed = 0, None
                if self._attack is not None and self._attack.draws:
                    own = self._attack.generator
                    key, seed = int(key_of(self._attack)), None if own is None else own.initial_seed()
                if self._records is not None:
                    key = self._records.open(self._bound, self._model, key, seed)
                agreed = [key]
            except Exception as error:  # the other processes must not wait for it
                agreed = [error]
        if world_size() > 1:
            dist.broadcast_object_list(agreed, group=self._group)
        if isinstance(agreed[0], Exception):
            raise agreed[0]
        return torch.tensor(agreed)


@contextlib.contextmanager
def _bar(batches: Iterable[object], name: str, shown: bool) -> Iterator[Callable[[dict[int, Record]], None]]:
    """A progress bar: yields a function that moves it on by a batch, given the records so far."""
    if not shown:
        yield lambda found: None
        return
    total = len(batches) if isinstance(batches, Sized) else None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total)

        def advance(found: dict[int, Record]) -> None:
            right = torch.cat([record.broken_by for record in found.values()]) < 0
            about = f"{name}: {right.double().mean():.1%} of {len(right)} right"
            bar.update(task, advance=1, description=about)

        yield advance
