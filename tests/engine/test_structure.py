"""Whatever a model holds, and in whatever way: a view computes what the model computes, also after that has
changed, and leaves the model alone."""

import collections
import copy
import ctypes
import dataclasses
import enum
import functools
import io
import logging
import pathlib
import re
import types
import weakref
from types import SimpleNamespace

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from roli_fast.attacks import PGD
from roli_fast.engine import AttackView
from roli_fast.engine.structure import Structure

from .cases import assert_same_logits

CPU = torch.device("cpu")
NOT_REGISTERED = "it reaches a module that it has not registered there"


def body():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5))


class Holding(nn.Module):
    """Multiplies its output by what it holds somewhere."""

    def __init__(self, held, read):
        super().__init__()
        self.net, self.held, self.read = body(), held, read

    def forward(self, x):
        return self.net(x) * self.read(self.held)


class Kind(enum.Enum):
    ONE = 1


@dataclasses.dataclass
class Config:
    scale: float = 1.0
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    folder: pathlib.Path = pathlib.Path("runs")
    kind: Kind = Kind.ONE
    act: object = F.relu


@dataclasses.dataclass
class Slotted:
    __slots__ = ("scale",)
    scale: float


class Scale:
    def __init__(self, tensor=None):
        self.scale, self.tensor = 1.0, tensor

    def value(self):
        return self.scale

    def hook(self, module, inputs, output):
        return self.scale * output

    def __call__(self, module, inputs, output):
        return self.hook(module, inputs, output)


class CopiesItself:
    """As pydantic's models and omegaconf's do."""

    __slots__ = ("__dict__", "__private")

    def __init__(self, tensor=None):
        self.scale, self.tensor = 1.0, tensor
        self.__private = {"scale": 1.0}

    def __deepcopy__(self, memo):
        other = type(self).__new__(type(self))
        vars(other).update(copy.deepcopy(vars(self), memo))
        other.__private = dict(self.__private)
        return other

    def private(self):
        return self.__private


class Forgets(Scale):
    """Keeps what it copies from the copy that it is part of."""

    def __deepcopy__(self, memo):
        return Forgets(self.tensor.clone())


class Reduces(Scale):
    def __reduce__(self):
        return (Reduces, (self.tensor,), vars(self))


class GivesState(Scale):
    def __getstate__(self):
        return dict(vars(self))


class Computes(Scale):
    def __getstate__(self):
        return {"scale": 2 * self.scale}

    def __setstate__(self, state):
        self.scale = state["scale"] / 2


class Shared(Scale):
    """As a logging run is."""

    def __deepcopy__(self, memo):
        return self


class SharedByName(Scale):
    def __reduce__(self):
        return "SHARED_BY_NAME"


class Forgetful(Scale):
    """Keeps its scale from a copy, which takes the class's."""

    scale = 1.0

    def __getstate__(self):
        return {"tensor": self.tensor}


class Empty:
    """Has no attribute yet, but a dict for them."""

    def __init__(self):
        vars(self)


class Settings(dict):
    scale = 1.0


def attribute(held):
    return held.scale


def change_attribute(held):
    held.scale = -3.0


def times(factor):
    def value(held):
        return factor * held.scale

    return value


OBJECTS = {
    "namespace": lambda: SimpleNamespace(scale=1.0),
    "dataclass": Config,
    "slots": lambda: Slotted(1.0),
    "object with a tensor": lambda: Scale(torch.zeros(1)),
    "object that copies itself": CopiesItself,
    "object that reduces itself": Reduces,
    "object that gives its state": GivesState,
    "object that gives a state that it computes": Computes,
    "attribute of a dict": Settings,
}
# What is held, how the model reads it, how it is changed in place.
HELD = {name: (make, attribute, change_attribute) for name, make in OBJECTS.items()} | {
    "nested containers": (
        lambda: {"a": [{"scale": 1.0}]},
        lambda h: h["a"][0]["scale"],
        lambda h: h["a"][0].update(scale=-3.0),
    ),
    "array": (lambda: numpy.ones(1), lambda h: float(h[0]), lambda h: h.fill(-3)),
    "memory": (lambda: ctypes.c_double(1), lambda h: h.value, lambda h: setattr(h, "value", -3)),
    "bytes": (lambda: bytearray([1]), lambda h: h[0], lambda h: h.__setitem__(0, 3)),
    "file of bytes": (lambda: io.BytesIO(b"1"), lambda h: float(h.getvalue()), lambda h: h.write(b"3")),
    "error": (lambda: ValueError([1.0]), lambda h: h.args[0][0], lambda h: h.args[0].__setitem__(0, -3)),
    "nothing": (Empty, lambda h: vars(h).get("scale", 1.0), change_attribute),
    "set": (lambda: {1.0}, sum, lambda h: (h.clear(), h.add(-3.0))),
    "empty set": (set, lambda h: 1.0 - 4 * len(h), lambda h: h.add(1)),
    "keys": (lambda: {"scale": 1.0}, lambda h: h.get("scale", -3.0), lambda h: h.update(a=h.pop("scale"))),
    "order": (
        lambda: collections.OrderedDict(a=1.0, b=-3.0),
        lambda h: next(iter(h.values())),
        lambda h: h.move_to_end("a"),
    ),
    "iterator": (lambda: iter([1, -3]), lambda h: 2.0 - 3 * len(list(copy.copy(h))), next),
    "deque": (lambda: collections.deque([1.0]), lambda h: h[0], lambda h: (h.clear(), h.append(-3.0))),
    "partial": (
        lambda: functools.partial(lambda h: h.scale, Scale()),
        lambda h: h(),
        lambda h: change_attribute(h.args[0]),
    ),
    "method by its function": (
        lambda: [types.MethodType(times(1.0), Scale())],
        lambda h: h[0](),
        lambda h: h.__setitem__(0, types.MethodType(times(-3.0), h[0].__self__)),
    ),
    "method of an object": (
        lambda: Scale().value,
        lambda h: h(),
        lambda h: change_attribute(h.__self__),
    ),
    "tensor": (lambda: torch.ones(1), lambda h: h, lambda h: h.fill_(-3)),
    "tensor, by its data": (lambda: torch.ones(1), lambda h: h, lambda h: h.data.fill_(-3)),
    "tensor, by other data": (lambda: torch.ones(1), lambda h: h, lambda h: setattr(h, "data", -3 * h)),
    "tensor that is expanded": (lambda: torch.ones(1).expand(5), lambda h: h, lambda h: h[:1].fill_(-3)),
    "tensors in a tuple": (lambda: (torch.ones(1),), lambda h: h[0], lambda h: h[0].fill_(-3)),
    "tensor of an object": (
        lambda: Scale(torch.ones(1)),
        lambda h: h.tensor,
        lambda h: h.tensor.fill_(-3),
    ),
    "tensor of an object that copies itself": (
        lambda: CopiesItself(torch.ones(1)),
        lambda h: h.tensor,
        lambda h: h.tensor.fill_(-3),
    ),
    "private slot": (CopiesItself, lambda h: h.private()["scale"], lambda h: h.private().update(scale=-3.0)),
    "parameter in a list": (
        lambda: [nn.Parameter(torch.ones(1))],
        lambda h: h[0],
        lambda h: nn.init.constant_(h[0], -3),
    ),
}


@pytest.mark.parametrize("kind", HELD)
def test_what_has_changed_inside_what_a_model_holds_is_followed(kind, batch):
    make, read, change = HELD[kind]
    held = make()
    model = Holding(held, read).eval()
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    assert view.is_copy
    change(held)
    view.refresh()
    assert_same_logits(view, model, batch[0])
    assert view.is_copy
    assert view.report.note is None


UNSEEN = {
    "tensor": (
        lambda: Forgets(torch.ones(1)),
        lambda h: h.tensor,
        lambda h: h.tensor.fill_(-3),
        "what it holds copies a tensor in a way of its own",
    ),
}


@pytest.mark.parametrize("kind", UNSEEN)
def test_where_a_change_cannot_be_seen_the_model_runs_as_it_is(kind, batch):
    make, read, change, note = UNSEEN[kind]
    held = make()
    model = Holding(held, read).eval()
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    assert note in view.report.note
    change(held)
    view.refresh()
    assert_same_logits(view, model, batch[0])


SHARED_BY_NAME = SharedByName()
REFERRED_TO = Scale()
LASTING = {
    "logger": (lambda: logging.getLogger("model"), lambda h: h.isEnabledFor(logging.DEBUG)),
    "generator": (torch.Generator, torch.Generator.seed),
    "numpy's generator": (lambda: numpy.random.default_rng(0), lambda h: h.random()),
    "number": (lambda: numpy.float64(1), float),
    "operator": (lambda: [torch.ops.aten.relu, torch.ops.aten.relu.default], lambda h: h[0](torch.ones(1))),
    "storage": (lambda: torch.ones(1).untyped_storage(), len),
    "proxy": (lambda: weakref.proxy(REFERRED_TO), lambda h: h.scale),
    "what is shared": (Shared, change_attribute),
    "what is shared by its name": (lambda: SHARED_BY_NAME, change_attribute),
    "what a copy leaves out": (Forgetful, change_attribute),
    "pattern": (lambda: re.compile("a"), lambda h: h.match("a")),
}


@pytest.mark.parametrize("kind", LASTING)
def test_what_changes_no_output_costs_no_copy(kind, batch):
    make, use = LASTING[kind]
    held = make()
    view = AttackView(Holding(held, lambda h: 1.0).eval())
    view.prepare(batch[0])
    assert view.is_copy
    before = view.generation
    use(held)
    view.refresh()
    assert view.generation == before


@pytest.mark.parametrize("kind", ["object", "method"])
def test_hooks_that_change_are_followed(kind, batch):
    model, hook = body().eval(), Scale()
    model[1].register_forward_hook(hook if kind == "object" else hook.hook)
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    change_attribute(hook)
    view.refresh()
    assert_same_logits(view, model, batch[0])
    assert view.is_copy


def test_hooks_that_are_registered_anew_cost_no_copy(batch):
    """As around each batch whose features somebody collects: their numbers are others then."""
    model, hook = body().eval(), Scale()
    handle = model[1].register_forward_hook(hook.hook)
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    handle.remove()
    model[1].register_forward_hook(hook.hook)
    view.refresh()
    assert view.generation == 1


def reading(held):
    """The first weight that a holder of a module has."""
    return held(torch.ones(1, 1)).sum()


def closing_over(module):
    return lambda x: module(x)


def with_default(module):
    return lambda x, module=module: module(x)


STRANGERS = {
    "list": (lambda m: [m], lambda h: h[0].weight.sum()),
    "object": (lambda m: SimpleNamespace(m=m), lambda h: h.m.weight.sum()),
    "dict in an object": (lambda m: SimpleNamespace(d={"m": m}), lambda h: h.d["m"].weight.sum()),
    "method": (lambda m: m.forward, reading),
    "partial": (functools.partial, reading),
    "partial of a method": (lambda m: functools.partial(m.forward), reading),
    "object that a copy shares": (Shared, lambda h: h.tensor.weight.sum()),
    "closure": (closing_over, reading),
    "default": (with_default, reading),
    "proxy": (lambda m: [weakref.proxy(m)], lambda h: h[0].weight.sum()),
    "weak reference": (weakref.ref, lambda h: h().weight.sum()),
    "array": (lambda m: numpy.array([m, 1], dtype=object), lambda h: h[0].weight.sum()),
    "closure over an object": (lambda m: closing_over(SimpleNamespace(m=m).m), reading),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_module_that_is_not_registered_is_followed(kind, batch):
    hold, read = STRANGERS[kind]
    module = nn.Linear(1, 1)
    model = Holding(hold(module), read).eval()
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    assert NOT_REGISTERED in view.report.note
    nn.init.constant_(module.weight, -3)
    view.refresh()
    assert_same_logits(view, model, batch[0])


class OfFunctions(nn.Module):
    """Of layers that are called by functions, which no copy has of its own."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.head, self.how = nn.Linear(8, 5), how
        if how == "hook":
            self.conv.register_forward_hook(lambda module, inputs, output: self.norm(self.drop(output)))
        self.body = [lambda x: self.norm(self.drop(self.conv(x)))]

    def forward(self, x):
        x = self.conv(x) if self.how == "hook" else self.body[0](x)
        return self.head(x.relu().mean((2, 3)))


@pytest.mark.parametrize("how", ["hook", "list"])
@pytest.mark.parametrize("asked_before", [True, False])
def test_functions_of_a_models_own_layers_run_in_eval_mode_and_change_nothing(how, asked_before, batch):
    model = OfFunctions(how).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attack = PGD(eps=0.1, random_start=False)
    expected = PGD(eps=0.1, random_start=False)(model, *batch)
    if asked_before:
        attack(model, *batch)
    model.train()
    assert torch.equal(attack(model, *batch), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert NOT_REGISTERED in attack.run(model, *batch).notes[0]


VARIABLES = {}


def dropped(module, inputs, output):
    return VARIABLES["drop"](output)


def test_a_layer_that_a_function_reaches_by_a_variable_runs_in_eval_mode(batch):
    """Without weights, by which a copy's use of it would be noticed."""
    model = nn.Sequential(*body(), nn.Dropout(0.5)).train()
    VARIABLES["drop"] = model[2]
    model[0].register_forward_hook(dropped)
    attack = PGD(eps=0.1, random_start=False)
    assert torch.equal(attack(model, *batch), attack(model, *batch))
    assert NOT_REGISTERED in attack.view(model).report.note


ACTIVATION = nn.ReLU()


def test_a_forward_may_call_what_its_file_has(batch):
    class Acting(nn.Sequential):
        def forward(self, x):
            return ACTIVATION(super().forward(x))

    model = Acting(*body())
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    assert view.is_copy


sigmoid = nn.Sigmoid()


def test_a_method_s_name_is_no_variable_s(batch):
    model = body()
    model.register_forward_hook(lambda module, inputs, output: output.sigmoid())
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    assert view.is_copy


def test_a_weight_is_followed_where_a_state_is_made_of_copies(batch):
    class Copying(nn.Linear):
        def __getstate__(self):
            return {name: dict(v) if isinstance(v, dict) else v for name, v in vars(self).items()}

    model = nn.Sequential(nn.Flatten(), Copying(192, 5))
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    model[1].weight = nn.Parameter(-model[1].weight.detach())
    view.refresh()
    assert_same_logits(view, model, batch[0])


def test_a_model_whose_forward_was_replaced_for_a_while_gets_its_copy_afterwards(batch):
    model = body()
    model.forward = lambda x, forward=model.forward: forward(x)
    view = AttackView(model)
    assert not view.is_copy
    del model.forward
    view.refresh()
    assert_same_logits(view, model, batch[0])
    assert view.is_copy


def test_what_a_copy_leaves_out_is_no_part_of_a_model(batch):
    """As a LightningModule leaves out its trainer, which holds other modules."""

    class Trained(nn.Sequential):
        def __getstate__(self):
            return dict(vars(self)) | {"trainer": None}

    model = Trained(*body()).eval()
    model.trainer = SimpleNamespace(wrapped=nn.Linear(1, 1))
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    assert view.is_copy


def test_hooks_for_files_do_not_matter(batch):
    model, other = body().eval(), nn.Linear(1, 1)
    model.register_state_dict_post_hook(lambda *_: other)
    model.register_load_state_dict_post_hook(lambda *_: other)
    assert AttackView(model).is_copy


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_tensors_that_are_not_registered_are_cast(precision, batch):
    class Normalizes(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.net = torch.full((3, 1, 1), 0.5), nn.Sequential(nn.Conv2d(3, 4, 3), *body()[:1])
            self.head = nn.Linear(144, 5)

        def forward(self, x):
            return self.head(self.net(x - self.mean))

    model = Normalizes()
    view = AttackView(model, precision=precision)
    output = view(view.prepare(batch[0])).float()
    torch.testing.assert_close(output, model(batch[0]), rtol=0.1, atol=0.1)
    model.mean.fill_(-2)
    view.refresh()
    torch.testing.assert_close(view(view.prepare(batch[0])).float(), model(batch[0]), rtol=0.1, atol=0.1)
    assert model.mean.dtype == torch.float32


def test_a_snapshot_follows_circles_to_their_end():
    model = body()
    model.held = SimpleNamespace()
    model.held.me, model.held.list = model.held, [model.held]
    assert Structure(model).is_that_of(model)
    assert AttackView(model).is_copy


@pytest.mark.parametrize("hold", [lambda proxy: proxy, lambda proxy: Shared(proxy)])
def test_a_reference_may_have_lost_its_object(hold, batch):
    referred_to = Scale()
    view = AttackView(Holding(hold(weakref.proxy(referred_to)), lambda h: 1.0).eval())
    before = view.generation
    del referred_to
    view._model().new = 1  # so that all is looked into again
    view.refresh()
    view.refresh()
    assert view.generation == before + 1


def test_what_stands_in_the_way_of_half_precision_is_said_once():
    with pytest.raises(
        ValueError, match=f"^precision: got 'bf16', accepted: fp32, tf32, torch, since {NOT_REGISTERED}"
    ):
        AttackView(Holding([nn.Linear(1, 1)], None), precision="bf16")


def test_a_model_gets_its_copy_once_nothing_is_in_the_way(batch):
    model = Holding([nn.Linear(1, 1)], lambda h: 1.0).eval()
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    model.held.append(1)
    view.refresh()
    assert NOT_REGISTERED in view.report.note
    del model.held
    model.held = None
    view.refresh()
    assert_same_logits(view, model, batch[0])
    assert view.is_copy
    assert view.report.note is None
    model.held = [nn.Linear(1, 1)]
    view.refresh()
    assert NOT_REGISTERED in view.report.note
