"""The loop of attacks that follow a gradient: gradient, look, move."""

import dataclasses
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Unpack

from ..checks import check_count, refuse
from ..engine import AttackView
from ..engine.modes import Model
from ..engine.weakly import weakly
from .attack import Attack, never_compiled
from .inputs import to_images, to_state
from .losses import Loss, get_loss
from .options import AttackOptions
from .oracle import WHOLE, Oracle
from .samples import Best, Samples, some_of, taken
from .trial import Trial


class Batch(NamedTuple):
    """What a run starts from. A tuple of tensors and numbers, since that is what a CUDA graph takes.

    target: (N, ...), what the loss compares the output with. labels: what decides whether a sample succeeds.
    eps, step_size, sparsity: the attack's own, for these samples.
    seed: (2,) int64 of the random start; None for a start from the clean images.
    sample_index: (N,) int64, each sample's place in the data set (a tuple has a method called index).
    """

    clean: Tensor
    target: Tensor
    labels: Tensor | None
    eps: float | Tensor
    step_size: float | Tensor
    sparsity: float | Tensor
    seed: Tensor | None
    sample_index: Tensor


class Perturbed(NamedTuple):
    """What :meth:`GradientAttack.perturb` returns: adversarial images (N, ...), in the images' dtype and
    memory layout (float32 where they are uint8), and how many samples went through the model forward and
    backward."""

    adversarial: Tensor
    forwards: int
    gradients: int


@dataclasses.dataclass
class State(Samples):
    """The samples of a run in the midst of it; images are in float32 or float64.

    x: adv as the model's input, prepared by the view.
    gradient: of the loss with respect to x; None before it is computed.
    best: the best points so far; None where only the last one counts.
    """

    target: Tensor
    labels: Tensor | None
    clean: Tensor
    adv: Tensor
    x: Tensor
    gradient: Tensor | None
    eps: float | Tensor
    step_size: float | Tensor
    sparsity: float | Tensor
    best: Best | None

    def result(self) -> Tensor:
        return self.adv if self.best is None else self.best.adv


class Ascent(Oracle):
    """The loop of a :class:`GradientAttack` on one model, as a function of tensors that a CUDA graph can
    capture as a whole."""

    def __init__(self, attack: "GradientAttack", view: AttackView):
        super().__init__(attack, view)
        self._attack = weakref.proxy(attack)  # which holds this
        self._run = weakly(self._whole)

    def whole(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Runs the loop with all samples to its end: adversarial images (N, ...), and which samples had a
        gradient to follow, (N,) bool."""
        adv, directed = self.captured(self._run, WHOLE)(*batch)
        return adv, directed

    def _whole(self, *batch: Any) -> tuple[Tensor, Tensor]:
        attack = self._attack
        state = attack.begin(self, Batch(*batch))
        directed = torch.empty(0)
        with self.eager.repeated() as gradient:
            for step in range(attack.steps):
                state.gradient, loss, output = gradient(state.x, state.target)
                if step == 0:
                    directed = has_direction(state.gradient)
                if state.best is not None:
                    attack.look(state, step, loss, output)
                attack.move(self, state, step)
        if state.best is not None:
            attack.look(state, attack.steps, *self.eager.loss(state.x, state.target))
        return state.result(), directed


class GradientAttack(Attack):
    """An attack that follows the gradient of a loss for a number of steps. A subclass says how a run begins
    (:meth:`begin`), what it makes of loss and output before each step (:meth:`look`), and how it steps
    (:meth:`move`).

    steps: number of gradient steps, at least 1.
    loss: as in :class:`PGD`.
    step_size: of the first step, in pixel units, measured in the norm: a number, or a tensor () or (N,).
    sparsity: the share of a sample's elements that the first L1 step moves, above 0 and up to 1.

    Other arguments as in :class:`Attack`.
    """

    step_size: float | Tensor
    sparsity: float | Tensor
    keeps_best = True  # whether the best point of a run is its result, for which the last is looked at too

    def __init__(
        self,
        norm: str,
        eps: float | Tensor,
        steps: int,
        loss: str | Loss,
        *,
        restarts: int = 1,
        targeted: bool = False,
        **options: Unpack[AttackOptions],
    ):
        check_count("steps", steps)
        self.steps, self.loss, self._loss = steps, loss, get_loss(loss)
        super().__init__(norm, eps, restarts=restarts, targeted=targeted, **options)

    def begin(self, ascent: Ascent, batch: Batch) -> State:
        """The samples at their starting points."""
        raise NotImplementedError

    def look(self, state: State, step: int, loss: Tensor, output: Tensor) -> Tensor:
        """Takes note of loss (N,) and output before each step, and once more after the last, in a run that
        keeps its best points. Returns (N,) bool: which samples fool the model where they are."""
        raise NotImplementedError

    def move(self, ascent: Ascent, state: State, step: int) -> None:
        """Makes a step along state.gradient."""
        raise NotImplementedError

    @property
    def is_single(self) -> bool:
        """Whether a call is a single run, so that nothing has to be chosen between runs."""
        return self.restarts == 1

    def sizes(self) -> dict[str, float | Tensor]:
        return {"eps": self.eps, "step_size": self.step_size, "sparsity": self.sparsity}

    def __call__(self, model: Model, images: Tensor, labels: Tensor | None = None) -> Tensor:
        if not self.is_single or self.early_stop:
            return super().__call__(model, images, labels)
        return self.perturb(model, images, labels).adversarial

    __call__.__doc__ = Attack.__call__.__doc__

    @never_compiled
    def perturb(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        index: Tensor | None = None,
        key: Tensor | None = None,
        checked: bool = False,
    ) -> Perturbed:
        """The adversarial images of a single run, without asking the model whether they succeed: what
        training needs. Arguments as in :meth:`run`.

        checked: whether the caller answers for the values of images and labels. They are then not checked,
            and after the first batch nothing waits for the device.

        Raises ValueError for an attack with restarts or early_stop: these ask the model.
        """
        if not self.is_single or self.early_stop:
            refuse("attack", f"{self!r}", "one run without early_stop: who chooses has to judge")
        with self._alone():
            trial = self._begin(model, images, labels, index, key, checked)
            adv = to_state(images) if len(images) == 0 else self._run_whole(trial, trial.rows, 0)[0]
            return Perturbed(to_images(adv, images), trial.forwards, trial.gradients)

    def search(self, trial: Trial, rows: Tensor, run: int) -> None:
        if self.early_stop:
            self._run_stopping(trial, rows, run)
            return
        computed, asked = trial.with_room(rows)
        adv, directed = self._run_whole(trial, computed, run)
        trial.directed[rows] |= directed[asked]
        trial.judge(rows, adv[asked])

    def _oracle_of(self, view: AttackView) -> Ascent:
        return Ascent(self, view)

    def _run_whole(self, trial: Trial, rows: Tensor, run: int) -> tuple[Tensor, Tensor]:
        ascent = trial.oracle
        assert isinstance(ascent, Ascent)
        found = ascent.whole(self._batch(trial, rows, run))
        trial.spend(len(rows), forwards=self.steps + int(self.keeps_best), gradients=self.steps)
        return found

    def _run_stopping(self, trial: Trial, rows: Tensor, run: int) -> None:
        """A run that a sample leaves once it fools the model itself. The others are judged at the end."""
        ascent = trial.oracle
        assert isinstance(ascent, Ascent)
        rows, asked = trial.with_room(rows)
        state = self.begin(ascent, self._batch(trial, rows, run))
        left = Leaving(trial, rows, asked)
        for step in range(self.steps):
            state.gradient, loss, output = ascent.gradient(state.x, state.target)
            trial.spend(len(left.rows), forwards=1, gradients=1)
            if step == 0:
                trial.directed[rows] |= has_direction(state.gradient) & asked
            state = left.without(state, self.look(state, step, loss, output))
            if len(left.rows) == 0:
                return
            self.move(ascent, state, step)
        self.look(state, self.steps, *ascent.loss(state.x, state.target))
        trial.spend(len(left.rows), forwards=1)
        left.judge_all(state)

    def _batch(self, trial: Trial, rows: Tensor, run: int) -> Batch:
        target = self.loss_target(trial, run)
        return Batch(
            clean=trial.images_of(rows),
            target=target if len(rows) == len(target) else target[rows],
            labels=trial.labels_of(rows),
            eps=trial.size_of(self.eps, rows),
            step_size=trial.size_of(self.step_size, rows),
            sparsity=trial.size_of(self.sparsity, rows),
            seed=trial.seed(run),
            sample_index=trial.index[rows],
        )


class Leaving:
    """Keeps track of the samples of a run, which leave as soon as they fool the model itself.

    On a GPU, the batch shrinks to a few sizes only (:meth:`Oracle.room`). Until it could, a sample that fools
    the attack's copy of the model stays in the batch as a suspect. Then the model is asked about all places
    where it did, in order, so that the verdict is the same as if it had been asked at once.

    rows: (n,) int64, the samples that are computed with.
    asked: (n,) bool, which of these are asked for; the others fill the batch up.
    """

    def __init__(self, trial: Trial, rows: Tensor, asked: Tensor):
        self._trial, self.rows, self._asked = trial, rows, asked
        self._suspect = torch.zeros_like(asked)  # which have fooled the copy
        # Step by step, which did (m,), by their places among the rows, and with which images (m, ...).
        self._found: list[tuple[Tensor, Tensor]] = []

    def without(self, state: State, fooled: Tensor) -> State:
        """The state without those that have left. fooled: (n,) bool, which fool the copy where they are."""
        fooled = fooled & self._asked
        if not fooled.any():
            return state
        self._suspect |= fooled
        self._found.append((fooled.nonzero().flatten(), state.adv[fooled]))
        could_shrink = self._room(self._asked & ~self._suspect) < len(self.rows)
        if could_shrink or sum(len(images) for _, images in self._found) >= len(self.rows):
            self._judge_suspects()
            size = self._room(self._asked)
            if size < len(self.rows):
                kept = some_of(self._asked, size)
                self.rows, self._asked, self._suspect, state = (
                    taken(value, kept) for value in (self.rows, self._asked, self._suspect, state)
                )
        return state

    def judge_all(self, state: State) -> None:
        """Has the model judge the results of all that have not left."""
        self._judge_suspects()
        if self._asked.any():
            self._trial.judge(self.rows[self._asked], state.result()[self._asked])

    def _judge_suspects(self) -> None:
        """Suspects that fool the model are done; the others go on."""
        for places, images in self._found:
            left = self._asked[places]
            if left.any():
                places = places[left]
                self._asked[places] = ~self._trial.judge(self.rows[places], images[left])
        self._found.clear()
        self._suspect.zero_()

    def _room(self, of: Tensor) -> int:
        return self._trial.oracle.room(int(of.sum()), self._trial.images)


def has_direction(gradient: Tensor) -> Tensor:
    """(N,) bool: which samples' gradients (N, ...) have an element that is neither zero nor NaN."""
    return gradient.nan_to_num(0).reshape(len(gradient), -1).any(dim=1)
