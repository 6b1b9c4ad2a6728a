"""Rows of docs/switching.md: gradients that are small, zero, or lead out of the box."""

import copy
import warnings

import pytest
import torch
from torch import nn

import roli_fast.compat.cleverhans as cleverhans
import roli_fast.compat.foolbox as foolbox
import roli_fast.compat.torchattacks as torchattacks
from roli_fast.attacks import verify

from ..cases import original
from . import faces
from .faces import FACES, by_apgd, by_foolbox, row


@row("Confident images")
def test_confident_images(batch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        model[1].weight.mul_(100)
        labels = model(batch[0]).argmax(1)
        margins = model(batch[0]).topk(2).values.diff(dim=1).abs()[:, 0]
    sure = (margins > 17) & (margins < 90)
    assert sure.any()
    images = batch[0][sure].double().requires_grad_()
    exact = nn.functional.cross_entropy(copy.deepcopy(model).double()(images), labels[sure], reduction="sum")
    (gradient,) = torch.autograd.grad(exact, images)

    def wrong(library):
        found = library.FGSM(model, eps=0.1)(batch[0], labels)[sure]
        moved = (found - batch[0][sure]).sign()
        return ((moved != gradient.sign()) & (moved != 0)).double().mean().item()

    assert wrong(torchattacks) == 0
    assert wrong(original("torchattacks")) > 0.05


def test_zero_gradients(batch):
    class Half(nn.Module):
        """Of constant output for all images but the first."""

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            return self.linear(x.flatten(1)) * (torch.arange(len(x)) == 0)[:, None]

    for kind in (torchattacks.MIFGSM, torchattacks.PGDL2, torchattacks.BIM):
        attack = kind(Half().eval(), eps=0.1, alpha=0.05, steps=2)
        attack.random_start = False
        found = attack(*batch)
        assert found.isfinite().all()
        assert not torch.equal(found[0], batch[0][0])
        torch.testing.assert_close(found[1:], batch[0][1:])


@row("Small gradients")
def test_small_gradients():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        model[1].weight.mul_(1e-9)
    images = torch.full((5, 1, 8, 8), 0.5)
    attack = torchattacks.PGDL2(model, eps=1.0, alpha=0.3, steps=1, random_start=False)
    length = (attack(images, torch.zeros(5, dtype=torch.int64)) - images).flatten(1).norm(dim=1)
    torch.testing.assert_close(length, torch.full((5,), 0.3))
    attack = original("torchattacks").PGDL2(model, eps=1.0, alpha=0.3, steps=1, random_start=False)
    length = (attack(images, torch.zeros(5, dtype=torch.int64)) - images).flatten(1).norm(dim=1)
    assert (length < 0.299).all()
    call = {"eps": 0.3, "norm": 2, "y": torch.zeros(5, dtype=torch.int64)}
    lengths = [
        (library.fast_gradient_method(model, images, **call).detach() - images).flatten(1).norm(dim=1)
        for library in (cleverhans, original("cleverhans"))
    ]
    torch.testing.assert_close(lengths[0], torch.full((5,), 0.3))
    assert (lengths[1] < 0.299).all()


@row("No gradient")
@pytest.mark.parametrize("attack", [*FACES[:-1], by_apgd])
def test_no_gradient(attack, batch):
    """Of a last image, which a user's loop attacks alone."""
    dead = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Threshold(100.0, 0.0)).eval()
    image, label = batch[0][:1], torch.zeros(1, dtype=torch.int64)
    with warnings.catch_warnings(record=True) as said:
        found = attack(dead, image, label)
    assert (found - image).norm() <= 0.5 * (1 + 1e-6)
    if attack in (by_foolbox, by_apgd):
        assert "1 of 1 images withstood without a gradient to follow" in str(said[-1].message)
        assert said[-1].filename == faces.__file__


def test_no_gradient_for_an_image_of_an_ensemble(net, batch):
    """Square breaks it, which needs none."""

    class Stairs(nn.Module):
        def forward(self, x):
            return net.eval()((x * 20).round() / 20)

    labels = Stairs()(batch[0]).argmax(1)
    ensemble = torchattacks.AutoAttack(Stairs(), eps=1.0)
    with pytest.warns(UserWarning, match="images withstood without a gradient"):
        found = ensemble(batch[0], labels)
    assert (Stairs()(found).argmax(1) != labels).any()


@row("Clipped images")
def test_clipped_images(digits_subject):
    s = digits_subject.first(40)
    wrapped = foolbox.PyTorchModel(s.model, bounds=(0, 1), device="cpu")
    for kind, norm in (("LinfPGD", "linf"), ("L2PGD", "l2"), ("L1PGD", "l1")):
        eps = getattr(s, norm)
        found, clipped, _ = getattr(foolbox.attacks, kind)()(wrapped, s.images, s.labels, epsilons=eps)
        assert torch.equal(found, clipped)
        assert verify(s.model, s.images, found, s.labels, norm, eps * (1 + 1e-6)).in_ball.all()
