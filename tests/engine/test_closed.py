"""Which callables compute with their arguments alone."""

import functools
import math
import operator
import random
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from roli_fast.attacks import losses
from roli_fast.attacks.losses import margin
from roli_fast.engine.closed import is_closed

SCALE, WEIGHTS, SETTINGS = 2.0, torch.ones(5), {"soft": torch.ones(5)}
settings = types.ModuleType("settings")
settings.soft = WEIGHTS
times = mul = WEIGHTS.mul
squash = torch.sigmoid


class State:
    soft = WEIGHTS


def scaled(z, y):
    return 2.0 * F.cross_entropy(z, y, reduction="none")


def by_another(z, y, factor=3.0):
    inner = lambda x: x.exp()  # noqa: E731
    return factor * scaled(inner(z), y)


def calls_itself(z, y):
    return calls_itself(z, y - 1) if len(z) > len(y) else z


def in_digits(z, y):
    return margin(z.double() / math.sqrt(2), max(y, abs(y))).to(torch.float32)


def from_nowhere():
    """As a program that is run by exec() defines a function, in a namespace without a name."""
    space = {}
    exec("def loss(z, y): return (z * y).sum(1)", space)
    bare = types.FunctionType(space["loss"].__code__, {})
    bare.__module__ = None
    return bare


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


def by_a_number(z, y):
    return F.cross_entropy(z / SCALE, y, reduction="none")


def by_a_module(z, y):
    return (settings.soft * z).sum(1)


def by_a_class(z, y):
    return (State.soft * z).sum(1)


def by_a_tensors_method(z, y):
    return times(z).sum(1)


def by_a_tensors_method_of_its_name(z, y):
    return mul(z).sum(1)


def by_what_a_name_stands_for(z, y):
    return squash(z).sum(1)


def by_globals(z, y):
    return (globals()["WEIGHTS"] * z).sum(1)


def by_getattr(z, y):
    return (getattr(scaled, "soft", 1) * z).sum(1)


def by_an_import(z, y):
    import settings

    return (settings.soft * z).sum(1)


def by_chance(z, y):
    return random.random() * z.sum(1)


def by_what_is_not_there_yet(z, y):
    return (later * z).sum(1)  # noqa: F821


def by_its_attribute(z, y):
    return (by_its_attribute.soft * z).sum(1)


by_its_attribute.soft = WEIGHTS


def keeps(z, y):
    global last
    last = z
    return z.sum(1)


@functools.wraps(F.cross_entropy, updated=())
def in_the_name_of_torchs(z, y):
    return (WEIGHTS * z).sum(1)


class Own(nn.Module):
    def forward(self, z, y):
        return z


class Held:
    def __call__(self, z, y):
        return z

    def method(self, z, y):
        return z


def hooked(module):
    module.register_forward_hook(lambda module, inputs, output: WEIGHTS * output)
    return module


def enclosing(value):
    return lambda z, y: (value * z).sum(1)


@pytest.mark.parametrize(
    "function",
    [
        *(scaled, by_another, calls_itself, in_digits, from_nowhere()),
        *(lambda z: z["logits"], lambda z, y: F.log_softmax(z, 1).sum(1) + torch.ones(3).sum() * math.pi),
        *(torch.logsumexp, F.cross_entropy, F.softplus, F.kl_div, F.max_pool1d, operator.sub),
        *(losses.cross_entropy, losses.margin, losses.dlr, losses.targeted_dlr, losses.kl_divergence),
        functools.partial(F.cross_entropy, reduction="none", label_smoothing=0.1),
        functools.partial(functools.partial(scaled), y=1),
        nn.CrossEntropyLoss(reduction="none"),
        *(nn.MultiMarginLoss(reduction="none"), nn.Sequential(nn.Flatten(), nn.LogSoftmax(1))),
    ],
)
def test_closed(function):
    assert is_closed(function)


@pytest.mark.parametrize(
    "function",
    [
        *(weighted, from_a_dict, by_an_open_one, inside_of_a_lambda, with_a_default),
        *(enclosing(WEIGHTS), enclosing(1.0), Own(), Held(), Held().method),
        *(by_a_number, by_a_module, by_a_class, by_a_tensors_method, by_a_tensors_method_of_its_name),
        *(by_what_a_name_stands_for, by_globals, by_getattr, by_an_import, by_chance, keeps, times),
        *(by_what_is_not_there_yet, by_its_attribute, in_the_name_of_torchs, State, settings),
        *(torch.no_grad()(weighted), torch.func.vmap(weighted)),
        functools.partial(F.cross_entropy, weight=WEIGHTS),
        functools.partial(weighted),
        nn.CrossEntropyLoss(WEIGHTS, reduction="none"),
        *(nn.Sequential(nn.Flatten(), Own()), nn.Sequential(nn.Linear(5, 5)), hooked(nn.Softmax(1))),
    ],
)
def test_open(function):
    assert not is_closed(function)
