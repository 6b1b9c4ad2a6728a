"""Adversarial linear probing by rounds: a few attacks on the whole set, and a convex fit between them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..attacks.inputs import to_state
from ..checks import check_count, check_number, plain, refuse
from ..data import ImageStream, Loader, Splits
from ..distributed import rank, world_size
from ..engine.identity import fingerprint
from ..engine.modes import device_of
from ..engine.precision import get_precision
from ..models import find_classifier, split
from .attack import TrainingAttack
from .head_fit import HeadFit
from .history import History
from .processes import summed
from .progress import Progress
from .recipe import Recipe
from .records import Records
from .result import DivergedError, Trained
from .stage_checks import check_fits
from .surroundings import derived_seed, for_evaluation, settled_precision, surroundings, to_device

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
        object.__setattr__(self, "other_weight_decays", tuple(map(plain, self.other_weight_decays)))
        for name in ("rounds", "weight_decay", "tolerance", "steps"):
            object.__setattr__(self, name, plain(getattr(self, name)))


def probe(
    model: nn.Module,
    splits: Splits,
    recipe: Recipe,
    rounds: Rounds = Rounds(),
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

    Memory, on the model's device: an image's features in half precision for each round, and once more while
    a round's are put together; at first those of the clean images in single precision besides.

    model: of :func:`roli_fast.models.create_model`, on its device; its head is replaced, and nothing else.
    recipe: norm, eps, precision, layout, batch size, seed, validation, and whether anything attacks; what
        else it has is not looked at, and may be another where a finished stage is read.
    rounds: how many attacks, and how strongly the head is regularised.

    Returns as :func:`train`; history has a row for each fit: epoch (its number), attacks (so far),
    weight_decay, train_loss and train_accuracy under the last attack, pool_loss (what was fitted), and
    val_clean, val_robust, images_per_second and cost as there. The head with the best validation remains.
    With several processes, each has its share of the images. A stage that was interrupted begins anew; a
    finished one is read.

    Raises as :func:`train`, and ValueError for a streamed set, which has no order to come back to.
    """
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
        bar = Progress(title, rounds.rounds, shown=progress and rank() == 0)
        stage = _Probing(model, splits, recipe, rounds, records, resume, workers, bar)
        with bar:
            return stage.run()


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
        progress: Progress,
    ):
        if isinstance(splits.train, ImageStream):
            refuse("splits", "a streamed set", "one in memory or in files, or a Recipe for probing")
        check_fits(model, next(iter(splits.val))[0], len(splits.classes))
        self.recipe, self.rounds, self.records, self.progress = recipe, rounds, records, progress
        settings = {name: getattr(recipe, name) for name in _USED} | {"rounds": dataclasses.asdict(rounds)}
        settings["backbone"] = fingerprint(find_classifier(model).backbone)
        settings["data"] = splits.fingerprint()
        self.saved = None if records is None else records.open(settings, resume, _KEPT)
        self.device = device_of(model)
        if recipe.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.model = model.eval()
        self.features, self.head = split(model)
        batch = max(1, recipe.batch_size // world_size())
        # Always the same images in this process, in the same order: features found for them pile up.
        self.loader = Loader(splits.train, batch, augment=True, seed=recipe.seed, workers=workers)
        self.precision = settled_precision(self.model, self.loader, recipe, records)
        validation = for_evaluation(splits.val, recipe, workers)
        self.history = History(recipe, validation, self.precision, self.device)
        self.passed = 0  # images since the last row

    def run(self) -> Trained:
        history = self.history
        if self.saved is None:
            self._probe()
        else:
            history.rows, history.best, history.best_weights = (self.saved[name] for name in _KEPT)
        self.head.load_state_dict(history.best_weights)
        if self.saved is None and self.records is not None:
            assert history.best is not None
            self.records.write_best(self.model, history.rows[history.best])
            kept = history.rows, history.best, history.best_weights
            self.records.write_last(dict(zip(_KEPT, kept, strict=True)))
        return history.finish(self.model, self.records, [])

    def _probe(self) -> None:
        self.progress.note(f"attacks in {self.precision}")
        clean, labels = self._pass(0, None, Tensor.float)
        fit = HeadFit(self.head, clean, labels)
        fit.add([fit.compact(batch) for batch in clean])
        del clean  # or they would stay for as long as the stage takes
        if self.recipe.attack == "none":
            self._try(fit, self.rounds.weight_decay, 0)
        else:
            with self.history.watch("training"):
                fit.fit(self.rounds.weight_decay)
            self._rounds(fit)
        for weight_decay in self.rounds.other_weight_decays:
            self._try(fit, weight_decay, self.history.rows[-1]["attacks"])

    def _rounds(self, fit: HeadFit) -> None:
        """Fits to the adversarial features of all rounds."""
        attack = TrainingAttack(self.model, self.recipe, self.precision)
        fit.pool.clear()
        for number in range(self.rounds.rounds):
            fit.add(self._pass(number, attack, fit.compact)[0])
            fresh = fit.on_the_last()
            done = number > 0 and fresh[0] <= fit.loss * (1 + self.rounds.tolerance)
            self._try(fit, self.rounds.weight_decay, number + 1, fresh)
            self.progress.advance(1)
            if done:
                break

    def _try(
        self, fit: HeadFit, weight_decay: float, attacks: int, seen: tuple[float, float] | None = None
    ) -> None:
        """Fits the head, and adds its row. seen: loss and accuracy in training; None for those of the fit."""
        with self.history.watch("training"):
            fit.fit(weight_decay)
        loss, accuracy = seen or fit.on_the_last()
        facts = {"attacks": attacks, "weight_decay": weight_decay}
        facts |= {"train_loss": loss, "train_accuracy": accuracy, "pool_loss": fit.loss}
        self.history.add(facts, self.passed, self.model, self.head)
        self.passed = 0
        self.progress.epoch(self.history.rows[-1])

    @torch.no_grad()
    def _pass(
        self, number: int, attack: TrainingAttack | None, keep: Callable[[Tensor], Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """What keep makes of each batch's features, and the labels, of this process' images, augmented, and
        attacked where there is an attack."""
        cost, watch = self.history.cost, self.history.watch
        key = torch.tensor([derived_seed(self.recipe.seed, number)], device=self.device)
        found, labels_seen, seen = [], [], []
        spent = torch.zeros(3, dtype=torch.int64)  # forwards, gradients, images
        batches = self.loader.epoch(number)
        for _ in range(len(self.loader)):
            with watch("data"):
                images, labels, index = next(batches)
            images, labels = to_device(images, labels, self.device, self.recipe.channels_last)
            if attack is not None:
                with watch("attack"):
                    on_device = index.to(self.device, non_blocking=True)
                    images, forwards, gradients = attack(images, labels, on_device, key)
                spent += torch.tensor([forwards, gradients, 0])
            with watch("training"), get_precision(self.precision).arithmetic():
                found.append(keep(self.features(to_state(images)).float()))
            labels_seen.append(labels)
            seen.append(index)
            spent += torch.tensor([len(labels), 0, len(labels)])
        forwards, gradients, passed = summed(spent.to(self.device)).tolist()
        cost.forwards += forwards
        cost.input_gradients += gradients
        self.passed += passed
        for step, features in enumerate(found):
            if not features.isfinite().all():
                raise DivergedError(number, step, seen[step], "The head is as it was.")
        return found, torch.cat(labels_seen)
