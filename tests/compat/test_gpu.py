"""The faces on a GPU, where the third batch of a shape is a graph's alone."""

import math

import pytest
import torch

import roli_fast.compat.cleverhans as cleverhans
import roli_fast.compat.foolbox as foolbox
import roli_fast.compat.torchattacks as torchattacks
from roli_fast.attacks import verify
from roli_fast.compat import art
from roli_fast.models import Normalized, small_resnet

from .cases import StandIn

pytestmark = pytest.mark.gpu

DEVICE = "cuda"


@pytest.fixture
def model():
    return Normalized(small_resnet(10), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).to(DEVICE).train()


@pytest.fixture
def batch():
    return torch.rand(32, 3, 32, 32, device=DEVICE), torch.arange(32, device=DEVICE) % 10


@pytest.mark.parametrize(
    "name", ["FGSM", "FFGSM", "RFGSM", "BIM", "PGD", "PGDL2", "EOTPGD", "MIFGSM", "TPGD"]
)
def test_torchattacks(model, batch, name):
    images, labels = batch
    attack = getattr(torchattacks, name)(model)
    norm = "l2" if name == "PGDL2" else "linf"
    for eps in (attack.eps, attack.eps, 2 * attack.eps, 2 * attack.eps):
        attack.eps = eps
        found = attack(images, labels)
        assert verify(model, images, found, labels, norm, eps).in_ball.all()
        assert (found - images).abs().max() > 0
    notes = attack._made().run(model, images, labels).notes
    assert not any("graph" in note for note in notes), notes


@pytest.mark.parametrize(
    "name", ["LinfPGD", "L2PGD", "L1PGD", "MIFGSM", "L2MomentumIterativeFastGradientMethod"]
)
def test_foolbox(model, batch, name):
    attack = getattr(foolbox.attacks, name)(steps=3)
    eps = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}[attack.norm]
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=DEVICE)
    epsilons = [eps, eps / 2, eps, eps / 4]
    found, _, fooled = attack(wrapped, *batch, epsilons=epsilons)
    for images, is_adv, epsilon in zip(found, fooled, epsilons, strict=True):
        checked = verify(model, batch[0], images, batch[1], attack.norm, epsilon * (1 + 1e-6))
        assert torch.equal(checked.success, is_adv)


@pytest.mark.parametrize("norm", [math.inf, 2])
def test_cleverhans(model, batch, norm):
    images, labels = batch
    for _ in range(3):
        found = cleverhans.projected_gradient_descent(
            model, images, 0.1, 0.05, 3, norm, clip_min=0.0, clip_max=1.0, y=labels
        )
        assert verify(model, images, found, labels, "linf" if norm == math.inf else "l2", 0.1).in_ball.all()


def test_masks_of_art(model, batch):
    """Of several batches, of which the later ones are replays, each has its own."""
    images, labels = (tensor.cpu().repeat(6, *[1] * (tensor.dim() - 1)).numpy() for tensor in batch)
    classifier = StandIn(model, torch.nn.CrossEntropyLoss(), (3, 32, 32), 10, clip_values=(0.0, 1.0))
    classifier.device = torch.device(DEVICE)
    mask = (torch.rand(len(images), 1, 32, 32) > 0.5).numpy()
    settings = {"norm": 2, "eps": 0.5, "eps_step": 0.2, "max_iter": 3, "batch_size": 32, "verbose": False}
    for starts in (0, 1):
        attack = art.ProjectedGradientDescent(classifier, num_random_init=starts, **settings)
        change = attack.generate(images, labels, mask=mask) - images
        assert (change[~mask.repeat(3, axis=1)] == 0).all()
        moved = torch.from_numpy(change).flatten(1).norm(dim=1)
        assert (moved <= 0.5 * (1 + 1e-5)).all()
        assert (moved > 0.2).all()
