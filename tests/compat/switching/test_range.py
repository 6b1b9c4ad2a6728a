"""Rows of docs/switching.md: images outside of the range, and rounding."""

import contextlib
import math

import pytest
import torch
from torch import nn

import roli_fast.compat.cleverhans as cleverhans
import roli_fast.compat.foolbox as foolbox
import roli_fast.compat.torchattacks as torchattacks
from roli_fast.compat import art
from roli_fast.compat.autoattack import AutoAttack
from roli_fast.models import Normalized

from ..cases import estimator, original
from .faces import by_art, by_autoattack, by_cleverhans, by_foolbox, by_torchattacks, every_face, row, theirs


@row("Range")
@every_face
def test_range(attack, net, batch):
    with pytest.raises((ValueError, AssertionError), match=r"(images|x): got values in"):
        attack(net, 2 * batch[0] - 1, batch[1])
    own = {
        by_torchattacks: r"attack\.set_normalization_used\(mean, std\), and they stay as they are",
        by_foolbox: r"images in \[0, 1\] and PyTorchModel\(model, bounds, preprocessing=",
        by_art: r"PyTorchClassifier\(\.\.\., clip_values=\(0, 1\), preprocessing=\(mean, std\)\)",
        by_cleverhans: r"x in \[0\.0, 1\.0\] and roli_fast\.models\.Normalized\(model_fn, mean, std\)",
        by_autoattack: r"images in \[0, 1\] and AutoAttack\(roli_fast\.models\.Normalized\(model, mean, std",
    }
    with pytest.raises((ValueError, AssertionError), match=own[attack]) as caught:
        attack(net, 2 * batch[0] - 1, batch[1])
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_the_way_out_of_a_wrong_range_works(net, batch):
    """What each error says leads to the images of the attack on pixels."""
    images, labels = batch
    mean, std = [0.5], [0.25]
    normalised = (images - 0.5) / 0.25
    pixels = Normalized(net, mean, std)
    expected = torchattacks.BIM(pixels, eps=0.1)(images, labels)
    attack = torchattacks.BIM(net, eps=0.1)
    attack.set_normalization_used(mean, std)
    torch.testing.assert_close(attack.inverse_normalize(attack(normalised, labels)), expected)
    with pytest.raises(ValueError, match="set_normalization_used takes what they were normalised by"):
        attack(3 * normalised, labels)
    preprocessing = {"mean": mean, "std": std, "axis": -3}
    wrapped = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu", preprocessing=preprocessing)
    descent = foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=2 / 255)
    torch.testing.assert_close(descent(wrapped, images, labels, epsilons=0.1)[0], expected)


def test_a_range_is_checked_of_all_images_before_any_is_attacked(net, batch):
    asked = []
    net.register_forward_hook(lambda module, inputs, output: asked.append(len(output)))
    images = batch[0].clone()
    images[-1] = 2.0
    evaluate = AutoAttack(net, eps=0.1, device="cpu", verbose=False).run_standard_evaluation
    attack = art.FastGradientMethod(estimator(net, (1, 8, 8)), batch_size=1)
    asked.clear()
    for call in (
        lambda: evaluate(images, batch[1], bs=1),
        lambda: attack.generate(images.numpy(), batch[1].numpy()),
    ):
        with pytest.raises(ValueError, match="images: got values in"):
            call()
    assert asked == []


@pytest.mark.parametrize("library", ["ours", "theirs"])
def test_a_range_that_is_not_checked(library, net, batch):
    """Of cleverhans, without its sanity checks: images from outside of the box end in it."""
    library = cleverhans if library == "ours" else original("cleverhans")
    images = 2 * batch[0] - 1
    with contextlib.nullcontext() if library is not cleverhans else pytest.warns(match="is it normalised"):
        found = library.fast_gradient_method(net.eval(), images, 0.1, math.inf, 0.0, 1.0, y=batch[1])
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(net(x), batch[1]), x)
    torch.testing.assert_close(found.detach(), (images + 0.1 * gradient.sign()).clamp(0, 1))


@row("Rounding")
@pytest.mark.parametrize("attack", [by_torchattacks, by_art, by_autoattack])
def test_rounding(attack, net, batch):
    images = batch[0].clone()
    images[:, 0, 0] = 1.0000002
    torch.manual_seed(0)
    expected = attack(net, images.clamp(max=1), batch[1])
    torch.manual_seed(0)
    assert torch.equal(attack(net, images, batch[1]), expected)
    with pytest.raises((ValueError, AssertionError), match=r"(images|x): got values in \[.*, 1\.0000"):
        attack(net, images + 1e-5, batch[1])


@pytest.mark.parametrize("attack", [by_torchattacks, by_art])
def test_range_in_the_original(attack, net, batch):
    found = theirs(attack)(net, 2 * batch[0] - 1, batch[1])
    assert (found.min() >= 0) == (attack is by_torchattacks)


@pytest.mark.parametrize("attack", [by_foolbox, by_cleverhans])
def test_range_where_the_original_raises(attack, net, batch):
    call = theirs(attack)
    with pytest.raises(AssertionError):
        call(net, 2 * batch[0] - 1, batch[1])
