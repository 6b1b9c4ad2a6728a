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
from .samples import beats, lowest, some_of, taken
from .verify import mean_of, predict

if TYPE_CHECKING:
    from .attack import Attack


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What an attack found and what it cost.

    adversarial: (N, ...), in the images' dtype and memory layout (float32 where the images are uint8).
    success: (N,) bool, which adversarial images fool the caller's own model. None for an attack on features,
        which have no class.
    loss: (N,) float, the caller's model's loss on the adversarial images; minus the loss where the attack is
        targeted, so that higher is always better for the attack.
    forwards, gradients: how many samples went through the model forward and backward. A sample counts as
        often as it did.
    notes: what else a user should know, such as why no CUDA graph was used.
    directed: how many samples had a gradient to follow; all, for an attack that follows none.
    undirected_by_stage: two numbers for each attack of an ensemble (for a single attack, under the name ""):
        how many samples withstood it without having had a gradient to follow, and how many it attacked.
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
        """An upper limit for how many samples withstood every attack without a gradient to follow."""
        return min((stuck for stuck, _ in self.undirected_by_stage.values()), default=0)


class Trial:
    """One call of an attack on one batch: what it works on, what it has found so far, and what it has cost.

    model: the caller's own.
    images, labels: (N, ...), and (N,) int64 or None.
    index: (N,) int64, the place of each sample in the data set.
    key: (1,) int64, from which all random numbers derive; None for an attack that needs none.
    rows: (N,) int64, 0 .. N - 1. A method's argument ``rows`` says which samples of the batch it is about.
    adversarial, fooled, loss: of each sample the best image that the model has judged, (N, ...), whether it
        fools the model, and its loss, both (N,).
    directed: (N,) bool, which samples had a gradient to follow; all, for an attack that follows none.
    forwards, gradients: how many samples went through the model forward and backward.
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
        self._attack, self.model, self.oracle, self.images = attack, model, oracle, images
        # Autograd saves labels for the backward pass, and cannot save an inference tensor.
        self.labels = labels.clone() if labels is not None and labels.is_inference() else labels
        self.rows = torch.arange(len(images), device=images.device)
        self.index = self.rows if index is None else index
        self.key = key
        self.forwards = self.gradients = 0

    # What follows is computed when it is first needed: training, which judges nothing, needs none of it.

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
        """The output of the attack's copy of the model for the clean images."""
        self.spend(len(self.images), forwards=1)
        return self.oracle.output(self.oracle.view.prepare(to_state(self.images)), WHOLE)

    def ask(self, images: Tensor) -> Tensor:
        """The output of the model itself, averaged over the attack's ``eot`` calls."""
        attack = self._attack
        self.forwards += len(images) * attack.eot
        ask = own_output if attack.label_free else predict
        return mean_of(attack.eot, lambda: ask(self.model, images, attack.output))

    def judge(self, rows: Tensor, adv: Tensor) -> Tensor:
        """Asks the model about adversarial images of these samples, and keeps those that are better than the
        samples' best so far. Returns (n,) bool: which fool the model.

        adv: (n, ...) as the attack's state, float32 or float64.
        """
        images = to_images(adv, self.images[rows])
        return self.offer(rows, images, self.ask(images))

    def offer(self, rows: Tensor, images: Tensor, output: Tensor) -> Tensor:
        """As :meth:`judge`, for images of which the model's output is known already."""
        loss = self._attack.merit(self, rows, images, output)
        fooled = self._attack.fooled(output, self.labels_of(rows))
        better = beats(fooled, loss, self.fooled[rows], self.loss[rows])
        self.adversarial[rows[better]] = images[better]
        self.fooled[rows[better]] = fooled[better]
        self.loss[rows[better]] = loss[better].to(self.loss)
        return fooled

    def spend(self, samples: int, *, forwards: int = 0, gradients: int = 0) -> None:
        """Counts passes of so many samples through the attack's copy of the model."""
        self.forwards += samples * forwards * self._attack.eot
        self.gradients += samples * gradients * self._attack.eot

    def with_room(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """These samples and, if :meth:`Oracle.room` is for more, others of the batch, in order; and which of
        them are these, (n,) bool."""
        asked = torch.zeros(len(self.rows), dtype=torch.bool, device=rows.device)
        asked[rows] = True
        computed = some_of(asked, self.oracle.room(len(rows), self.images))
        return computed, asked[computed]

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
        """(2,) int64, the seed of a run, or of an iteration in it; None for an attack without randomness."""
        if self.key is None:
            return None
        return torch.cat([self.key, torch.full_like(self.key, iteration << 32 | run)])

    def _all(self, rows: Tensor) -> bool:
        return len(rows) == len(self.images)
