"""One call of an attack on one batch, and what comes of it."""

import dataclasses
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..engine import own_output
from ..engine.modes import Model
from .inputs import as_floats, to_images, to_state
from .oracle import WHOLE, Oracle
from .samples import beats, lowest, taken
from .verify import mean_of, predict

if TYPE_CHECKING:
    from .attack import Attack


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What an attack reached and what it spent.

    adversarial: (N, ...) in the images' dtype and layout (float32 for uint8 images).
    success: (N,) bool, by the caller's own model on ``adversarial``; None for an attack on features, which
        have no class.
    loss: (N,) float, the caller's model's loss there, as it was increased (targeted: minus the loss).
    forwards, gradients: how many samples went forward, and backward, all calls of the model counted.
    notes: what else a user should know, such as why no CUDA graph was used.
    directed: how many samples had a gradient to follow, or were attacked without one.
    undirected_by_stage: of each attack of an ensemble, or of this one, "": how many samples withstood it
        without a gradient to follow, and how many it attacked.
    """

    adversarial: Tensor
    success: Tensor | None
    loss: Tensor
    forwards: int
    gradients: int
    notes: tuple[str, ...] = ()
    directed: int = 0
    undirected_by_stage: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    @property
    def undirected(self) -> int:
        """How many samples withstood without a gradient to follow in any attack, at most."""
        return min((stuck for stuck, _ in self.undirected_by_stage.values()), default=0)


class Trial:
    """What an attack works on, what it has found so far, and what it has spent.

    images (N, ...), labels (N,) or None; index: (N,) int64, which sample of the data set each one is.
    key: (1,) int64 of all random draws; None for an attack without any.
    rows: (N,) int64, 0 .. N - 1. Where a method takes rows, it is about these samples.
    adversarial, fooled, loss: the best images of each sample that the model has judged.
    directed: (N,) bool, which samples had a gradient to follow; all of an attack that follows none.
    forwards, gradients: how many samples went through the model, and back.
    """

    def __init__(
        self,
        attack: "Attack",
        model: Model,
        oracle: Oracle,
        images: Tensor,
        labels: Tensor | None,
        index: Tensor | None,
        key: Tensor | None,
    ):
        self._attack, self._model, self.oracle, self.images = attack, model, oracle, images
        # Autograd saves labels for the backward pass, and cannot save an inference tensor.
        self.labels = labels.clone() if labels is not None and labels.is_inference() else labels
        self.rows = torch.arange(len(images), device=images.device)
        self.index = self.rows if index is None else index
        self.key = key
        self.forwards = self.gradients = 0

    # Of what is judged: training, where nobody judges, does without.

    @cached_property
    def adversarial(self) -> Tensor:
        return as_floats(self.images)

    @cached_property
    def fooled(self) -> Tensor:
        return torch.zeros(len(self.images), dtype=torch.bool, device=self.images.device)

    @cached_property
    def directed(self) -> Tensor:
        return torch.full_like(self.fooled, not self._attack.follows_gradients)

    @cached_property
    def loss(self) -> Tensor:
        return lowest(to_state(self.images[:0]), len(self.images))

    @cached_property
    def clean_output(self) -> Tensor:
        """The model's own output for the clean images."""
        return self.ask(as_floats(self.images))

    @cached_property
    def clean_view_output(self) -> Tensor:
        """The same as the view sees it."""
        self.spend(len(self.images), forwards=1)
        return self.oracle.output(self.oracle.view.prepare(to_state(self.images)), WHOLE)

    def ask(self, images: Tensor) -> Tensor:
        """The model's own output; of a random one the mean over the attack's ``eot`` calls."""
        attack = self._attack
        self.forwards += len(images) * attack.eot
        ask = own_output if attack.label_free else predict
        return mean_of(attack.eot, lambda: ask(self._model, images, attack.output))

    def judge(self, rows: Tensor, adv: Tensor) -> Tensor:
        """Asks the model about these states of these samples, and keeps what is better than what there was:
        (n,) bool, which fool it."""
        images = to_images(adv, self.images[rows])
        return self.offer(rows, images, self.ask(images))

    def offer(self, rows: Tensor, images: Tensor, output: Tensor) -> Tensor:
        """As :meth:`judge`, where the model has been asked."""
        loss = self._attack.merit(self, rows, images, output)
        fooled = self._attack.fooled(output, self.labels_of(rows))
        better = beats(fooled, loss, self.fooled[rows], self.loss[rows])
        self.adversarial[rows[better]] = images[better]
        self.fooled[rows[better]] = fooled[better]
        self.loss[rows[better]] = loss[better].to(self.loss)
        return fooled

    def spend(self, samples: int, *, forwards: int = 0, gradients: int = 0) -> None:
        """Counts what the view did with so many samples."""
        self.forwards += samples * forwards * self._attack.eot
        self.gradients += samples * gradients * self._attack.eot

    def images_of(self, rows: Tensor) -> Tensor:
        return self.images if self._all(rows) else self.images[rows]

    def labels_of(self, rows: Tensor) -> Tensor | None:
        return self.labels if self.labels is None or self._all(rows) else self.labels[rows]

    def size_of(self, size: float | Tensor, rows: Tensor) -> float | Tensor:
        """A number, or a tensor of the state's dtype."""
        if not isinstance(size, Tensor):
            return size
        dtype = torch.float64 if self.images.dtype == torch.float64 else torch.float32
        # To a GPU without waiting for it: numbers on the host are read at once, unless in pinned memory.
        at_once = self.images.is_cuda and not size.is_pinned()
        return taken(size.to(self.images.device, dtype, non_blocking=at_once), rows)

    def seed(self, run: int, iteration: int = 0) -> Tensor | None:
        """(2,) int64 for the draws of a run, or of one of its iterations; None without draws."""
        if self.key is None:
            return None
        return torch.cat([self.key, torch.full_like(self.key, iteration << 32 | run)])

    def _all(self, rows: Tensor) -> bool:
        return len(rows) == len(self.images)
