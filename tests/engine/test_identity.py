"""What tells models and functions apart, when an evaluation goes on."""

import functools
import itertools
import logging

import numpy
import pytest
import torch
from torch import nn

from roli_fast.engine.identity import answers_as_before, fingerprint, identity

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


def in_a_module(source, **variables):
    """The variables of a module of this source."""
    space = {"__name__": "somewhere", **variables}
    exec(source, space)
    return space


@pytest.mark.parametrize(
    ("one", "other"),
    [(4, 5), (0.5, 0.6), ("a", "b"), (True, False), ((1, 2), (2, 1)), ([1], [2]), ({"a": 1}, {"a": 2})],
    ids=lambda value: type(value).__name__,
)
def test_a_function_is_known_by_the_variables_of_its_module(one, other):
    def named(value):
        return identity(in_a_module("model = lambda x: [part * V for part in x]", V=value)["model"])

    assert named(one) == named(one)
    assert named(one) != named(other)


DEFENCE = """
class Defence:
    def __init__(self, net):
        self.net, self.strength, self.calls, self.itself = net, 1, 0, self

    def set_strength(self, strength):
        self.strength = strength

    def predict(self, x):
        self.calls += 1
        return self.net(x) * self.strength

defence = Defence(net)
model = lambda x: defence.predict(x)
method = defence.predict
by_name = lambda x: method(x)
"""


@pytest.mark.parametrize("name", ["model", "method", "by_name"])
def test_a_function_is_known_by_an_object_of_its_module(name):
    space, same, other = (in_a_module(DEFENCE, net=linear(seed)) for seed in (0, 0, 1))
    before = identity(space[name])
    assert identity(same[name]) == before
    assert identity(other[name]) != before
    space[name](torch.zeros(1, 3))  # is counted
    assert identity(space[name]) == before
    space["defence"].set_strength(2)
    assert identity(space[name]) != before


COUNTERS = """
import collections
from types import SimpleNamespace

kept, seen, last = [], set(), collections.deque()
calls, tallies, sums = {"n": 0}, collections.Counter(), collections.defaultdict(list)
buffer, array, spent = torch.zeros(2), numpy.zeros(2), SimpleNamespace(seconds=0.0)

class Log:
    def __init__(self):
        self.seconds, self.kept, self.of, self.strength = 0.0, [], {}, STRENGTH
    def note(self, x):
        self.seconds += 0.5
        self.kept.append(x)
        self.of["a"] = self.of.get("a", 0) + 1

class Callable(Log):
    def __call__(self, x):
        self.note(x)
        return net(x)

log, of_object = Log(), Callable()

def of_list(x): kept.append(len(x)); return net(x)
def of_set(x): seen.add(len(seen)); return net(x)
def of_deque(x): last.extend([1]); return net(x)
def of_dict(x): calls["n"] += 1 if len(x) else 2; return net(x)
def of_counter(x): tallies[len(x)] = tallies[len(x)] + 1; return net(x)
def of_lists(x): sums["a"].append(1); return net(x)
def of_tensor(x): buffer.add_(1); return net(x)
def of_array(x): array[:1] += 1; return net(x)
def of_attribute(x): spent.seconds += 0.5; return net(x)
def of_methods(x): log.note(x); return net(x)

def enclosing():
    n, items = 0, []
    def of_cell(x):
        nonlocal n
        n += 1
        items.insert(0, x)
        return net(x)
    return of_cell

of_cells = enclosing()
"""


@pytest.mark.parametrize("of", ["list", "set", "deque", "dict", "counter", "lists", "tensor", "array",
                                "attribute", "methods", "object", "cells"])  # fmt: skip
def test_what_a_function_counts_does_not_matter(of):
    variables = {"net": linear(0), "torch": torch, "numpy": numpy}
    model, stronger = (in_a_module(COUNTERS, **variables, STRENGTH=s)[f"of_{of}"] for s in (1, 2))
    before = identity(model)
    model(torch.zeros(1, 3))
    assert identity(model) == before
    assert (identity(stronger) != before) == (of in ("methods", "object"))


def test_what_a_function_reads_where_it_counts_matters():
    def named(scales):
        source = "def model(x):\n    seen[len(x)] = scales[0]\n    seen[scales[1]] = x.add(weight)\n"
        space = in_a_module(source, seen={}, scales=scales, weight=torch.ones(scales[0]))
        return identity(space["model"])

    assert named([1, 2]) == named([1, 2])
    assert len({named([1, 2]), named([2, 2]), named([1, 3])}) == 3


def test_objects_with_slots_and_numpy_s_numbers_count():
    class Settings:
        __slots__ = ("scale",)

        def __init__(self, scale):
            self.scale = scale

    def named(value):
        return identity(lambda x: x * value.scale)

    assert named(Settings(numpy.float32(1))) == named(Settings(numpy.float32(1)))
    assert named(Settings(numpy.float32(1))) != named(Settings(numpy.float32(2)))


def test_a_logger_is_known_by_its_name():
    def named(name):
        return identity(Holder(logging.getLogger(f"roli_fast.tests.{name}")))

    before = named("one")
    logging.getLogger("roli_fast.tests.one").isEnabledFor(logging.DEBUG)  # is remembered
    logging.getLogger("roli_fast.tests.further")
    assert named("one") == before != named("other")


def test_an_array_of_objects_is_known_by_these():
    def named(word):
        array = numpy.array([word * 2, {"a": word * 2}, None], dtype=object)
        return identity(lambda x: array)

    assert named("one") == named("one") != named("other")


def test_much_that_refers_to_much_is_known_soon():
    """There are millions of ways through these objects, and the chain is longer than calls may nest."""

    class Node:
        pass

    nodes = [Node() for _ in range(12)]
    for node in nodes:
        node.others, node.library = nodes, torch.nn.functional
    chain = []
    for _ in range(10_000):
        chain = [chain]
    assert identity(lambda x: (x, nodes, chain)) == identity(lambda x: (x, nodes, chain))


class InOrder(set):
    """A set with the order in which its items were given: another process has another."""

    def __init__(self, items):
        super().__init__(items)
        self.items = items

    def __iter__(self):
        return iter(self.items)


def test_the_order_of_a_set_does_not_matter():
    def named(order):
        nodes = [Holder(None) for _ in range(4)]
        for node, name, following in zip(nodes, "abcd", [*nodes[1:], nodes[0]], strict=True):
            node.name, node.following = name, following
        ordered = InOrder([nodes[i] for i in order])
        return identity(lambda x: ordered)

    assert len({named(order) for order in itertools.permutations(range(4))}) == 1


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
            self.temperature, self.calls, self.seen = temperature, 0, []

        def forward(self, x):
            self.calls += 1
            self.seen.append(len(x))
            return x + self.mean

    plain = fingerprint(Own())
    assert fingerprint(Own()) == plain
    assert len({plain, fingerprint(Own(mean=0.5)), fingerprint(Own(temperature=2.0))}) == 3
    counted = Own()
    counted(torch.zeros(2))
    assert fingerprint(counted.train(False)) == plain


class Defence(nn.Module):
    """With a strength that a method sets, and calls that are counted wherever a forward can."""

    def __init__(self):
        super().__init__()
        self.strength, self.calls, self.mode, self.inside = 0, 0, 0, nn.ModuleList([Counter()])

    def set_strength(self, strength):
        self.strength = strength

    def train(self, mode=True):
        self.mode = int(mode)
        return super().train(mode)

    def forward(self, x):
        self._count()
        self.inside[0].noted(x)
        return x * self.twice

    def _count(self):
        self.calls += 1

    @property
    def twice(self):
        self.asked = 2
        return 2


class Counter(nn.Module):
    calls = 0

    def noted(self, x):
        def note():
            self.calls += 1

        note()


def test_what_a_forward_counts_is_no_setting_and_what_a_method_sets_is_one():
    model = Defence()
    before = fingerprint(model)
    model(torch.zeros(2))
    model.eval()(torch.zeros(2))
    assert (model.calls, model.inside[0].calls, model.asked) == (2, 2, 2)
    assert fingerprint(model) == before
    model.set_strength(4)
    assert fingerprint(model) != before


def test_what_a_method_counts_that_a_hook_calls_is_no_setting():
    class Counted(nn.Linear):
        def count(self):
            self.calls = getattr(self, "calls", 0) + 1

    model = Counted(2, 2)
    model.register_forward_hook(lambda module, inputs, output: module.count())
    before = fingerprint(model)
    model(torch.zeros(1, 2))
    assert model.calls == 1
    assert fingerprint(model) == before


class Counting(nn.Module):
    """Whose integers count calls, however the method that counts is called, and one of which is a setting."""

    def __init__(self):
        super().__init__()
        self.net, self.calls, self.blur, self.texts = linear(0), 0, 1, nn.ParameterList([torch.zeros(1)])
        self.made()

    def made(self):
        pass

    def set_blur(self, blur):
        self.blur = blur

    def count(self, *arguments):
        self.calls += 1
        self.shape = (self.calls, 1)

    def forward(self, x):
        return self.net(x) * getattr(self, "scale", 1)


class ByHook(Counting):
    def made(self):
        self.net.register_forward_hook(self.count)


class ByPartialHook(Counting):
    def made(self):
        self.net.register_forward_pre_hook(functools.partial(self.count, "a"))


class ByDecoratedHook(Counting):
    def made(self):
        self.net.register_forward_hook(torch.no_grad()(self.count))


class ByAttribute(Counting):
    def made(self):
        self.noted = self.count

    def forward(self, x):
        self.noted()
        return self.net(x)


class ByTable(Counting):
    def made(self):
        self.noted = {"a": [functools.partial(self.count)]}

    def forward(self, x):
        self.noted["a"][0]()
        return self.net(x)


class ByName(Counting):
    def forward(self, x):
        getattr(self, "count", None)()
        return self.net(x)


class ByIndex(Counting):
    def __getitem__(self, at):
        self.count()
        return self.net

    def forward(self, x):
        return self[0](x)


class ByContext(Counting):
    def __enter__(self):
        self.calls += 1

    def __exit__(self, *raised):
        pass

    def forward(self, x):
        with self:
            return self.net(x)


class ByCallImpl(Counting):
    def _call_impl(self, x):
        self.count()
        return super()._call_impl(x)


@pytest.mark.parametrize("kind", Counting.__subclasses__(), ids=lambda kind: kind.__name__)
def test_what_is_counted_is_no_setting_however_the_method_is_called(kind):
    model = kind()
    before = fingerprint(model)
    model(torch.zeros(1, 3))
    assert model.calls == 1
    assert fingerprint(model) == before
    model.set_blur(2)
    assert fingerprint(model) != before


def test_any_method_may_be_called_by_a_name_that_is_made():
    class Dispatching(Counting):
        def forward(self, x, kind="nt"):
            getattr(self, "cou" + kind)()
            return self.net(x)

    model = Dispatching()
    before = fingerprint(model)
    model(torch.zeros(1, 3))
    assert fingerprint(model) == before


class Set(nn.Linear):
    def __init__(self, **settings):
        super().__init__(2, 2)
        vars(self).update(settings)


def doubled(by):
    return lambda *arguments: arguments[-1] * by


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (8, 1),
        ((0, 1), (1, 0)),
        (torch.tanh, torch.sigmoid),
        (lambda x: x, lambda x: 1 - x),
        (doubled(2), doubled(3)),
        (functools.partial(torch.clamp, min=0), functools.partial(torch.clamp, min=1)),
    ],
    ids=["integer", "tuple", "builtin", "lambda", "closure", "partial"],
)
def test_a_module_is_known_by_its_settings(one, other):
    def named(value):
        torch.manual_seed(0)
        return fingerprint(Set(setting=value))

    assert named(one) == named(one)
    assert named(one) != named(other)


def test_a_module_is_known_by_its_hooks_and_by_a_forward_of_its_own():
    plain, hooked, replaced = linear(0), linear(0), linear(0)
    hooked.register_forward_hook(doubled(2))
    replaced.forward = doubled(2)
    found = {fingerprint(model) for model in (plain, hooked, replaced)}
    assert len(found) == 3
    # Another process numbers its hooks otherwise.
    again = linear(0)
    again.register_forward_hook(doubled(2)).remove()
    again.register_forward_hook(doubled(2))
    assert fingerprint(again) == fingerprint(hooked)
    replaced.forward = lambda x, itself=replaced.forward: itself(x)
    replaced.itself = lambda: replaced  # a circle
    assert fingerprint(replaced) not in found


def test_what_a_hook_counts_does_not_matter():
    model, seen, calls = linear(0), [], 0

    def counting(module, inputs, output):
        nonlocal calls
        calls += 1
        seen.append(output)

    model.register_forward_hook(counting)
    before = fingerprint(model)
    model(torch.zeros(1, 3))
    assert calls == len(seen) == 1
    assert fingerprint(model) == before


def test_weights_that_are_frozen_into_code_count():
    def frozen(seed):
        return torch.jit.freeze(torch.jit.trace(linear(seed).eval(), torch.rand(1, 3)))

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
