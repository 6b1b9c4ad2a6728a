"""The copy follows its model: weights, modules, settings and forward."""

import gc
import weakref

import pytest
import torch
from torch import nn

from roli_fast.attacks import PGD
from roli_fast.engine import AttackView
from roli_fast.models import Normalized, small_resnet

from .cases import assert_same_logits, logits, plain, through


def test_refresh_gives_what_a_fresh_view_gives(convnet, batch):
    images, labels = batch
    view = AttackView(convnet)
    view.prepare(images)
    optimizer = torch.optim.SGD(convnet.parameters(), lr=0.5)
    for _ in range(2):  # moves weights and running statistics
        nn.functional.cross_entropy(convnet(images), labels).backward()
        optimizer.step()
    stale = through(view, images)
    view.refresh()
    assert torch.equal(through(view, images), through(AttackView(convnet), images))
    assert not torch.allclose(through(view, images), stale)


def test_refresh_does_not_reallocate(convnet, batch):
    view = AttackView(convnet, precision="bf16")
    view.prepare(batch[0])
    before = [t.data_ptr() for t in view._copy.module.parameters()]
    view.refresh()
    assert [t.data_ptr() for t in view._copy.module.parameters()] == before


def test_refresh_notices_other_modules(batch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    view = AttackView(model)
    view.prepare(batch[0])
    model[1] = nn.Tanh()
    view.refresh()
    torch.testing.assert_close(through(view, batch[0]), logits(model, batch[0]))
    model.double()
    view.refresh()
    images = batch[0].double()
    torch.testing.assert_close(through(view, images), logits(model, images))


def add_hook(model):
    model.register_forward_hook(lambda module, inputs, output: -output)


def flip_attribute(model):
    model.flip = -1.0


def swap_hook(model):
    model._forward_hooks.clear()
    model.register_forward_hook(lambda module, inputs, output: 3 * output)


def patch_forward(model):
    model.forward = lambda x, forward=model.forward: -forward(x)


def exchange_class(model):
    class Flipped(type(model)):
        def forward(self, x):
            return super().forward(1 - x)

    model.__class__ = Flipped


def exchange_class_of_norm(model):
    model[1].__class__ = Doubling


class Doubling(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Flips(nn.Sequential):
    flip = 1.0

    def forward(self, x):
        return self.flip * super().forward(x)


@pytest.mark.parametrize(
    "change", [add_hook, flip_attribute, swap_hook, patch_forward, exchange_class, exchange_class_of_norm]
)
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: Normalized(m, (0.5,) * 3, (0.2,) * 3)])
def test_refresh_notices_another_function(change, wrap, batch):
    model = Flips(*plain())
    model.flip = 1.0
    model.register_forward_hook(lambda module, inputs, output: 2 * output)
    model = wrap(model)
    view = AttackView(model)
    view.prepare(batch[0])
    change(model if change in (add_hook, patch_forward) else getattr(model, "model", model))
    view.refresh()
    torch.testing.assert_close(through(view, batch[0]), logits(model, batch[0]), rtol=1e-4, atol=1e-5)


def test_refresh_notices_another_forward_of_a_class(monkeypatch, randomize_norms, batch):
    model = randomize_norms(plain())
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    assert view.report.folded
    forward = nn.BatchNorm2d.forward
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, x: forward(self, x).neg())
    view.refresh()
    assert_same_logits(view, model, batch[0])


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: Normalized(m, (0.5,) * 3, (0.2,) * 3)])
def test_a_view_does_not_keep_its_model_alive(wrap, batch):
    model = wrap(small_resnet(3))
    view = AttackView(model)
    view.prepare(batch[0])
    view.hold_weakly()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert view.report.folded


def test_refresh_follows_a_tensor_that_is_no_buffer(batch):
    model = nn.Sequential(*plain())
    model.temperature = torch.ones(())
    model.forward = lambda x: nn.Sequential.forward(model, x) * model.temperature
    view = AttackView(model)
    view.prepare(batch[0])
    model.temperature.mul_(3)
    view.refresh()
    torch.testing.assert_close(through(view, batch[0]), logits(model, batch[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{"sign": 1.0}, [1.0]])
def test_refresh_notices_what_is_in_containers(settings, batch):
    class Signed(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * self.settings["sign" if isinstance(self.settings, dict) else 0]

    model = Signed(*plain())
    model.settings = settings
    view = AttackView(model)
    view.prepare(batch[0])
    settings["sign" if isinstance(settings, dict) else 0] = -1.0
    view.refresh()
    torch.testing.assert_close(through(view, batch[0]), logits(model, batch[0]), rtol=1e-4, atol=1e-5)


def test_a_model_that_changes_itself_is_followed_and_says_so():
    """What counts calls may be part of what is computed: the copy is made anew, which is slow."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.calls = nn.Linear(12, 4), 0

        def forward(self, x):
            self.calls += 1
            return self.layer(x.flatten(1))

    attack, model = PGD(eps=0.1, steps=2), Counting()
    batch = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 3])
    with pytest.warns(UserWarning, match="roli_fast: the model changes calls from call to call") as warned:
        notes = [attack.run(model, *batch).notes for _ in range(5)]
    assert len(warned) == 1
    assert notes[0] == notes[1] == ()
    assert notes[4] == ("the model changes calls from call to call: its copy is made anew each time",)
