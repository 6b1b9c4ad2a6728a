"""Rows of docs/switching.md: arguments that an original ignores, or takes and we do not."""

import numpy
import pytest
import torch
from torch import nn

import roli_fast.compat.foolbox as foolbox
import roli_fast.compat.torchattacks as torchattacks
from roli_fast.compat import art
from roli_fast.compat.autoattack import AutoAttack

from ..cases import estimator, original
from .faces import row


@row("Settings that would do nothing")
def test_settings_that_would_do_nothing(net):
    with pytest.raises(ValueError, match="model_training: got True"):
        torchattacks.PGD(net).set_model_training_mode(True)
    with pytest.raises(AttributeError, match="'apgd': for settings of single attacks"):
        AutoAttack(net).apgd.n_restarts = 2
    classifier = estimator(net, (1, 8, 8))
    for name, kind in (
        ("random_eps", art.ProjectedGradientDescent),
        ("summary_writer", art.ProjectedGradientDescent),
        ("minimal", art.FastGradientMethod),
    ):
        with pytest.raises(ValueError, match=f"{name}: got True, accepted: False"):
            kind(classifier, **{name: True})


@row("Unusual arguments")
def test_unusual_arguments(net, batch):
    images, labels = batch
    with pytest.raises(ValueError, match=r"alpha: got -0\.1"):
        torchattacks.PGD(net, alpha=-0.1)(images, labels)
    with pytest.raises(ValueError, match=r"eps: got a torch.float32 tensor of shape \(1, 3, 1, 1\)"):
        torchattacks.PGD(net, eps=torch.ones(1, 3, 1, 1))(images, labels)
    with pytest.raises(ValueError, match="steps: got 0"):
        torchattacks.PGD(net, steps=0)(images, labels)
    with pytest.raises(ValueError, match="labels: got "):
        torchattacks.PGD(net)(images, torch.full((5, 10), 0.1))
    wrapped = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    with pytest.raises(ValueError, match=r"eps: got -0.1"):
        foolbox.attacks.LinfPGD()(wrapped, images, labels, epsilons=-0.1)
    with pytest.raises(
        ValueError, match=r"labels: got torch.int64 of shape \(5, 8, 8\), accepted: .* \(5,\)"
    ):
        torchattacks.PGD(nn.Conv2d(1, 3, 1))(images, torch.zeros(5, 8, 8, dtype=torch.int64))
    per_pixel = {"eps": numpy.ones((1, 8, 8)), "eps_step": numpy.ones((1, 8, 8))}
    attack = art.ProjectedGradientDescent(estimator(net, (1, 8, 8)), **per_pixel, verbose=False)
    with pytest.raises(
        ValueError, match=r"eps: got an array of shape \(1, 8, 8\), accepted: a number, or one"
    ):
        attack.generate(images.numpy(), labels.numpy())


def test_unusual_arguments_in_the_original(net, batch):
    images, labels = batch
    attack = original("torchattacks").PGD(nn.Conv2d(1, 3, 1))
    assert not torch.equal(attack(images, torch.zeros(5, 8, 8, dtype=torch.int64)), images)
    per_pixel = {"eps": numpy.ones((1, 8, 8)), "eps_step": numpy.ones((1, 8, 8)), "max_iter": 1}
    kind = original("art").ProjectedGradientDescent
    attack = kind(estimator(net, (1, 8, 8)), **per_pixel, verbose=False)
    assert attack.generate(images.numpy(), labels.numpy()).shape == (5, 1, 8, 8)


@row("Other attacks' arguments")
def test_adversarial_trainers_of_art(net, batch):
    trainer = pytest.importorskip("art.defences.trainer")
    classifier = estimator(net, (1, 8, 8))
    attack = art.FastGradientMethod(classifier)
    with pytest.raises(ValueError, match="attack"):
        trainer.AdversarialTrainer(classifier, attack)
    assert trainer.AdversarialTrainer(classifier, [attack]).attacks == [attack]


@row("Losses and defences")
def test_losses_and_defences(net):
    classification = pytest.importorskip("art.estimators.classification")
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.1)
    classifier = classification.PyTorchClassifier(net, smoothed, (1, 8, 8), 10, device_type="cpu")
    with pytest.raises(ValueError, match="estimator: got one with the loss CrossEntropyLoss"):
        art.FastGradientMethod(classifier)


def test_a_size_in_units_of_bytes_is_warned_of(net, batch):
    with pytest.warns(UserWarning, match="roli_fast: eps takes any pixel within .* to any other") as warned:
        torchattacks.PGD(net.eval(), eps=8, alpha=2 / 255, steps=1)(*batch)
    assert warned[0].filename == __file__
