"""What is folded and what must not be, where the first batch alone cannot tell."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from roli_fast.attacks import PGD
from roli_fast.engine import AttackView
from roli_fast.engine.folding import find_folds

from .cases import assert_same_logits, logits, through


class Functional(nn.Module):
    """Calls functions on its own tensors, besides a layer and its norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3) / 6)
        self.register_buffer("mean", torch.randn(4) / 5)
        self.register_buffer("var", torch.rand(4) + 0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = F.conv2d(F.relu(self.norm(self.conv(x))), self.weight)
        x = F.batch_norm(x, self.mean, self.var, training=self.training)
        return self.head(x.mean((2, 3)))


class ConvByFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        x = F.conv2d(x, self.conv.weight, self.conv.bias)
        return self.head(self.norm(x).mean((2, 3)))


def head_with_norm() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5, bias=False),
        nn.BatchNorm1d(5),
    )  # fmt: skip


def other_dimensions() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Unflatten(2, (2, 31)), nn.Unflatten(3, (31, 1)),
        nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(248, 5),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "shape", "folded"),
    [
        (Functional, (3, 8, 8), {"norm": "conv"}),
        (head_with_norm, (3, 8, 8), {"2": "1", "5": "4"}),
        (other_dimensions, (3, 64), {"1": "0", "6": "5"}),
    ],
)
def test_what_is_folded(make, shape, folded, randomize_norms):
    model, images = randomize_norms(make()).train(), torch.rand(4, *shape)
    view = AttackView(model)
    assert_same_logits(view, model, images)
    assert view.report.folded == folded
    assert not view.report.left


def test_a_layer_used_as_a_function_is_left(randomize_norms):
    model, images = randomize_norms(ConvByFunction()), torch.rand(4, 3, 8, 8)
    view = AttackView(model)
    assert_same_logits(view, model, images)
    assert view.report.left == {"norm": "it does not follow a layer"}


def tokens(channels: int, features: int) -> nn.Module:
    """A linear layer on (N, C, L), and a norm over its dimension 1."""
    return nn.Sequential(
        nn.Flatten(2), nn.Linear(64, features), nn.BatchNorm1d(channels), nn.Flatten(),
        nn.Linear(channels * features, 5),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("features", "reason"),
    [(3, "folded for an input of 2 dimensions, not 3"), (7, "another dimension of 1's")],
)
def test_a_norm_over_another_dimension_is_left(features, reason):
    """At first the norm does the same to all channels, and a wrong fold would pass the first batch."""
    model, images = tokens(3, features), torch.rand(4, 3, 8, 8)
    view = AttackView(model)
    assert_same_logits(view, model, images)
    assert reason in view.report.left["2"]
    assert view.is_copy
    with torch.no_grad():
        model[2].running_mean.normal_()
        model[2].weight.uniform_(0.5, 2)
    view.refresh()
    assert_same_logits(view, model, images)


def test_sync_batch_norm_is_a_batch_norm(convnet, batch):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(convnet)
    assert isinstance(model.model[1], nn.SyncBatchNorm)
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    assert view.report.folded == {"1": "0", "4": "3"}


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_any_batch_norm(affine, momentum, batch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.1, momentum=momentum, affine=affine))
    model = nn.Sequential(*model, nn.Flatten())
    model[1].running_var.uniform_(0.1, 3)
    model[1].running_mean.normal_()
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    assert view.report.folded == {"1": "0"}


def test_a_dead_channel(batch):
    """Zero variance and zero weight give numbers, as the norm itself does."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    model[1].running_var[0] = 0
    with torch.no_grad():
        model[1].weight[1] = 0
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])


def test_a_model_in_half_precision_is_folded_in_float32(convnet, batch):
    model = convnet.bfloat16()
    view = AttackView(model)
    expected = logits(model.float(), batch[0])
    torch.testing.assert_close(through(view, batch[0]), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("make", [Functional, head_with_norm])
def test_attack_step_refresh_attack(make, precision, randomize_norms, batch):
    """What an attack does after an optimiser step is bit for bit what a fresh one does."""
    model = randomize_norms(make()).train()
    images, labels = batch
    options = {"random_start": False, "steps": 3, "precision": precision}
    attack = PGD(**options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    last = None
    for _ in range(3):
        adv = attack(model, images, labels)
        assert torch.equal(adv, PGD(**options)(model, images, labels))
        assert last is None or not torch.equal(adv, last)
        last = adv
        optimizer.zero_grad()
        F.cross_entropy(model(adv), labels).backward()
        optimizer.step()


class Steered(nn.Module):
    """Takes a path that is chosen outside of it."""

    path = "norms"

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.first_norm, self.second_norm = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.head = nn.Linear(144, 5)

    def forward(self, x):
        a, b = self.first(x), self.second(x)
        if type(self).path == "crossed":
            return self.head((self.first_norm(b) + self.second_norm(a)).flatten(1))
        if type(self).path == "twice":
            return self.head((self.first_norm(self.first_norm(a)) + self.second_norm(b)).flatten(1))
        c = self.first_norm(a) + self.second_norm(b)
        if type(self).path == "besides":
            c = c + a
        if type(self).path == "instead":
            c = a
        if type(self).path == "by function":
            c = F.conv2d(x, self.first.weight, self.first.bias)
        if type(self).path == "by the class":
            c = nn.Conv2d.forward(self.first, x)
        if type(self).path == "on images":
            c = self.first_norm(x.repeat(1, 2, 1, 1)[:, :4, 1:-1, 1:-1])
        return self.head(c.flatten(1))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "path", ["crossed", "twice", "besides", "instead", "by function", "by the class", "on images"]
)
def test_a_forward_that_takes_another_path_later(path, precision, monkeypatch, randomize_norms, batch):
    model = randomize_norms(Steered()).eval()
    attack = PGD(eps=0.1, random_start=False, precision=precision)
    assert not attack.run(model, *batch).notes
    assert attack.view(model).report.folded
    for now in (path, "norms"):
        monkeypatch.setattr(Steered, "path", now)
        result = attack.run(model, *batch)
        fresh = PGD(eps=0.1, random_start=False, precision=precision, fold=False)(model, *batch)
        assert torch.equal(result.adversarial, fresh)
        assert "BatchNorm is no longer folded" in result.notes[0]


def test_a_forward_that_asks_whether_its_layer_has_a_bias(randomize_norms, batch):
    class Asking(nn.Sequential):
        def forward(self, x):
            return super().forward(x if self[0].bias is None else -x)

    layers = nn.Conv2d(3, 5, 8, bias=False), nn.BatchNorm2d(5), nn.Flatten()
    model = randomize_norms(Asking(*layers)).eval()
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    assert view.report.folded == {"1": "0"}


@pytest.mark.parametrize("traceable", [True, False])
def test_a_copy_goes_with_its_model(traceable, batch):
    class Model(nn.Sequential):
        def forward(self, x):
            return super().forward(x if traceable or x.sum() > 0 else -x)

    attack = PGD(steps=1)
    gc.disable()
    try:
        model = Model(nn.Conv2d(3, 5, 8), nn.BatchNorm2d(5), nn.Flatten())
        attack(model, *batch)
        assert bool(attack.view(model).report.folded) == traceable
        copied = weakref.ref(attack.view(model)._copy.module)
        del model
        assert copied() is None
    finally:
        gc.enable()


def test_a_call_of_another_thread_may_outlast_the_tracing(batch):
    """Which puts functions of its own in the place of torch's, for all threads."""
    met = []

    class Meeting(nn.Sequential):
        def forward(self, x):
            met.append(nn.Module.__call__)
            return super().forward(x)

    assert find_folds(Meeting(nn.Conv2d(3, 5, 8), nn.BatchNorm2d(5)))[0]
    with ThreadPoolExecutor(1) as other:
        found = other.submit(met[0], nn.Flatten(), batch[0]).result()
    assert torch.equal(found, batch[0].flatten(1))


def test_images_that_the_model_refuses_cost_no_folds(randomize_norms, batch):
    model = randomize_norms(nn.Sequential(nn.Conv2d(3, 5, 8), nn.BatchNorm2d(5), nn.Flatten())).eval()
    attack = PGD(eps=0.1)
    attack(model, *batch)
    with pytest.raises(ValueError, match="expected 4D input"):
        attack(model, batch[0][0], batch[1][:3])
    assert attack.view(model).report.folded == {"1": "0"}
    assert not attack.run(model, *batch).notes


@pytest.mark.parametrize("where", ["block", "model", "all modules"])
def test_hooks_see_what_the_model_gives_them(where, randomize_norms, batch):
    class Block(nn.Sequential):
        pass

    model = nn.Sequential(Block(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    randomize_norms(model).eval()
    seen = []

    def hook(module, inputs, output):
        if isinstance(module, nn.Sequential if where == "model" else Block):
            seen.append(output.detach())

    if where == "all modules":
        handle = nn.modules.module.register_module_forward_hook(hook)
    else:
        handle = (model if where == "model" else model[0]).register_forward_hook(hook)
    try:
        AttackView(model).prepare(batch[0])
        logits(model, batch[0])
    finally:
        handle.remove()
    for output in seen:
        torch.testing.assert_close(output, seen[-1][: len(output)], rtol=1e-4, atol=1e-5)


def test_a_model_without_norms_is_not_traced():
    class Untraceable(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    assert find_folds(Untraceable()) == ([], {})
