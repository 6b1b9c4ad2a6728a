"""The loop: gradient, step, and what is kept of it."""

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..engine import AttackView, GraphRunner, InputGradient, own_output, widened
from ..engine.modes import Model
from .inputs import draw_key, to_images, to_state
from .norms import NORMS
from .verify import predict

if TYPE_CHECKING:
    from .pgd import PGD


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What an attack reached and what it spent.

    adversarial: (N, ...) in the images' dtype and layout (float32 for uint8 images).
    success: (N,) bool, by the caller's own model on ``adversarial``; None for an attack on features, which
        have no class.
    loss: (N,) float, the caller's model's loss there, as it was increased (targeted: minus the loss).
    forwards, gradients: how many samples went forward, and backward, all calls of the model counted.
    notes: what else a user should know, such as why no CUDA graph was used.
    """

    adversarial: Tensor
    success: Tensor | None
    loss: Tensor
    forwards: int
    gradients: int
    notes: tuple[str, ...] = ()


class Batch(NamedTuple):
    """What a run starts from.

    target: what the loss compares the output with; labels: what decides whether a sample is fooled.
    sparsity: of L1 steps.
    seed: (2,) int64 of the random start; None for none. which: (N,) int64, the samples' indices.
    """

    clean: Tensor
    target: Tensor
    labels: Tensor | None
    eps: float | Tensor
    step_size: float | Tensor
    sparsity: float | Tensor
    seed: Tensor | None
    which: Tensor


class Ascent:
    """An attack's loop on a view of a model, in functions of tensors that a graph can capture."""

    def __init__(self, attack: "PGD", view: AttackView):
        self._attack, self.view = attack, view
        gradient = InputGradient(view, attack.objective, precision=attack.precision, eot=attack.eot)
        self._gradient = gradient
        self._whole_runner = GraphRunner(self._whole)
        self._gradient_runner = GraphRunner(gradient)
        self._generation = view.generation

    @property
    def notes(self) -> tuple[str, ...]:
        found = (self.view.report.note, self._whole_runner.note, self._gradient_runner.note)
        return tuple(note for note in found if note)

    def whole(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Where the loop ends in which every sample takes part to the end, and which samples had a direction
        to go in (N,)."""
        run = self._whole_runner if self._captures() else self._whole
        adv, moved = run(*batch)
        return adv, moved

    def gradient(self, state: "State") -> tuple[Tensor, Tensor, Tensor]:
        """Gradient, loss and output where the samples are."""
        run = self._gradient_runner if self._captures() else self._gradient
        gradient, loss, output = run(state.x, state.target)
        return gradient, loss, output

    def output(self, images: Tensor) -> Tensor:
        """What the view makes of images."""
        return self._gradient.output(self.view.prepare(to_state(images)))

    def _captures(self) -> bool:
        """A copy can be captured; a callable may do anything between its kernels."""
        if self._generation != self.view.generation:
            self._whole_runner.clear()
            self._gradient_runner.clear()
            self._generation = self.view.generation
        return self.view.is_copy

    def _whole(self, *batch: Any) -> tuple[Tensor, Tensor]:
        state = self.begin(Batch(*batch))
        directed = torch.empty(0)
        for step in range(self._attack.steps):
            gradient, loss, output = self._gradient(state.x, state.target)
            if step == 0:
                directed = has_direction(gradient)
            self.offer(state, loss, output)
            self.step(state, gradient)
        self.finish(state)
        return state.result(), directed

    def begin(self, batch: Batch) -> "State":
        """The starting points of the samples."""
        clean, target, labels, eps, step_size, sparsity, seed, which = batch
        layout = self.view.memory_format(clean)
        if layout != torch.preserve_format:
            clean = clean.contiguous(memory_format=layout)
        adv = to_state(clean) if seed is None else self._attack.start(clean, eps, seed, which)
        momentum = None if self._attack.decay is None else torch.zeros_like(adv)
        best = Best(adv) if self._attack.iterate == "best" else None
        x = self.view.prepare(adv)
        return State(target, labels, clean, adv, x, eps, step_size, sparsity, momentum, best)

    def offer(self, state: "State", loss: Tensor, output: Tensor) -> None:
        """Keeps the samples' present places, of which loss and output are known, where they are the best."""
        if state.best is not None:
            state.best.offer(state.adv, self._attack.fooled(output, state.labels), loss)

    def step(self, state: "State", gradient: Tensor) -> None:
        mean, std = self.view.normalization(state.adv)
        out: Tensor | None = state.x
        if state.momentum is not None and self._attack.decay is not None:
            if std is not None:  # the gradient with respect to pixels, whose mean counts
                gradient = gradient / std.reshape(-1, *[1] * (gradient.dim() - 2))
            ops.momentum_(state.momentum, gradient, self._attack.decay)
            gradient, out, mean, std = state.momentum, None, None, None
        share = {}
        if self._attack.norm == "l1":
            share["sparsity"] = state.sparsity
            gradient = _movable(gradient, state.adv, *self._attack.bounds)
        NORMS[self._attack.norm].step_(
            state.adv,
            gradient,
            state.clean,
            state.step_size,
            state.eps,
            *self._attack.bounds,
            **share,
            out=out,
            mean=mean,
            std=std,
        )
        if out is None:
            state.x = self.view.prepare(state.adv)

    def finish(self, state: "State") -> None:
        """Looks at the last places too."""
        if state.best is not None:
            self.offer(state, *self._gradient.loss(state.x, state.target))


class Descent:
    """One call of an attack on one batch."""

    def __init__(
        self,
        attack: "PGD",
        model: Model,
        ascent: Ascent,
        images: Tensor,
        labels: Tensor | None,
        index: Tensor | None,
    ):
        self._attack, self._model, self._ascent, self._images = attack, model, ascent, images
        # Autograd saves labels for the backward pass, and cannot save an inference tensor.
        self._labels = labels.clone() if labels is not None and labels.is_inference() else labels
        self._rows = torch.arange(len(images), device=images.device)
        self._index = self._rows if index is None else index
        self._key = draw_key(attack.generator, images.device) if attack.random_start else None
        self._forwards = self._gradients = 0

    def unjudged(self) -> Tensor:
        """Adversarial images of a single run in which every sample takes part to the end."""
        if len(self._rows) == 0:
            return to_images(to_state(self._images), self._images)
        adv, _ = self._run_whole(self._rows, self._view_target(), 0)
        return to_images(adv, self._images)

    def judged(self) -> AttackResult:
        """All restarts, judged by the model."""
        verdict = _Verdict(self._images)
        if len(self._rows) > 0:
            self._judge_target = self._target_by_the_model(verdict.adversarial)
        rows = self._rows
        target = self._view_target() if len(rows) > 0 else None
        for restart in range(self._attack.restarts):
            if len(rows) == 0:
                break
            assert target is not None
            if self._attack.early_stop:
                self._run_stopping(rows, target[rows], restart, verdict)
                rows = (~verdict.fooled).nonzero().flatten()
            else:
                adv, directed = self._run_whole(rows, target, restart)
                verdict.directed[rows] |= directed
                self._judge(rows, adv, verdict)
        success = None if self._attack.label_free else verdict.fooled
        spent = self._forwards, self._gradients
        notes = (*self._ascent.notes, *_undirected(verdict, self._attack.compares_with_clean))
        return AttackResult(verdict.adversarial, success, verdict.loss, *spent, notes)

    def _target_by_the_model(self, images: Tensor) -> Tensor:
        """What the model's own loss compares with, by the clean images as the model is asked about them; a
        model that cannot be asked says so before the work."""
        if self._attack.compares_with_clean:
            return self._clean_target(self._ask(images))
        self._ask(images[:1])
        assert self._labels is not None
        return self._labels

    def _view_target(self) -> Tensor:
        """The same as the view sees it."""
        if not self._attack.compares_with_clean:
            assert self._labels is not None
            return self._labels
        return self._clean_target(self._ascent.output(self._images))

    def _clean_target(self, output: Tensor) -> Tensor:
        """By the output for the clean images, which says the classes too where no labels do."""
        self._forwards += len(output)
        if self._labels is None and not self._attack.label_free:
            self._labels = output.argmax(dim=1)
        return self._attack.target(output)

    def _batch(self, rows: Tensor, target: Tensor, restart: int) -> Batch:
        every = len(rows) == len(self._images)
        clean = self._images if every else self._images[rows]
        labels = self._labels if self._labels is None or every else self._labels[rows]
        eps = self._size(self._attack.eps, rows, clean)
        step_size = self._size(self._attack.step_size, rows, clean)
        sparsity = self._size(self._attack.sparsity, rows, clean)
        seed = None if self._key is None else torch.cat([self._key, torch.full_like(self._key, restart)])
        return Batch(clean, target, labels, eps, step_size, sparsity, seed, self._index[rows])

    def _size(self, size: float | Tensor, rows: Tensor, clean: Tensor) -> float | Tensor:
        if not isinstance(size, Tensor):
            return size
        size = size.to(clean.device, torch.float64 if clean.dtype == torch.float64 else torch.float32)
        return _taken(size, rows)

    def _run_whole(self, rows: Tensor, target: Tensor, restart: int) -> tuple[Tensor, Tensor]:
        found = self._ascent.whole(self._batch(rows, target, restart))
        self._spend(len(rows), self._attack.steps)
        if self._attack.iterate == "best":
            self._forwards += len(rows) * self._attack.eot
        return found

    def _run_stopping(self, rows: Tensor, target: Tensor, restart: int, verdict: "_Verdict") -> None:
        """A run that samples leave once the model itself is fooled; the rest are judged in the end."""
        state = self._ascent.begin(self._batch(rows, target, restart))
        for step in range(self._attack.steps):
            gradient, loss, output = self._ascent.gradient(state)
            if step == 0:
                verdict.directed[rows] |= has_direction(gradient)
            self._spend(len(rows), 1)
            self._ascent.offer(state, loss, output)
            leaves = self._attack.fooled(output, state.labels)
            if leaves.any():
                leaves[leaves.clone()] = self._judge(rows[leaves], state.adv[leaves], verdict)
                stays = ~leaves
                rows, state, gradient = rows[stays], state.take(stays), gradient[stays]
                if len(rows) == 0:
                    return
            self._ascent.step(state, gradient)
        self._ascent.finish(state)
        self._forwards += len(rows) * self._attack.eot
        self._judge(rows, state.result(), verdict)

    def _spend(self, samples: int, gradients: int) -> None:
        self._forwards += samples * gradients * self._attack.eot
        self._gradients += samples * gradients * self._attack.eot

    def _ask(self, images: Tensor) -> Tensor:
        """The model's own output."""
        ask = own_output if self._attack.label_free else predict
        return ask(self._model, images, self._attack.output)

    def _judge(self, rows: Tensor, adv: Tensor, verdict: "_Verdict") -> Tensor:
        """Asks the model about these states of these samples: (n,) bool, which fool it."""
        images = to_images(adv, self._images[rows])
        output = self._ask(images)
        self._forwards += len(rows)
        loss = self._attack.objective(widened(output), self._judge_target[rows])
        labels = None if self._labels is None else self._labels[rows]
        fooled = self._attack.fooled(output, labels)
        verdict.offer(rows, images, fooled, loss)
        return fooled


def has_direction(gradient: Tensor) -> Tensor:
    """(N,) bool: which samples' gradients (N, ...) have an element that is neither zero nor NaN."""
    return (gradient.abs() > 0).reshape(len(gradient), -1).any(dim=1)


def _undirected(verdict: "_Verdict", compares_with_clean: bool) -> tuple[str, ...]:
    """What is to be said of samples that withstood because the attack had no gradient to follow.

    Raises ValueError where it had none at all: that would be no robust accuracy. A loss that compares with
    the clean image has none there, as for an eps of 0.
    """
    stuck = int((~verdict.directed & ~verdict.fooled).sum())
    if stuck == 0:
        return ()
    if not verdict.directed.any() and not compares_with_clean:
        raise ValueError(
            f"model: its gradient with respect to the input is zero or NaN for all {len(verdict.directed)} "
            "images, accepted: a model that is differentiable where it is attacked (rounding, arg max and "
            "thresholds are not)"
        )
    return (f"{stuck} of {len(verdict.directed)} images withstood without a gradient to follow",)


def beats(fooled: Tensor, loss: Tensor, best_fooled: Tensor, best_loss: Tensor) -> Tensor:
    """Fooled first, then the higher loss: (N,) bool."""
    return (fooled & ~best_fooled) | ((fooled == best_fooled) & (loss > best_loss))


def _lowest(state: Tensor, samples: int) -> Tensor:
    """A loss (N,) that any other beats, as exact as the state."""
    return torch.full((samples,), -torch.inf, dtype=state.dtype, device=state.device)


class _Verdict:
    """The best images of a batch that the model has judged so far."""

    def __init__(self, images: Tensor):
        self.adversarial = to_images(to_state(images), images)
        self.fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.directed = torch.zeros_like(self.fooled)
        self.loss = _lowest(to_state(images[:0]), len(images))

    def offer(self, rows: Tensor, images: Tensor, fooled: Tensor, loss: Tensor) -> None:
        better = beats(fooled, loss, self.fooled[rows], self.loss[rows])
        self.adversarial[rows[better]] = images[better]
        self.fooled[rows[better]] = fooled[better]
        self.loss[rows[better]] = loss[better].to(self.loss)


class Best:
    """The best iterate of each sample, by what the view says of it."""

    def __init__(self, adv: Tensor):
        self.adv = adv.clone()
        self.fooled = torch.zeros(len(adv), dtype=torch.bool, device=adv.device)
        self.loss = _lowest(adv, len(adv))

    def offer(self, adv: Tensor, fooled: Tensor, loss: Tensor) -> None:
        better = beats(fooled, loss, self.fooled, self.loss)
        wins = better.to(adv.dtype)
        ops.keep_best_(self.adv, torch.zeros_like(wins), adv, wins)  # moves the winners alone
        self.fooled = torch.where(better, fooled, self.fooled)
        self.loss = torch.where(better, loss.to(self.loss), self.loss)

    def take(self, stays: Tensor) -> "Best":
        taken = Best(self.adv[stays])
        taken.fooled, taken.loss = self.fooled[stays], self.loss[stays]
        return taken


@dataclasses.dataclass
class State:
    """Where the samples of a run are."""

    target: Tensor
    labels: Tensor | None
    clean: Tensor
    adv: Tensor
    x: Tensor  # adv as the view eats it
    eps: float | Tensor
    step_size: float | Tensor
    sparsity: float | Tensor
    momentum: Tensor | None
    best: Best | None

    def take(self, stays: Tensor) -> "State":
        """Those of the samples that stay."""
        return State(
            self.target[stays],
            None if self.labels is None else self.labels[stays],
            _images_taken(self.clean, stays),
            _images_taken(self.adv, stays),
            _images_taken(self.x, stays),
            _taken(self.eps, stays),
            _taken(self.step_size, stays),
            _taken(self.sparsity, stays),
            None if self.momentum is None else _images_taken(self.momentum, stays),
            None if self.best is None else self.best.take(stays),
        )

    def result(self) -> Tensor:
        return self.adv if self.best is None else self.best.adv


def _movable(gradient: Tensor, adv: Tensor, lo: float, hi: float) -> Tensor:
    """The gradient without the elements that lead out of the box: a sparse step would spend itself on them
    and stop short of the optimum (Tramer and Boneh 2019, appendix, on clipped elements)."""
    stuck = ((adv >= hi) & (gradient > 0)) | ((adv <= lo) & (gradient < 0))
    return gradient.masked_fill(stuck, 0)


def _images_taken(images: Tensor, stays: Tensor) -> Tensor:
    """images[stays], laid out as images are."""
    if images.dim() == 4 and images.is_contiguous(memory_format=torch.channels_last):
        return images[stays].contiguous(memory_format=torch.channels_last)
    return images[stays]


def _taken(size: float | Tensor, stays: Tensor) -> float | Tensor:
    return size[stays] if isinstance(size, Tensor) and size.dim() else size
