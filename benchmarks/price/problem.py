"""What all of this is about: a robust ResNet-10 of ../shared/data, to classes of CIFAR-10."""

import functools

import torch
from torch import Tensor, nn

from roli_fast.data import Splits, StoredImages
from roli_fast.models import create_model, find_classifier, finetune, load_backbone

from .. import real

EPS = 4 / 255
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TESTED = 1000 if DEVICE == "cuda" else 250  # images at once
VAL, TEST = 20, 100  # images of each class
# Images of each class, validation's among them, at whose robustness every epoch is looked at, to tell when an
# arm is as robust as another: training is not told of the others, nor charged for them.
HELD_OUT = 100
ATTACK = {"eps": EPS, "precision": "fp32", "batch_size": 64}
FINETUNING = {"weight_decay": 1e-2, "warmup_epochs": 1, **ATTACK}
PROBING = {"opt": "momentum", "warmup_epochs": 1, **ATTACK}  # by SGD


@functools.cache
def splits(per_class: int) -> Splits:
    """The first images of each class train, the last validate."""
    images, labels = _training_images()
    test, test_labels = real.cifar10("test", TEST)
    names = [str(c) for c in range(10)]

    def rows(first: int, last: int) -> Tensor:
        return torch.cat([(labels == c).nonzero().flatten()[first:last] for c in range(10)])

    parts = [rows(0, per_class), rows(1000 - VAL, 1000)]
    return Splits(
        *(StoredImages(images[r], labels[r], names) for r in parts), StoredImages(test, test_labels, names)
    )


@functools.cache
def held_out() -> StoredImages:
    """Of no size's training images; the last are validation's."""
    images, labels = _training_images()
    rows = torch.cat([(labels == c).nonzero().flatten()[1000 - HELD_OUT : 1000] for c in range(10)])
    return StoredImages(images[rows], labels[rows], [str(c) for c in range(10)])


@functools.cache
def _training_images() -> tuple[Tensor, Tensor]:
    return real.cifar10("train")


def backbone(seed: int, method: str) -> nn.Module:
    torch.manual_seed(seed)
    model = create_model("resnet10_tin", 10)
    load_backbone(model, real.SHARED / "resnet10_tin200_robust.safetensors")
    find_classifier(model).reset_head(10)
    finetune(model, method)
    return model.to(DEVICE)
