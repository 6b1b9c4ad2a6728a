"""torchattacks' attacks that consist of others."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...checks import refuse
from ...engine.modes import Model
from ..core import as_classes, as_pixels
from .attack import Attack
from .searches import APGD, APGDT, FAB, Square


class MultiAttack(Attack):
    """Runs attacks one after another, each on the images that have withstood those before.

    attacks: at least two attacks of this module, on the same model.

    Raises ValueError for others.
    """

    attacks: Sequence[Attack] = ()

    def __init__(self, attacks: Sequence[Attack], verbose: bool = False):
        _check_attacks(attacks)
        super().__init__("MultiAttack", attacks[0].model)
        self.attacks, self.verbose = attacks, verbose
        self._left: Tensor | None = None  # how many withstood each attack; None: not counted

    def check_validity(self) -> None:
        """Raises ValueError if these attacks cannot be run one after another."""
        _check_attacks(self.attacks)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            refuse("labels", None, "int64 (N,)", TypeError)
        images, labels = as_pixels(images.detach().to(self.device)), as_classes(labels.to(self.device))
        found = images.clone()
        withstood = torch.arange(len(images), device=images.device)
        left = torch.zeros(len(self.attacks) + 1, dtype=torch.int64)
        left[0] = len(images)
        for stage, attack in enumerate(self.attacks, 1):
            adversarial = attack(images[withstood], labels[withstood])
            predicted = self.get_output_with_eval_nograd(adversarial).argmax(dim=1)
            fooled = predicted != labels[withstood]
            found[withstood[fooled]] = adversarial[fooled].to(found.dtype)
            withstood = withstood[~fooled]
            left[stage] = len(withstood)
            if len(withstood) == 0:
                break
        if self._left is not None:
            self._left += left
        if self.verbose:
            print(_success_rates(left))
        return found

    def save(  # type: ignore[override]  # as the library's, with another last argument, and one value more
        self,
        data_loader: Iterable[tuple[Tensor, Tensor]],
        save_path: str | None = None,
        verbose: bool = True,
        return_verbose: bool = False,
        save_predictions: bool = False,
        save_clean_images: bool = False,
    ) -> tuple[float, list[float], float, float] | None:
        """As :meth:`Attack.save`. With ``return_verbose``, the accuracy is followed by a list: for each
        attack the share in % of images that it or an attack before it has fooled."""
        printed, self.verbose = self.verbose, False
        self._left = left = torch.zeros(len(self.attacks) + 1, dtype=torch.int64)
        try:
            result = super().save(
                data_loader, save_path, verbose, return_verbose, save_predictions, save_clean_images
            )
        finally:
            self.verbose, self._left = printed, None
        if result is None:
            return None
        accuracy, distance, seconds = result
        return accuracy, _success(left), distance, seconds

    def _successes(self) -> str:
        return "" if self._left is None else f" / {_success_rates(self._left)}"


def _check_attacks(attacks: Sequence[Attack]) -> None:
    if len(attacks) < 2:
        refuse("attacks", len(attacks), "two or more")
    for attack in attacks:
        kind = type(attack)
        if not isinstance(attack, Attack):
            refuse("attacks", f"a {kind.__module__}.{kind.__name__}", f"attacks of {__package__}")
    if len({id(attack.model) for attack in attacks}) > 1:
        refuse("attacks", "different models", "the same model for all")


def _success(left: Tensor) -> list[float]:
    """The share of images fooled after each attack, in %. left: how many images there were, and then how many
    withstood each attack."""
    return [100 * (1 - count / left[0].item()) for count in left[1:].tolist()]


def _success_rates(left: Tensor) -> str:
    return "Attack success rate: " + " | ".join(f"{rate:.2f} %" for rate in _success(left))


class AutoAttack(Attack):
    """torchattacks' ensemble, which takes 10 steps where AutoAttack takes 100; the latter is
    :class:`roli_fast.attacks.AutoAttack`. The attacks are made at construction."""

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 8 / 255,
        version: str = "standard",
        n_classes: int = 10,
        seed: float | None = None,
        verbose: bool = False,
    ):
        super().__init__("AutoAttack", model)
        self.norm, self.eps, self.version, self.n_classes = norm, eps, version, n_classes
        self.seed, self.verbose = seed, verbose
        shared: dict[str, Any] = {"norm": norm, "eps": eps, "seed": seed, "verbose": verbose}
        attacks: list[Attack]
        if version == "standard":
            attacks = [
                APGD(model, **shared),
                APGDT(model, n_classes=n_classes, **shared),
                FAB(model, multi_targeted=True, n_classes=n_classes, **shared),
                Square(model, **shared),
            ]
        elif version == "plus":
            attacks = [
                APGD(model, n_restarts=5, **shared),
                APGD(model, n_restarts=5, loss="dlr", **shared),
                FAB(model, n_restarts=5, n_classes=n_classes, **shared),
                Square(model, **shared),
                APGDT(model, n_classes=n_classes, **shared),
                FAB(model, multi_targeted=True, n_classes=n_classes, **shared),
            ]
        elif version == "rand":
            attacks = [APGD(model, loss=loss, eot_iter=20, **shared) for loss in ("ce", "dlr")]
        else:
            refuse("version", repr(version), "standard, plus, rand")
        self._autoattack: Attack = MultiAttack(attacks)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        return self._autoattack(images, labels)

    def get_seed(self) -> float:
        return time.time() if self.seed is None else self.seed
