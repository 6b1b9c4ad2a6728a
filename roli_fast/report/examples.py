"""A few images, and what an attack made of them."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ..attacks import PGD, predict
from ..attacks.inputs import as_floats
from ..engine.modes import Model

FOOLED, WITHSTOOD = 4, 2  # at most so many of each are shown


@dataclasses.dataclass(frozen=True)
class Example:
    """An image that the model classified correctly, before and after the attack.

    index: its place among the images that were attacked.
    label: its class.
    clean, attacked: the class that the model predicts before and after; clean_confidence and
        attacked_confidence are the softmax of that class.
    """

    index: int
    label: str
    clean: str
    clean_confidence: float
    attacked: str
    attacked_confidence: float

    @property
    def fooled(self) -> bool:
        return self.attacked != self.label


# An example, and its pixels (2, C, H, W) in [0, 1], on the CPU: clean, and adversarial.
Shown = tuple[Example, Tensor]


def find_examples(
    model: Model, batches: Sequence[tuple[Tensor, Tensor]], attack: PGD, classes: Sequence[str]
) -> list[Shown]:
    """The first images that were right and are fooled, and the first that withstand. They are not chosen by
    hand."""
    fooled: list[Shown] = []
    withstood: list[Shown] = []
    first = 0
    for images, labels in batches:
        for shown in _of_batch(model, images, labels, attack, classes, first):
            (fooled if shown[0].fooled else withstood).append(shown)
        if len(fooled) >= FOOLED and len(withstood) >= WITHSTOOD:
            break
        first += len(images)
    return fooled[:FOOLED] + withstood[:WITHSTOOD]


def _of_batch(
    model: Model, images: Tensor, labels: Tensor, attack: PGD, classes: Sequence[str], first: int
) -> list[Shown]:
    clean = as_floats(images)
    before = predict(model, clean).softmax(dim=1)
    rows = (before.argmax(dim=1) == labels).nonzero().flatten()
    if len(rows) == 0:
        return []
    key = torch.zeros(1, dtype=torch.int64, device=images.device)
    adversarial = attack.run(
        model, images[rows], labels[rows], index=first + rows, key=key, strict=False
    ).adversarial
    after = predict(model, adversarial).softmax(dim=1)
    found = []
    for row, image, seen in zip(rows.tolist(), adversarial, after, strict=True):
        was, now = int(before[row].argmax()), int(seen.argmax())
        example = Example(
            index=first + row,
            label=classes[int(labels[row])],
            clean=classes[was],
            clean_confidence=before[row, was].item(),
            attacked=classes[now],
            attacked_confidence=seen[now].item(),
        )
        found.append((example, torch.stack([clean[row], image]).float().cpu()))
    return found
