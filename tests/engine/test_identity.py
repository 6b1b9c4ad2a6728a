"""What tells models and functions apart, when an evaluation goes on."""

import functools
import logging

import numpy
import pytest
import torch
from torch import nn

from roli_fast.engine.identity import answers_as_before, fingerprint, identity

SOURCE = """
def loss(logits, labels):
    lift = lambda z: z * SCALE
    return helped(lift(logits))

def helped(z):
    return z.amax(1) + OFFSET
"""


def in_a_module(source, **variables):
    """The variables of a module of this source, compiled anew as in another process."""
    space = {"__name__": "somewhere", **variables}
    exec(source, space)
    return space


class Margin:
    def __init__(self, least):
        self.least, self.itself, self.log = least, self, logging.getLogger("roli_fast.tests")

    def __call__(self, logits, labels):
        return logits.amax(1) - self.least


def closure(value):
    return lambda logits, labels: logits[:, 0] * value


def with_default(value):
    return lambda logits, labels, scale=value: logits[:, 0] * scale


@pytest.mark.parametrize(
    "made",
    [
        closure,
        with_default,
        Margin,
        lambda value: closure(closure(value)),
        lambda value: Margin(value).__call__,
        lambda value: functools.partial(closure(1), temperature=value),
        lambda value: in_a_module(SOURCE, SCALE=value, OFFSET=0)["loss"],
        lambda value: in_a_module(SOURCE, SCALE=0, OFFSET=value)["loss"],
    ],
    ids=["closure", "default", "object", "nested", "method", "partial", "global", "helper"],
)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (4, 5),
        ("a", "b"),
        ((1, (True, 2.0)), (1, (False, 2.0))),
        (frozenset("ab"), frozenset("ac")),
        (torch.tensor([1.0]), torch.tensor([2.0])),
        (numpy.float32(1), numpy.float32(2)),
        (nn.Softplus(beta=1), nn.Softplus(beta=2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_function_is_known_by_what_it_computes_with(made, one, other):
    assert identity(made(one)) == identity(made(one)) != identity(made(other))


def test_a_function_is_known_by_its_code():
    assert identity(lambda x: x.amax(1)) != identity(lambda x: x.amin(1))  # the same, but for a name
    assert identity(lambda x: [i + 1 for i in x]) != identity(lambda x: [i + 2 for i in x])
    assert identity(torch.tanh) != identity(torch.sigmoid)


COUNTERS = """
kept, calls, total = [], {"n": 0}, 0

def of_list(x): kept.append(len(x)); return x
def of_dict(x): calls["n"] += 1; return x
def of_global(x):
    global total
    total += 1
    return x

def enclosing():
    n = 0
    def of_cell(x):
        nonlocal n
        n += 1
        return x
    return of_cell

of_cell = enclosing()
"""


@pytest.mark.parametrize("of", ["list", "dict", "global", "cell"])
def test_what_a_function_counts_does_not_matter(of):
    function = in_a_module(COUNTERS)[f"of_{of}"]
    before = identity(function)
    function(torch.zeros(1, 3))
    assert identity(function) == before


def test_a_long_chain_of_objects_ends():
    def chain(length):
        last = Margin(0)
        for _ in range(length):
            last = Margin(last)
        return last

    assert identity(chain(10_000)) == identity(chain(10_000)) != identity(chain(1))


class Own(nn.Module):
    """With a setting of each kind that counts, and with what calls change."""

    def __init__(self, mean=0.0, temperature=1.0, norm="L2", clamp=True, layer=nn.Identity):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.temperature, self.norm, self.clamp, self.layer = temperature, norm, clamp, layer()
        self.calls, self.seen = 0, []

    def forward(self, x):
        self.calls += 1
        self.seen.append(len(x))
        return x + self.mean


@pytest.mark.parametrize(
    "other",
    [{"mean": 0.5}, {"temperature": 2.0}, {"norm": "L1"}, {"clamp": False}, {"layer": nn.ReLU}],
    ids=str,
)
def test_a_module_is_known_by_its_structure_tensors_and_settings(other):
    plain = fingerprint(Own())
    assert fingerprint(Own(**other)) != plain
    counted = Own()
    counted(torch.zeros(2))
    assert fingerprint(counted.eval()) == plain


def test_a_callable_is_known_by_the_modules_that_it_reaches():
    def made(weight):
        net, seen = nn.Linear(2, 2), []
        nn.init.constant_(net.weight, weight)
        nn.init.zeros_(net.bias)

        def model(x):
            seen.append(len(x))
            return net(x)

        return [model, functools.partial(model), Margin(model), Margin(model).__call__, net.forward]

    for first, again, other in zip(made(1.0), made(1.0), made(2.0), strict=True):
        before = fingerprint(first)
        assert fingerprint(again) == before != fingerprint(other)


def test_a_compiled_model_is_the_model():
    model = Own()
    before = fingerprint(model)
    assert fingerprint(torch.compile(model)) == fingerprint(model) == before


def test_weights_that_are_frozen_into_code_count():
    def frozen(seed):
        torch.manual_seed(seed)
        return torch.jit.freeze(torch.jit.trace(nn.Linear(3, 2).eval(), torch.rand(1, 3)))

    assert fingerprint(frozen(0)) == fingerprint(frozen(0))
    assert fingerprint(frozen(0)) != fingerprint(frozen(1))


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e30])
def test_answers_are_compared_up_to_rounding(scale):
    torch.manual_seed(0)
    before = torch.randn(8, 5) * scale
    before[:, 4] = -torch.inf

    def same(now, same_surroundings=True):
        return answers_as_before(before.to(now().dtype), now, same_surroundings)

    assert same(lambda: before * 1.00001)
    assert not same(lambda: before * 1.001)
    assert same(lambda: before * 1.001, same_surroundings=False)
    assert not same(lambda: before * 1.1, same_surroundings=False)
    assert same(lambda: before.bfloat16() * 1.01)
    assert not same(lambda: before.bfloat16() * 1.1)
    assert not same(lambda: before.roll(1, 0))
    assert not same(lambda: before[:, :3])


def test_random_answers_are_compared_as_far_as_they_are_apart():
    torch.manual_seed(0)
    before = torch.randn(8, 5)
    for noise in (1e-3, 0.1, 1):  # such as of sums on a GPU, whose order is another each time
        assert answers_as_before(before, lambda noise=noise: before + noise * torch.randn(8, 5), True)
    assert not answers_as_before(before, lambda: before * 1.1 + 1e-3 * torch.randn(8, 5), True)
    assert not answers_as_before(before, lambda: -before + 0.1 * torch.randn(8, 5), False)
