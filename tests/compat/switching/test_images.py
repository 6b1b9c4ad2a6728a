"""Rows of docs/switching.md: layouts, shapes and dtypes of what comes in and goes out."""

import math

import pytest
import torch
from torch import nn

import roli_fast.compat.torchattacks as torchattacks

from ..cases import original
from .faces import (
    FACES,
    by_apgd,
    by_art,
    by_autoattack,
    by_cleverhans,
    by_foolbox,
    by_torchattacks,
    every_face,
    row,
    theirs,
)


@row("Channels-last")
@every_face
def test_channels_last(attack, batch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10)).eval()
    images = torch.rand(5, 3, 8, 8)
    found = []
    for given in (images, images.to(memory_format=torch.channels_last)):
        torch.manual_seed(0)
        found.append(attack(model, given, batch[1]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)
    if attack is not by_art:  # numpy's have one layout
        assert found[1].is_contiguous(memory_format=torch.channels_last)


def test_layouts_and_shapes_in_the_original():
    call = theirs(by_torchattacks)
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10)).eval()
    images, labels = torch.rand(5, 3, 8, 8), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="view"):
        call(conv, images.to(memory_format=torch.channels_last), labels)
    flat = nn.Linear(12, 10).eval()
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        call(flat, torch.rand(5, 12), labels)


@row("Shapes")
@pytest.mark.parametrize("attack", FACES[:-1])  # Square changes squares
@pytest.mark.parametrize("shape", [(12,), (4, 6), (2, 2, 3, 2)])
def test_shapes(attack, shape):
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 10)).eval()
    images = torch.rand(5, *shape)
    found = attack(model, images, torch.zeros(5, dtype=torch.int64))
    assert found.shape == images.shape
    assert not torch.equal(found, images)


@row("Half precision")
@pytest.mark.parametrize("attack", [by_torchattacks, by_foolbox, by_cleverhans, by_autoattack])
def test_half_precision(attack, net, batch):
    images, labels = batch[0].bfloat16(), batch[1]
    found = attack(net.eval().bfloat16(), images, labels)
    assert found.dtype == torch.bfloat16
    eps = 5.0 if attack is by_autoattack else 0.5
    assert ((found - images).float().flatten(1).norm(dim=1) <= eps * (1 + 1e-3)).all()


@pytest.mark.parametrize("attack", [by_art, by_cleverhans])
def test_half_precision_in_the_original(attack, net, batch):
    call = theirs(attack)
    images = batch[0].bfloat16()
    with pytest.raises((RuntimeError, TypeError)):
        call(net.eval().bfloat16(), images, batch[1])


@row("Result")
@every_face
def test_result(attack, net, batch):
    assert not attack(net, batch[0].requires_grad_(attack is not by_art), batch[1]).requires_grad


def test_a_result_in_the_original(net, batch):
    assert theirs(by_cleverhans)(net, *batch).requires_grad


def by_an_ensemble(model, images, labels):
    attacks = [torchattacks.FGSM(model, eps=0.02), torchattacks.Square(model, eps=0.2, n_queries=20)]
    return torchattacks.MultiAttack(attacks)(images, labels)


@row("Integers")
@pytest.mark.parametrize(
    "attack", [by_torchattacks, by_apgd, by_an_ensemble, by_foolbox, by_cleverhans, by_autoattack]
)
def test_integers(attack, net, batch):
    """The same images as for what they mean, of which some are attacked, and some wrong from the start."""
    pixels = (batch[0] * 255).round().to(torch.uint8)
    labels = net.eval()(pixels / 255).argmax(1)
    labels[0] = (labels[0] + 1) % 10
    if attack is not by_cleverhans:
        expected, found = repeated(attack, net, [(pixels / 255, labels), (pixels, labels)])
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
        assert not torch.equal(found, pixels / 255)
    for dtype in (torch.uint8, torch.int32):
        expected, found = repeated(attack, net, [(batch[0], labels), (batch[0], labels.to(dtype))])
        assert torch.equal(found, expected)


def repeated(attack, model, batches):
    """From the same draws."""
    found = []
    for batch in batches:
        torch.manual_seed(0)
        found.append(attack(model, *batch))
    return found


@pytest.mark.parametrize("attack", [by_torchattacks, by_apgd, by_foolbox])
def test_integers_in_the_original(attack, net, batch):
    library = original("foolbox" if attack is by_foolbox else "torchattacks")
    pixels = (batch[0] * 255).round().to(torch.uint8)
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError, ValueError)):
        attack(net.eval(), pixels, batch[1], library=library)
