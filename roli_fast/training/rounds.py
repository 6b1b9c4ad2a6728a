"""Adversarial linear probing by rounds: a few attacks on the whole set, and a convex fit between them."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.inputs import to_state
from ..checks import check_count, check_number, refuse
from ..data import ImageStream, Loader, Splits
from ..distributed import rank, world_size
from ..engine.identity import fingerprint
from ..engine.precision import get_precision
from ..evaluation import evaluate
from ..models import find_classifier, split
from .attack import TrainingAttack, validation_attack
from .checks import check_fits
from .cost import Cost, Stopwatch
from .processes import summed
from .progress import Progress
from .recipe import Recipe
from .records import Records
from .result import DivergedError, Trained, merit
from .surroundings import derived_seed, for_evaluation, settled_precision, surroundings, to_device

_ITERATIONS = 100  # of L-BFGS, which mostly needs fewer
_CHUNK = 1 << 16  # features at once
_KEPT = ("history", "best", "best_head")  # of a finished probing
_USED = (  # of a recipe
    *("norm", "eps", "attack", "loss", "steps", "step_size", "attack_mode", "precision"),
    *("batch_size", "channels_last", "val_steps", "seed"),
)
_FAR = 10  # times eps: a step after which the start no longer matters (in L2 the angle is below 6 degrees)


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Settings of :func:`probe`.

    rounds: attacks on the whole set, at most; mostly two to five are enough.
    weight_decay: half of it times the variance that the head gives each logit is added to the loss (features
        taken as equally scaled and uncorrelated). Above 0: the fit has no end without.
    other_weight_decays: tried in the end on the features found, each for a fit and an attack on validation.
    tolerance: no further round where the loss under a fresh attack is above the loss that was fitted by no
        more than this share of it.
    steps: of each attack, from a random start. A single one goes to the edge of the ball: the worst there is
        for a linear model, and on a robust backbone it gives heads about as robust as seven steps do
        (docs/price.md); several are together as long as the ball is wide.

    Raises ValueError or TypeError for what does not fit.
    """

    rounds: int = 8
    weight_decay: float = 1.0
    other_weight_decays: tuple[float, ...] = (0.3, 3.0)
    tolerance: float = 0.05
    steps: int = 1

    def __post_init__(self) -> None:
        check_count("rounds", self.rounds)
        check_count("steps", self.steps)
        check_number("tolerance", self.tolerance, 0)
        check_number("weight_decay", self.weight_decay, above=0)
        if not isinstance(self.other_weight_decays, (tuple, list)):
            refuse("other_weight_decays", repr(self.other_weight_decays), "a tuple of numbers above 0")
        for value in self.other_weight_decays:
            check_number("other_weight_decays", value, above=0)


def probe(
    model: nn.Module,
    splits: Splits,
    recipe: Recipe,
    rounds: Rounds | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    workers: int | None = None,
    progress: bool = False,
    title: str = "probe",
) -> Trained:
    """Adversarial linear probing (stage 1 of Hua et al. 2024) without an epoch of SGD.

    The worst loss of an image, over the adversarial features that were found for it, is convex in the head.
    So the head is fitted by L-BFGS to the mean of these; each round attacks every training image, augmented,
    with the head as it is, and adds the features to those found before. Attacks through the backbone are what
    probing costs, and a handful of them does what twenty epochs do.

    Memory: an image's features times the rounds, in half precision, on the model's device.

    model: of :func:`roli_fast.models.create_model`, on its device; its head is replaced, and nothing else.
    recipe: norm, eps, precision, layout, batch size, seed, validation, and whether anything attacks; what
        else it has is not looked at, and may be another where a finished stage is read.
    rounds: default Rounds().

    Returns as :func:`train`; history has a row for each fit: epoch (its number), attacks (so far),
    weight_decay, train_loss and train_accuracy under the last attack, pool_loss (what was fitted), and
    val_clean, val_robust, images_per_second and cost as there. The head with the best validation remains.
    With several processes, each has its share of the images. A stage that was interrupted begins anew; a
    finished one is read.

    Raises as :func:`train`, and ValueError for a streamed set, which has no order to come back to.
    """
    rounds = rounds or Rounds()
    recipe = dataclasses.replace(
        recipe,
        attack="none" if recipe.attack == "none" else "pgd",
        steps=rounds.steps,
        step_size=(_FAR if rounds.steps == 1 else 2 / rounds.steps) * recipe.eps,
        attack_mode="eval",  # as the features are computed
        loss="ce",
        eps_warmup_epochs=0,
    )
    with surroundings(model, recipe, folder, resume) as records:
        stage = _Probing(model, splits, recipe, rounds, records, resume, workers)
        with Progress(title, rounds.rounds, shown=progress and rank() == 0) as bar:
            return stage.run(bar)


class _Probing:
    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        recipe: Recipe,
        rounds: Rounds,
        records: Records | None,
        resume: bool,
        workers: int | None,
    ):
        if isinstance(splits.train, ImageStream):
            refuse("splits", "a streamed set", "one in memory or in files, or a Recipe for probing")
        check_fits(model, next(iter(splits.val))[0], len(splits.classes))
        self.recipe, self.rounds, self.records = recipe, rounds, records
        settings = {name: getattr(recipe, name) for name in _USED} | {"rounds": dataclasses.asdict(rounds)}
        settings["backbone"] = fingerprint(find_classifier(model).backbone)
        settings["data"] = splits.fingerprint()
        self.saved = None if records is None else records.open(settings, resume, _KEPT)
        self.device = next(model.parameters()).device
        if recipe.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.model = model.eval()
        self.features, _ = split(model)
        self.head = find_classifier(model).head
        batch = max(1, recipe.batch_size // world_size())
        # Always the same images in this process, in the same order: features found for them pile up.
        self.loader = Loader(splits.train, batch, augment=True, seed=recipe.seed, workers=workers)
        self.validation = for_evaluation(splits.val, recipe, workers)
        self.precision = settled_precision(self.model, self.loader, recipe, records)
        self.generator = torch.Generator()
        self.cost, self.watch = Cost(), Stopwatch(self.device)
        self.passed, self.rate = 0, 0.0  # images since the last row, and how many a second
        self.history: list[dict[str, Any]] = []
        self.best, self.best_head = 0, self._head()

    def run(self, progress: Progress) -> Trained:
        self.progress = progress
        if self.saved is None:
            self._probe()
            self._save()
        else:
            self._restore(self.saved)
        self.head.load_state_dict(self.best_head)
        if self.records is not None:
            self.records.restore_best(self.model, self.history[self.best])
            self.records.write_history(self.history)
        cost = sum((Cost(**row["cost"]) for row in self.history), Cost())
        return Trained(self.model, self.history, self.best, cost, [], self.precision)

    def _probe(self) -> None:
        self.progress.note(f"attacks in {self.precision}")
        clean = self._pass(0, None)
        self.mean, self.spread = self._scale_of(clean)
        pool = [self._stored(clean)]
        self._fit(pool, self.rounds.weight_decay)
        if self.recipe.attack == "none":
            self._validate(0, self.rounds.weight_decay, self._under_head(pool[0]))
        else:
            pool = self._rounds()
        for weight_decay in self.rounds.other_weight_decays:
            self._fit(pool, weight_decay)
            self._validate(self.history[-1]["attacks"], weight_decay, self._under_head(pool[-1]))

    def _rounds(self) -> list[Tensor]:
        """The adversarial features of all rounds."""
        attack = TrainingAttack(self.model, self.recipe, self.precision)
        pool: list[Tensor] = []
        for number in range(self.rounds.rounds):
            pool.append(self._stored(self._pass(number, attack)))
            fresh = self._under_head(pool[-1])
            done = number > 0 and fresh[0] <= self.fitted * (1 + self.rounds.tolerance)
            self._fit(pool, self.rounds.weight_decay)
            self._validate(number + 1, self.rounds.weight_decay, fresh)
            self.progress.advance(1)
            if done:
                break
        return pool

    @torch.no_grad()
    def _pass(self, number: int, attack: TrainingAttack | None) -> Tensor:
        """Features (n, F) of this process' images, augmented, and attacked where there is an attack."""
        key = torch.tensor([derived_seed(self.recipe.seed, number)], device=self.device)
        found, labels_seen, seen = [], [], []
        spent = torch.zeros(3, dtype=torch.int64)  # forwards, gradients, images
        batches = self.loader.epoch(number)
        for _ in range(len(self.loader)):
            with self.watch("data"):
                images, labels, index = next(batches)
            images, labels = to_device(images, labels, self.device, self.recipe.channels_last)
            if attack is not None:
                with self.watch("attack"):
                    which = index.to(self.device, non_blocking=True)
                    images, forwards, gradients = attack(images, labels, which, key)
                spent += torch.tensor([forwards, gradients, 0])
            with self.watch("training"), get_precision(self.precision).arithmetic():
                found.append(self.features(to_state(images)).float())
            labels_seen.append(labels)
            seen.append(index)
            spent += torch.tensor([len(labels), 0, len(labels)])
        self.labels = torch.cat(labels_seen)
        forwards, gradients, self.images = summed(spent.to(self.device)).tolist()
        self.cost.forwards += forwards
        self.cost.input_gradients += gradients
        self.passed += self.images
        for step, features in enumerate(found):
            if not features.isfinite().all():
                raise DivergedError(number, step, seen[step], "The head is as it was.")
        return torch.cat(found)

    # --- the fit -------------------------------------------------------------------------------------------

    def _scale_of(self, features: Tensor) -> tuple[Tensor, float]:
        """The features' mean (F,), and their standard deviation, over images and then over features."""
        sums = torch.zeros(1 + 2 * features.shape[1], dtype=torch.float64, device=self.device)
        for some in features.split(_CHUNK):  # in double precision, all would be more than what is kept
            wide = some.double()
            sums += torch.cat([sums.new_tensor([len(some)]), wide.sum(0), wide.square().sum(0)])
        mean, square = summed(sums)[1:].div(sums[0]).chunk(2)
        spread = (square - mean.square()).mean().clamp(min=1e-12).sqrt().item()
        return mean.to(features.dtype), spread

    def _stored(self, features: Tensor) -> Tensor:
        """Centred and scaled: half precision then keeps what tells images apart."""
        return ((features - self.mean) / self.spread).half()

    def _stored_head(self) -> tuple[Tensor, Tensor]:
        """Weight and bias, as they act on stored features."""
        weight, bias = self.head.weight.detach(), self.head.bias.detach()
        return weight * self.spread, bias + weight @ self.mean

    def _fit(self, pool: list[Tensor], weight_decay: float) -> None:
        """Fits the head to each image's worst loss over the pool."""
        with self.watch("training"):
            weight, bias = (tensor.requires_grad_() for tensor in self._stored_head())
            optimizer = torch.optim.LBFGS(
                [weight, bias], max_iter=_ITERATIONS, history_size=20, line_search_fn="strong_wolfe"
            )

            def closure() -> float:
                loss, for_weight, bias.grad = self._worst(pool, weight, bias)
                weight.grad = for_weight + weight_decay * weight.detach()
                return loss + 0.5 * weight_decay * weight.detach().square().sum().item()

            optimizer.step(closure)
            self.fitted, _, _ = self._worst(pool, weight, bias)
            with torch.no_grad():
                self.head.weight.copy_(weight / self.spread)
                self.head.bias.copy_(bias - self.head.weight @ self.mean)

    def _worst(self, pool: list[Tensor], weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """The mean over all images of the worst loss over the pool, and its gradients."""
        sums = torch.zeros(1 + weight.numel() + bias.numel(), dtype=torch.float64, device=self.device)
        rows = max(1, _CHUNK // len(pool))
        for labels, *features in zip(*(t.split(rows) for t in (self.labels, *pool)), strict=True):
            with torch.enable_grad():
                losses = [
                    F.cross_entropy(F.linear(f.float(), weight, bias), labels, reduction="none")
                    for f in features
                ]
                loss = torch.stack(losses).amax(0).sum()
                gradients = torch.autograd.grad(loss, (weight, bias))
            sums += torch.cat([loss.detach()[None], *(g.flatten() for g in gradients)])
        means = summed(sums) / self.images
        for_weight, for_bias = means[1:].to(weight.dtype).split([weight.numel(), bias.numel()])
        return means[0].item(), for_weight.view_as(weight), for_bias

    @torch.no_grad()
    def _under_head(self, stored: Tensor) -> tuple[float, float]:
        """Mean loss and accuracy of the head on features."""
        logits = F.linear(stored.float(), *self._stored_head())
        loss = F.cross_entropy(logits, self.labels, reduction="sum").double()
        hits = (logits.argmax(1) == self.labels).sum().double()
        loss_sum, hit_sum = summed(torch.stack([loss, hits])).tolist()
        return loss_sum / self.images, hit_sum / self.images

    # --- validation, and what is kept ----------------------------------------------------------------------

    def _validate(self, attacks: int, weight_decay: float, seen: tuple[float, float]) -> None:
        """Adds a row for the head as it is. seen: loss and accuracy in training, before the fit."""
        attack = validation_attack(self.recipe, self.precision, self.generator)
        self.generator.manual_seed(self.recipe.seed)  # all heads are held to the same starts
        with self.watch("evaluation"):
            found = evaluate(self.model, self.validation, attack, strict=False)
        self.cost.forwards += found.forwards
        self.cost.input_gradients += found.gradients
        self.watch.read_into(self.cost)
        if self.passed:
            self.rate = self.passed / (self.cost.attack + self.cost.training + self.cost.data)
            self.passed = 0
        self.history.append(
            {
                "epoch": len(self.history) + 1,
                "attacks": attacks,
                "weight_decay": weight_decay,
                "train_loss": seen[0],
                "train_accuracy": seen[1],
                "pool_loss": self.fitted,
                "val_clean": found.clean.value,
                "val_robust": None if attack is None else found.value,
                "images_per_second": self.rate,
                "cost": dataclasses.asdict(self.cost),
            }
        )
        self.cost = Cost()
        self.progress.epoch(self.history[-1])
        if len(self.history) == 1 or merit(self.history[-1]) > merit(self.history[self.best]):
            self.best, self.best_head = len(self.history) - 1, self._head()

    def _head(self) -> dict[str, Tensor]:
        return {name: value.cpu().clone() for name, value in self.head.state_dict().items()}

    def _save(self) -> None:
        if self.records is None:
            return
        self.head.load_state_dict(self.best_head)
        self.records.write_best(self.model, self.history[self.best])
        self.records.write_last({name: getattr(self, name) for name in _KEPT})

    def _restore(self, saved: dict[str, Any]) -> None:
        for name, value in saved.items():
            setattr(self, name, value)
