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
from ..engine.modes import device_of, gradients
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
from .stage_checks import check_fits, check_splits, model_settings
from .surroundings import derived_seed, for_evaluation, settled_precision, surroundings, to_device

_KEPT = ("history", "best", "best_head")  # of a finished probing
_USED = (  # of a recipe
    *("norm", "eps", "attack", "loss", "steps", "step_size", "attack_mode", "precision"),
    *("batch_size", "channels_last", "val_steps", "seed"),
)
# Step size of a single-step attack, in multiples of eps: after it, the random start hardly matters (in L2 the
# direction is off by less than 6 degrees).
_FAR = 10


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Settings of :func:`probe`.

    rounds: number of rounds, at most. In each, all training images are attacked once; two to five are
        usually enough.
    weight_decay: strength of the L2 regularisation: the loss gets weight_decay / 2 times the squared norm of
        the weights, as they act on features scaled to a mean variance of 1. Above 0, without which the fit
        would not converge.
    other_weight_decays: further values, tried at the end on the features that were found. Each costs a fit
        and an attack on the validation images.
    tolerance: the rounds end when the loss under a fresh attack exceeds the fitted loss by no more than this
        share of it.
    steps: number of steps of each attack, from a random start. A single step goes all the way to the edge of
        the ball, which is the worst case for a linear model; on a robust backbone it gives heads about as
        robust as seven steps (docs/price.md). Several steps have size 2 eps / steps.

    Raises ValueError or TypeError for settings that are not accepted.
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


@gradients()
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
    """Adversarial linear probing (stage 1 of Hua et al. 2024) by a few rounds of attack and convex fit, where
    the paper has epochs of SGD.

    Each round attacks every training image, augmented, with the current head, and adds the adversarial
    features to those of earlier rounds. Then L-BFGS fits the head to the mean over images of the worst loss
    among an image's features, which is convex in the head. Attacks through the backbone are nearly all of
    the cost: a handful of rounds replaces twenty epochs.

    Memory, on the model's device: the features of all training images in half precision, for every round and
    once more while a round's are put together; at first, those of the clean images in single precision, too.

    model: from :func:`roli_fast.models.create_model`, on its device. Only its head is changed.
    splits: from :func:`roli_fast.data.load`. Its test images are not used.
    recipe: norm, eps, attack ("none", or any other for PGD), precision, channels_last, batch_size, val_steps
        and seed are used; the rest is ignored.
    rounds: how many rounds, and how strongly the head is regularised.
    folder, resume, workers, progress, title: as in :func:`train`. A run that was interrupted begins anew; the
        result of a finished one is read.

    Returns as :func:`train` does, with a row of history for each fit: epoch (the fit's number), attacks (how
    many rounds there were by then), weight_decay, train_loss and train_accuracy (under the last attack),
    pool_loss (the loss that was fitted), and val_clean, val_robust, images_per_second and cost as there. The
    head that is kept is the best on validation images. Under torchrun, the processes share the images.

    Raises as :func:`train` does, and ValueError for a streamed data set, which cannot be read twice in the
    same order, and for training images whose features are all alike, such as a single one.
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
        check_splits(splits, "train", "val")
        if isinstance(splits.train, ImageStream):
            refuse("splits", "a streamed set", "one in memory or in files, or a Recipe for probing")
        check_fits(model, next(iter(splits.val))[0], len(splits.classes))
        self.recipe, self.rounds, self.records, self.progress = recipe, rounds, records, progress
        settings = {name: getattr(recipe, name) for name in _USED} | {"rounds": dataclasses.asdict(rounds)}
        settings["backbone"] = fingerprint(find_classifier(model).backbone)
        settings["data"] = splits.fingerprint()
        self.saved = None
        if records is not None:
            self.saved = records.open(settings | model_settings(model), resume, _KEPT)
        self.device = device_of(model)
        if recipe.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.model = model.eval()
        self.features, self.head = split(model)
        batch = max(1, recipe.batch_size // world_size())
        # The same images in the same order in each epoch: the pool has a row for each image.
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
        """Attacks and fits in turn, until a fresh attack finds little that the fit did not know."""
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
        """Fits the head, validates it, and adds its row to history. seen: loss and accuracy on the last
        features before the fit; None to take those after it."""
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
        """Passes this process' images, augmented, through the backbone once, attacked if there is an attack.
        Returns what keep makes of each batch's features, and all labels (n,)."""
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
