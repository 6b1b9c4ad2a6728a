"""Rows of docs/switching.md: the copies that are made of models, and threads that share them."""

import gc
import math
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import roli_fast.compat.cleverhans as cleverhans
import roli_fast.compat.foolbox as foolbox
import roli_fast.compat.torchattacks as torchattacks
from roli_fast.attacks import attack as attack_module
from roli_fast.compat import art

from ..cases import estimator
from .faces import every_face, row


def copies_made(attack, net, batch, monkeypatch):
    """By an attack that is made anew for each of three batches."""
    made = []
    view = attack_module.AttackView
    monkeypatch.setattr(attack_module, "AttackView", lambda *a, **o: made.append(a) or view(*a, **o))
    for _ in range(3):
        attack(net, *batch)
    return len(made)


@row("Copies")
@every_face
def test_copies(attack, net, batch, monkeypatch):
    """Of the model one, though each batch has an attack of its own."""
    assert copies_made(attack, net, batch, monkeypatch) == 1


def test_the_copies_of_an_ensemble(net, batch, monkeypatch):
    made = []
    view = attack_module.AttackView
    monkeypatch.setattr(attack_module, "AttackView", lambda *a, **o: made.append(a) or view(*a, **o))
    attacks = [torchattacks.FGSM(net, eps=0.01), torchattacks.APGD(net, eps=0.01, steps=2)]
    ensemble = torchattacks.MultiAttack(attacks)
    ensemble(*batch)
    attacks[0].eps, attacks[1].steps = 0.02, 3
    ensemble(*batch)
    assert len(made) == 1


def by_normalising_torchattacks(model, images, labels):
    attack = torchattacks.FGSM(model, eps=0.01)
    attack.set_normalization_used([0.1], [0.9])
    return attack(attack.normalize(images), labels)


def by_normalising_foolbox(model, images, labels):
    preprocessing = {"mean": [0.1], "std": [0.9], "axis": -3}
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu", preprocessing=preprocessing)
    return foolbox.attacks.FGSM()(wrapped, images, labels, epsilons=0.01)[0]


def by_normalising_art(model, images, labels):
    pytest.importorskip("art.estimators.classification")
    classifier = estimator(model, tuple(images.shape[1:]), preprocessing=(0.1, 0.9))
    return art.FastGradientMethod(classifier, eps=0.01).generate(images.numpy(), labels.numpy())


def by_a_normalising_ensemble(model, images, labels):
    ensemble = torchattacks.MultiAttack([torchattacks.FGSM(model), torchattacks.BIM(model)])
    ensemble.set_normalization_used([0.1], [0.9])
    return ensemble(ensemble.normalize(images), labels)


@pytest.mark.parametrize(
    "attack",
    [
        by_normalising_torchattacks,
        by_normalising_foolbox,
        by_normalising_art,
        by_a_normalising_ensemble,
    ],
)
def test_copies_of_a_model_that_a_face_normalises(attack, net, batch, monkeypatch):
    assert copies_made(attack, net, batch, monkeypatch) == 1


def test_a_model_that_was_normalised_lives_until_another_is(batch):
    """Or as long as the attack that normalises it."""
    model, others = (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval(),
        [nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval() for _ in range(2)],
    )
    attack = torchattacks.FGSM(model)
    attack.set_normalization_used([0.1], [0.9])
    attack(attack.normalize(batch[0]), batch[1])
    alive = weakref.ref(model)
    del model
    by_normalising_torchattacks(others[0], *batch)
    assert alive() is not None
    del attack
    gc.collect()
    assert alive() is None


def test_copies_outlive_the_first_attack_but_not_its_graphs(net, batch):
    """Of which there are some for each attack on a GPU."""
    attack = torchattacks.BIM(net)
    attack(*batch)
    core, view = weakref.ref(attack._made()), weakref.ref(attack._made().view(net))
    del attack
    gc.collect()
    assert core() is None
    assert view() is not None


def shared_by_threads(call, threads=3, times=4):
    """What call(number of the thread) returns in each, called at once."""
    together = threading.Barrier(threads)

    def several(number):
        together.wait()
        return [call(number) for _ in range(times)]

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(several, range(threads)))


@row("Threads")
@pytest.mark.parametrize("face", ["torchattacks", "foolbox", "cleverhans"])
def test_threads(face, net, batch):
    """One attack and one model, in threads with other sizes."""
    images, labels = torch.full_like(batch[0], 0.5), batch[1]
    wrapped = foolbox.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    descent = foolbox.attacks.LinfPGD(steps=3)
    fixed = torchattacks.PGD(net, eps=0.1, alpha=0.1, steps=3)
    calls = {
        "torchattacks": lambda eps: fixed(images, labels),
        "foolbox": lambda eps: descent(wrapped, images, labels, epsilons=eps)[0],
        "cleverhans": lambda eps: cleverhans.projected_gradient_descent(
            net, images, eps, eps, 3, math.inf, 0.0, 1.0, y=labels
        ),
    }
    sizes = (0.1, 0.1, 0.1) if face == "torchattacks" else (0.1, 0.2, 0.3)
    for eps, results in zip(sizes, shared_by_threads(lambda n: calls[face](sizes[n])), strict=True):
        for found in results:
            assert (found - images).abs().max().item() == pytest.approx(eps, abs=1e-6)


def test_a_copy_lives_as_long_as_its_model(batch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    attack = torchattacks.FGSM(model)
    attack(*batch)
    view = weakref.ref(attack._made().view(model))
    del attack
    assert view() is not None
    del model
    gc.collect()
    assert view() is None
