"""Small problems, models and recipes."""

import torch
from torch import nn

from roli_fast.data import Splits, StoredImages
from roli_fast.engine.modes import device_of
from roli_fast.models import create_model
from roli_fast.training import Recipe
from roli_fast.training.learner import Learner

EPS = 0.25


def two_features(count: int) -> StoredImages:
    """Two classes told apart by one strong pixel, or by many weak ones that eps can overturn."""
    labels = torch.randint(0, 2, (count,))
    side = labels[:, None] * 2.0 - 1
    strong = 0.5 + 0.4 * side * (torch.rand(count, 1) < 0.9)
    weak = 0.5 + 0.15 * side.expand(-1, 20)
    images = torch.cat([strong, weak + 0.02 * torch.randn(count, 20)], dim=1).clamp(0, 1)
    return StoredImages(images.reshape(count, 1, 1, 21), labels, ["dark", "light"])


def splits_of(make, train=512, val=256, test=64) -> Splits:
    return Splits(make(train), make(val), make(test))


def linear_model(pixels=21, classes=2) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))


class Odd(nn.Module):
    """With what is random or moves in train mode, and a layer that takes no part."""

    def __init__(self, pixels=64, classes=3):
        super().__init__()
        self.flat, self.first, self.norm = nn.Flatten(), nn.Linear(pixels, 16), nn.BatchNorm1d(16)
        self.drop, self.head, self.unused = nn.Dropout(0.5), nn.Linear(16, classes), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.first(self.flat(x)).relu())))


def blobs(count: int, classes=3, channels=1) -> StoredImages:
    """Images of 8x8 bytes whose brightest corner is their class."""
    generator = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % classes
    images = torch.randint(0, 120, (count, channels, 8, 8), generator=generator)
    for c, (top, left) in enumerate([(0, 0), (0, 4), (4, 0)][:classes]):
        images[labels == c, :, top : top + 4, left : left + 4] += 90
    return StoredImages(images.to(torch.uint8), labels, [str(c) for c in range(classes)])


def small_model(classes=3, **options) -> nn.Module:
    torch.manual_seed(1)
    settings = {"in_chans": 1, "mean": (0.3,), "std": (0.3,), "channels": (8, 8, 8, 8)} | options
    return create_model("small_resnet", classes, **settings)


def recipe(**settings) -> Recipe:
    quick = {"epochs": 2, "lr": 1e-2, "batch_size": 16, "eps": 0.1, "steps": 2, "val_steps": 2}
    return Recipe(**(quick | {"precision": "fp32"} | settings))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps(model, settings, sizes=(8, 8, 8, 8, 4, 8, 4, 4)):
    """Trains on batches of these sizes. Returns losses and hits of each step, and what trained."""
    torch.manual_seed(2)
    device = device_of(model)
    learner = Learner(model, settings, settings.precision, len(sizes))
    learner.train()
    found = []
    for number, size in enumerate(sizes):
        images, adversarial = torch.rand(2, size, 1, 8, 8, device=device)
        labels = torch.randint(0, 3, (size,), device=device)
        found.append(learner.step(number, images, adversarial, labels))
    return found, learner
