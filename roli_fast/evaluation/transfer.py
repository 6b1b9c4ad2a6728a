"""How much robustness a linear head can take over from its representation (Nern et al., On Transfer of
Adversarial Robustness from Pretraining to Downstream Tasks, NeurIPS 2023)."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ..attacks import FeaturePGD, predict
from ..attacks.attack import Attack, undirected_notes
from ..attacks.inputs import as_floats, check_inputs, check_labels
from ..attacks.losses import cross_entropy
from ..engine.modes import beside
from ..models import split
from .accuracy import Accuracy
from .attack_rules import check_one_size_for_all, key_of, pooled_notes, verified
from .linear_head import Criterion, LinearHead, LossBound
from .sensitivity import (
    Sensitivity,
    bar,
    check_feature_attack,
    features_moved,
    features_of,
)
from .transfer_result import AttackOutcome, Contradictions, Transfer


def transfer(
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    feature_attack: FeaturePGD,
    attacks: Sequence[Attack],
    *,
    progress: bool = False,
) -> Transfer:
    """Estimates how much of a representation's robustness a linear head keeps. For each image: its
    sensitivity, the bound on its loss, and the criterion for keeping its class (:class:`Sensitivity`,
    :class:`LossBound`, :class:`Criterion`), next to what attacks measure. For a backbone without a trained
    head, use :func:`sensitivity`.

    model: a classifier that :func:`roli_fast.models.split` accepts; called in eval mode and left unchanged.
    batches: tuples that begin with images (N, ...) and labels (N,) int64, in a fixed order. They are moved to
        the model's device.
    feature_attack: the attack on features, such as :func:`sensitivity_attack` makes.
    attacks: attacks on the classes, such as PGD and AutoAttack, no two of the same kind, with the norm, eps
        and bounds of feature_attack.
    progress: whether to show a bar on stderr.

    All results are estimates that err to a known side. Distances are too small rather than too large, so that
    the criterion may seem to be met where it is not; robust accuracies are too high rather than too low.

    Raises ValueError for attacks that do not fit together and for no images, TypeError for a model without a
    linear head, and RuntimeError if an attack left its ball or box or if a theorem was violated, which would
    be a bug.
    """
    _check_attacks(feature_attack, attacks)
    run = _Run(model, feature_attack, attacks)
    for images, labels, *_ in bar(batches, "transfer", progress):
        images, labels = beside(model, images), beside(model, labels)
        check_inputs(images, labels, None)
        run.add(images, labels)
    return run.found()


def _check_attacks(feature_attack: FeaturePGD, attacks: Sequence[Attack]) -> None:
    check_feature_attack(feature_attack)
    names = [type(attack).__name__ for attack in attacks]
    if not attacks or len(set(names)) < len(names):
        raise ValueError(f"attacks: got {names}, accepted: at least one, each of another kind")
    for attack in attacks:
        check_one_size_for_all("attacks", attack)
        if attack.targeted or attack.label_free:
            raise ValueError(f"attacks: got {attack!r}, accepted: attacks against the labels")
        if _ball(attack) != _ball(feature_attack):
            raise ValueError(
                f"attacks: got {attack!r}, accepted: the ball and box of {feature_attack!r}: the criterion "
                "is about no other"
            )


def _ball(attack: Attack) -> tuple[str, float, tuple[float, ...]]:
    return attack.norm, float(attack.eps), tuple(attack.bounds)


class _Run:
    """Collects the results of one call, batch by batch."""

    def __init__(self, model: nn.Module, feature_attack: FeaturePGD, attacks: Sequence[Attack]):
        self._model, self._feature_attack, self._attacks = model, feature_attack, attacks
        self._features, layer = split(model)
        self._head = LinearHead.of(layer)
        self._keys = [key_of(attack) for attack in (feature_attack, *attacks)]
        self._notes: list[dict[str, None]] = [{} for _ in attacks]
        self._directed: list[list[int]] = [[] for _ in attacks]
        self._undirected: list[list[dict[str, tuple[int, int]]]] = [[] for _ in attacks]
        self._found: list[dict[str, Tensor]] = []
        self._count = 0

    def add(self, images: Tensor, labels: Tensor) -> None:
        logits = predict(self._model, as_floats(images))
        self._classes = logits.shape[1]
        check_labels(labels, self._classes)
        right = logits.argmax(dim=1) == labels
        clean, moved = features_moved(
            self._features, self._feature_attack, images, self._count, self._keys[0]
        )
        exact = self._head.logits(clean)
        found = {
            "right": right,
            "length": clean.norm(dim=1),
            "radius": self._head.radius(exact, labels),
            "constant": self._head.gaps(labels).amax(dim=1),
        } | self._at("features", clean, moved, labels)
        for number, attack in enumerate(self._attacks):
            reached, success = self._attacked(number, attack, images, labels)
            found |= self._at(str(number), clean, reached, labels)
            found[f"{number} robust"] = right & ~success
        self._found.append({name: value.cpu() for name, value in found.items()})
        self._count += len(images)

    def _attacked(self, number: int, attack: Attack, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Features where the attack arrived, and whether the model is fooled there."""
        index = self._count + torch.arange(len(images), device=images.device)
        key = self._keys[1 + number].to(images.device) if attack.draws else None
        result = attack.run(self._model, images, labels, index=index, key=key, strict=False)
        success = verified(self._model, attack, images, result.adversarial, labels)
        own = undirected_notes(result.undirected_by_stage)  # counted for all batches together
        self._notes[number] |= dict.fromkeys(note for note in result.notes if note not in own)
        self._directed[number].append(result.directed)
        self._undirected[number].append(result.undirected_by_stage)
        return features_of(self._features, result.adversarial), success

    def _at(self, name: str, clean: Tensor, reached: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What the theorems are about, at points that an attack reached."""
        before, after = self._head.logits(clean), self._head.logits(reached)
        rounding = self._head.rounding(clean, reached)
        excess = self._head.excess(clean, reached, labels)
        if not (excess <= 4 * rounding).all():  # a margin is two logits, and here are two margins
            raise RuntimeError(
                f"a margin shrank by {excess.max():.6g} more than the features' distance allows: a bug in "
                "roli_fast"
            )
        return {
            f"{name} rise": cross_entropy(after, labels) - cross_entropy(before, labels),
            f"{name} distance": (reached - clean).norm(dim=1),
            f"{name} rounding": rounding,
        }

    def found(self) -> Transfer:
        if self._count == 0:
            raise ValueError("batches: got none, accepted: at least one image")
        every = {name: torch.cat([f[name] for f in self._found]) for name in self._found[0]}
        criterion = Criterion(every["right"], every["radius"], every["features distance"])
        outcomes = tuple(self._outcome(every, criterion, number) for number in range(len(self._attacks)))
        return Transfer(
            sensitivity=Sensitivity(criterion.distance, every["length"], self._feature_attack.label),
            clean=Accuracy(every["right"]),
            classes=self._classes,
            criterion=criterion,
            feature_bound=self._bound(every, "features"),
            outcomes=outcomes,
            robust=Accuracy(torch.stack([outcome.robust.right for outcome in outcomes]).all(dim=0)),
        )

    def _outcome(self, every: dict[str, Tensor], criterion: Criterion, number: int) -> AttackOutcome:
        attack, robust = self._attacks[number], every[f"{number} robust"]
        undirected = pooled_notes(attack, self._count, self._directed[number], self._undirected[number])
        contradicted = criterion.met & ~robust
        farther = contradicted & (every[f"{number} distance"] >= criterion.radius)
        return AttackOutcome(
            name=type(attack).__name__,
            label=attack.label,
            notes=(*self._notes[number], *undirected),
            robust=Accuracy(robust),
            bound=self._bound(every, str(number)),
            contradictions=Contradictions(contradicted, farther),
        )

    def _bound(self, every: dict[str, Tensor], name: str) -> LossBound:
        rise, distance, rounding = (every[f"{name} {what}"] for what in ("rise", "distance", "rounding"))
        return LossBound(rise, distance, every["constant"], self._head.spectral_norm(), rounding)
