"""What each computation gave that is no longer done: a batch as the public code spends it, from which one
thing after the other is taken away until it is the library's."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, cast
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roli_fast.attacks import PGD, predict
from roli_fast.data import Splits
from roli_fast.engine import AttackView, GraphRunner
from roli_fast.evaluation import evaluate
from roli_fast.models import Normalized
from roli_fast.speed.timing import interleaved, until_done
from roli_fast.training import Recipe, Rounds, probe
from roli_fast.training.attack import TrainingAttack, validation_attack
from roli_fast.training.learner import Learner

from ..baselines import recipe as public
from ..baselines.loops import torchattacks_pgd
from . import problem
from .times import BATCH

SIZE = 50  # images of each class
COLUMNS = {"full": "full finetuning", "linear": "probing by SGD", "validation": "validation"}
PUBLIC = "public code"
WEIGHTS = "no gradients of weights in the attack"
LAST = "no look at the last place's loss, nor at which was highest"
WAITING = "loss and accuracy of a step stay on the device"
FOLDED = "BatchNorm folded, once a batch"
OPS = "the attack by the library: fused ops"
OPTIMISER = "the step by the library: a fused optimiser"
LAYOUT = "channels-last"
FOOLED = "images that have been fooled leave"
GRAPHS = "CUDA graphs, of the attack and of the step"  # the only rung that a CPU has not
RUNGS = (PUBLIC, WEIGHTS, LAST, WAITING, FOLDED, OPS, OPTIMISER, LAYOUT, FOOLED, GRAPHS)

Attack = Callable[[], Tensor]
Step = Callable[[Tensor], object]


@dataclasses.dataclass(frozen=True)
class Batch:
    """images: (N, 3, H, W) in [0, 1]. labels: (N,)."""

    model: nn.Module
    recipe: Recipe
    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, method: str, data: Splits, channels_last: bool) -> "Batch":
        settings = problem.FINETUNING if method == "full" else problem.PROBING
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return cls(
            problem.backbone(0, method).to(memory_format=layout),
            Recipe(2, 1e-4, channels_last=channels_last, **settings),
            data.train.images[:BATCH].float().div(255).to(problem.DEVICE, memory_format=layout),
            data.train.labels[:BATCH].to(problem.DEVICE),
        )


def of_training(method: str, data: Splits) -> dict[str, Callable[[], object]]:
    """An attack and the step that follows, by rung."""

    def rung(
        attack: Callable[[Batch], Attack], step: Callable[[Batch], Step], channels_last: bool = False
    ) -> Callable[[], object]:
        batch = Batch.of(method, data, channels_last)
        attacked, stepped = attack(batch), step(batch)
        return lambda: stepped(attacked())

    rungs = {
        PUBLIC: rung(public_attack, public_step),
        WEIGHTS: rung(frozen_attack, public_step),
        LAST: rung(last_place, public_step),
        WAITING: rung(last_place, step_without_waiting),
        FOLDED: rung(folded_attack, step_without_waiting),
        OPS: without_graphs(rung(our_attack, step_without_waiting)),
        OPTIMISER: without_graphs(rung(our_attack, our_step)),
        LAYOUT: without_graphs(rung(our_attack, our_step, channels_last=True)),
    }
    if problem.DEVICE == "cuda":
        rungs[GRAPHS] = rung(our_attack, our_step, channels_last=True)
    return rungs


def without_graphs(call: Callable[[], object]) -> Callable[[], object]:
    def eagerly() -> object:
        with mock.patch.object(GraphRunner, "_recorder", return_value=None):
            return call()

    return eagerly


def public_attack(batch: Batch) -> Attack:
    return lambda: public.attacked(batch.model, batch.images, batch.labels, batch.recipe)


def frozen_attack(batch: Batch) -> Attack:
    def attack() -> Tensor:
        with frozen(batch.model):
            return public.attacked(batch.model, batch.images, batch.labels, batch.recipe)

    return attack


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient."""
    trained = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def last_place(batch: Batch) -> Attack:
    def attack() -> Tensor:
        batch.model.eval()
        return _last_place(batch, batch.model)

    return attack


def folded_attack(batch: Batch) -> Attack:
    normalized = cast(Normalized, batch.model)
    view = AttackView(normalized.model)
    mean, std = (t.view(1, -1, 1, 1) for t in (normalized.mean, normalized.std))
    view.confirm((batch.images - mean) / std)

    def attack() -> Tensor:
        view.refresh()
        return _last_place(batch, lambda images: view((images - mean) / std))

    return attack


def _last_place(batch: Batch, model: Callable[[Tensor], Tensor]) -> Tensor:
    recipe = batch.recipe
    return torchattacks_pgd(model, batch.images, batch.labels, recipe.eps, recipe.attack_step, recipe.steps)


def our_attack(batch: Batch) -> Attack:
    attack = TrainingAttack(batch.model, batch.recipe, batch.recipe.precision)
    index = torch.arange(len(batch.images), device=problem.DEVICE)
    key = torch.zeros(1, dtype=torch.int64, device=problem.DEVICE)
    return lambda: attack(batch.images, batch.labels, index, key).adversarial


def public_step(batch: Batch) -> Step:
    optimizer = public.optimizer_of(batch.model, batch.recipe)
    return lambda adversarial: public.step(batch.model, optimizer, adversarial, batch.labels)


def step_without_waiting(batch: Batch) -> Step:
    """The public code's, but for what it waits for."""
    optimizer = public.optimizer_of(batch.model, batch.recipe)

    def step(adversarial: Tensor) -> tuple[Tensor, Tensor]:
        batch.model.train()
        logits = batch.model(adversarial)
        loss = F.cross_entropy(logits, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach(), logits.detach().argmax(1) == batch.labels

    return step


def our_step(batch: Batch) -> Step:
    learner = Learner(batch.model, batch.recipe, batch.recipe.precision, 1)
    learner.train()
    return lambda adversarial: learner.step(0, batch.images, adversarial, batch.labels)


def of_validation(data: Splits) -> dict[str, Callable[[], object]]:
    """Of a model with a probed head, which an attack has to work for; the rungs that validation has."""
    model, recipe = problem.backbone(0, "linear"), Recipe(1, 1.0, **problem.ATTACK)
    probe(model, data, recipe, Rounds(1, other_weight_decays=()))
    model.requires_grad_(True)
    batches = list(zip(data.val.images.split(BATCH), data.val.labels.split(BATCH), strict=True))
    generator = torch.Generator(problem.DEVICE).manual_seed(0)
    stopping = validation_attack(recipe, recipe.precision, generator)
    staying = PGD(
        recipe.norm, recipe.eps, recipe.eps / 4, recipe.val_steps, iterate="best", generator=generator
    )

    def without_weights() -> None:
        with frozen(model):
            public.validate(model, data, recipe)

    def of_all_images() -> None:
        for images, labels in batches:
            images, labels = images.to(problem.DEVICE), labels.to(problem.DEVICE)
            predict(model, images.float().div(255))
            staying.run(model, images, labels)

    def of_images_left() -> None:
        evaluate(model, batches, stopping)

    rungs: dict[str, Callable[[], object]] = {
        PUBLIC: lambda: public.validate(model, data, recipe),
        WEIGHTS: without_weights,
        OPS: without_graphs(of_all_images),
        FOOLED: without_graphs(of_images_left),
    }
    if problem.DEVICE == "cuda":
        rungs[GRAPHS] = of_images_left
    return rungs


def removals(rounds: int) -> dict[str, Any]:
    """Seconds per image of each rung, by what it is a batch of, all in turns: of training, validation."""
    data = problem.splits(SIZE)
    found = {method: of_training(method, data) for method in ("full", "linear")}
    found["validation"] = of_validation(data)
    calls = {f"{column}: {rung}": [call] for column, rungs in found.items() for rung, call in rungs.items()}
    measured = interleaved(calls, rounds, 1, until_done)
    images = {"full": BATCH, "linear": BATCH, "validation": len(data.val)}
    seconds = {
        column: {
            rung: {k: v / images[column] for k, v in measured.seconds_of(f"{column}: {rung}").items()}
            for rung in rungs
        }
        for column, rungs in found.items()
    }
    return {"rounds": rounds, "other_cores_busy": measured.other_cores, "seconds_per_image": seconds}
