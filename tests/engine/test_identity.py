"""What tells models and functions apart, when an evaluation goes on."""

import functools

import pytest
import torch
from torch import nn

from roli_fast.engine.identity import fingerprint, identity

SOURCE = """
def model(x):
    shift = lambda z: z - z.mean(1, keepdim=True) * SCALE
    return shift(net(x))
"""


def defined(net, scale=1):
    space = {"net": net, "SCALE": scale, "__name__": "somewhere"}
    exec(SOURCE, space)
    return space["model"]


class Holder:
    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)


def closure(net):
    return lambda x: net(x)


def linear(seed):
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


@pytest.mark.parametrize(
    "made",
    [
        defined,
        closure,
        Holder,
        lambda net: net.forward,
        functools.partial(functools.partial, Holder.__call__),
    ],
)
def test_a_function_is_known_by_what_it_computes_with(made):
    first, same, other = made(linear(0)), made(linear(0)), made(linear(1))
    assert identity(first) == identity(same)
    assert identity(first) != identity(other)


def test_code_within_code_has_no_address():
    """A function compiled twice, as two processes do: the lambda in it lies elsewhere."""
    assert identity(defined(linear(0))) == identity(defined(linear(0)))
    assert identity(lambda x: x.amax(1)) != identity(lambda x: x.amin(1))  # the same code, but for a name


def test_a_circle_ends():
    holder = Holder(linear(0))
    holder.self = holder
    assert identity(holder) == identity(holder)


def test_a_module_is_known_by_all_that_it_holds():
    class Own(nn.Module):
        def __init__(self, mean=0.0, temperature=1.0):
            super().__init__()
            self.register_buffer("mean", torch.tensor(mean), persistent=False)
            self.temperature, self.calls = temperature, 0

    plain = fingerprint(Own())
    assert fingerprint(Own()) == plain
    assert len({plain, fingerprint(Own(mean=0.5)), fingerprint(Own(temperature=2.0))}) == 3
    counted = Own()
    counted.calls = 7
    assert fingerprint(counted.train(False)) == plain
