"""Rows of docs/switching.md: seeds and restarts."""

import numpy
import torch

import roli_fast.compat.torchattacks as torchattacks
from roli_fast.compat import art
from roli_fast.compat.autoattack import AutoAttack

from ..cases import Coin, estimator, original
from .faces import by_art, every_face, row


@row("Seeds")
@every_face
def test_seeds(attack, net, batch):
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        numpy.random.seed(seed + len(found))
        found.append(attack(net, *batch) if attack is not by_art else by_art_at_random(net, *batch))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    state = torch.get_rng_state()
    torchattacks.APGD(net, steps=2, seed=0)(*batch)
    AutoAttack(
        net, version="custom", attacks_to_run=["apgd-ce"], eps=1.0, seed=0, device="cpu", verbose=False
    ).run_standard_evaluation(*batch)
    assert torch.equal(torch.get_rng_state(), state)


def by_art_at_random(model, images, labels):
    classifier = estimator(model, tuple(images.shape[1:]))
    attack = art.ProjectedGradientDescent(classifier, max_iter=1, num_random_init=1)
    return torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))


def test_seeds_in_the_original(net, batch):
    library = original("torchattacks")
    state = torch.get_rng_state()
    library.APGD(net.eval(), steps=2, seed=0)(*batch)
    assert not torch.equal(torch.get_rng_state(), state)


def fooled_in_six_starts(library):
    """Which of 200 images, of which a start fools each with a probability of a half."""
    images, labels = numpy.full((200, 1, 4, 4), 0.5, numpy.float32), numpy.zeros(200, numpy.int64)
    classifier = estimator(Coin(), (1, 4, 4))
    attack = library.FastGradientMethod(classifier, eps=0.1, num_random_init=6, batch_size=200)
    return classifier.predict(attack.generate(images, labels)).argmax(1) != 0


@row("Restarts")
def test_restarts():
    assert fooled_in_six_starts(art).mean() > 0.9  # 1 - 2^-6 is expected


def test_restarts_in_the_original():
    assert fooled_in_six_starts(original("art")).mean() < 0.75  # six standard deviations above a half
