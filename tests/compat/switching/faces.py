"""What the tests of docs/switching.md share: every face in one step, from a model, images and labels."""

from pathlib import Path

import pytest
import torch

import roli_fast.compat.cleverhans as cleverhans
import roli_fast.compat.foolbox as foolbox
import roli_fast.compat.torchattacks as torchattacks
from roli_fast.compat import art
from roli_fast.compat.autoattack import AutoAttack

from ..cases import estimator, original

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "switching.md"
ROWS: dict[str, str] = {}


def row(title):
    """Marks the test of a row."""

    def mark(test):
        ROWS[title] = test.__name__
        return test

    return mark


def by_torchattacks(model, images, labels, library=torchattacks):
    return library.PGDL2(model, eps=0.5, alpha=0.2, steps=2)(images, labels)


def by_foolbox(model, images, labels, library=foolbox):
    wrapped = library.PyTorchModel(model, bounds=(0, 1), device="cpu")
    return library.attacks.L2PGD(steps=2)(wrapped, images, labels, epsilons=0.5)[0]


def by_art(model, images, labels, library=art):
    classifier = estimator(model, tuple(images.shape[1:]))
    sizes = {"norm": 2, "eps": 0.5, "eps_step": 0.2, "max_iter": 2}
    attack = library.ProjectedGradientDescent(classifier, **sizes, verbose=False)
    return torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))


def by_cleverhans(model, images, labels, library=cleverhans):
    sizes = {"eps": 0.5, "eps_iter": 0.2, "nb_iter": 2, "norm": 2, "clip_min": 0.0, "clip_max": 1.0}
    return library.projected_gradient_descent(model, images, y=labels, **sizes)


def by_autoattack(model, images, labels):
    kind = {"version": "custom", "attacks_to_run": ["square"], "norm": "L2", "verbose": False}
    return AutoAttack(model, eps=5.0, device="cpu", **kind).run_standard_evaluation(images, labels)


def by_apgd(model, images, labels, library=torchattacks):
    return library.APGD(model, "L2", eps=0.5, steps=2)(images, labels)


FACES = [by_torchattacks, by_foolbox, by_art, by_cleverhans, by_autoattack]
every_face = pytest.mark.parametrize("attack", FACES)


def theirs(attack):
    """The same call of the library itself; skips where it is not installed."""
    library = original(attack.__name__.removeprefix("by_"))
    return lambda *batch: attack(*batch, library=library)
