"""Which callables compute with their arguments alone."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from roli_fast.attacks import losses
from roli_fast.engine.closed import is_closed

SCALE, WEIGHTS, SETTINGS = 2.0, torch.ones(5), {"soft": torch.ones(5)}


def scaled(z, y):
    return SCALE * F.cross_entropy(z, y, reduction="none")


def by_another(z, y, factor=3.0):
    inner = lambda x: x.exp()  # noqa: E731
    return factor * scaled(inner(z), y)


def calls_itself(z, y):
    return calls_itself(z, y - 1) if len(z) > len(y) else z


def weighted(z, y):
    return (WEIGHTS * z).sum(1)


def from_a_dict(z, y):
    return (SETTINGS["soft"] * z).sum(1)


def by_an_open_one(z, y):
    return weighted(z, y)


def inside_of_a_lambda(z, y):
    return (lambda x: (WEIGHTS * x).sum(1))(z)


def with_a_default(z, y, soft=WEIGHTS):
    return (soft * z).sum(1)


class Own(nn.Module):
    def forward(self, z, y):
        return z


class Held:
    def __call__(self, z, y):
        return z

    def method(self, z, y):
        return z


def enclosing(value):
    return lambda z, y: (value * z).sum(1)


@pytest.mark.parametrize(
    "function",
    [
        *(scaled, by_another, calls_itself, lambda z: z["logits"], torch.logsumexp),
        *(losses.cross_entropy, losses.margin, losses.dlr, losses.targeted_dlr, losses.kl_divergence),
        functools.partial(F.cross_entropy, reduction="none", label_smoothing=0.1),
        nn.CrossEntropyLoss(reduction="none"),
    ],
)
def test_closed(function):
    assert is_closed(function)


@pytest.mark.parametrize(
    "function",
    [
        *(weighted, from_a_dict, by_an_open_one, inside_of_a_lambda, with_a_default),
        *(enclosing(WEIGHTS), enclosing(1.0), Own(), Held(), Held().method),
        functools.partial(F.cross_entropy, weight=WEIGHTS),
        functools.partial(weighted),
    ],
)
def test_open(function):
    assert not is_closed(function)
