"""Models and images on which faces and originals meet."""

import copy
import dataclasses
import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..selection import slow


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model in eval mode, images (N, C, H, W) in [0, 1] with their labels, and sizes at which some
    of them withstand."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    linf: float
    l2: float
    l1: float

    def double(self) -> "Subject":
        model = copy.deepcopy(self.model).double()
        return dataclasses.replace(self, model=model, images=self.images.double())

    def first(self, count: int) -> "Subject":
        return dataclasses.replace(self, images=self.images[:count], labels=self.labels[:count])


def _digits() -> Subject:
    """The demo's digits, and a small network with BatchNorm."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 16, 10),
    )
    return _trained(model, epochs=8)


def _demo() -> Subject:
    """The demo's digits and its network."""
    from roli_fast.models import Normalized, small_resnet

    torch.manual_seed(0)
    return _trained(Normalized(small_resnet(10, in_chans=1), mean=(0.305,), std=(0.376,)), epochs=2)


def _trained(model: nn.Module, epochs: int) -> Subject:
    """On the digits, for some seconds."""
    from roli_fast.attacks import FGSM
    from roli_fast.data import digits

    splits = digits()
    images, labels = splits.train.images, splits.train.labels
    optimizer, attack = torch.optim.Adam(model.parameters(), 3e-3), FGSM(eps=0.15)
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(model(attack(model, images[rows], labels[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    test = splits.test.images, splits.test.labels
    return Subject(model.eval(), *test, linf=0.15, l2=0.8, l1=3.0)


def _cifar10() -> Subject:
    real = importlib.import_module("benchmarks.real")
    images, labels = real.cifar10("test", per_class=20)
    mixed = torch.arange(len(images)).reshape(10, -1).T.flatten()
    model = real.resnet4b_cifar10()
    return Subject(model, images[mixed] / 255.0, labels[mixed], linf=4 / 255, l2=0.4, l1=8.0)


def _mnist() -> Subject:
    real = importlib.import_module("benchmarks.real")
    images, labels = real.mnist()
    mixed = torch.arange(len(images)).reshape(10, -1).T.flatten()[:200]
    return Subject(real.trades_mnist(), images[mixed], labels[mixed], linf=0.3, l2=2.0, l1=10.0)


@pytest.fixture(scope="session")
def digits_subject() -> Subject:
    pytest.importorskip("sklearn")
    return _digits()


@pytest.fixture(params=["digits", *slow("demo", "resnet4b_cifar10", "trades_mnist")], scope="session")
def subject(request):
    if request.param == "digits":
        return request.getfixturevalue("digits_subject")
    if request.param == "demo":
        pytest.importorskip("sklearn")
        return _demo()
    # Not the fixture shared_data, which is made anew for every test.
    if not importlib.import_module("benchmarks.real").SHARED.exists():
        pytest.skip("../shared/data is not there")
    return {"resnet4b_cifar10": _cifar10, "trades_mnist": _mnist}[request.param]()
