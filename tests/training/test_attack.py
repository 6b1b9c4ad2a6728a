"""The attack in the loop: what it makes, how it grows, and what it leaves alone."""

import contextlib
import functools

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, EvoNorm2dB0
from torch import nn

from roli_fast.attacks import NFGSM, PGD
from roli_fast.training import attack as module
from roli_fast.training.attack import TrainingAttack, fastest_precision
from roli_fast.training.surroundings import settled_precision

from .cases import blobs, recipe, small_model, weights


@pytest.fixture
def images_labels():
    stored = blobs(12)
    return stored.images, stored.labels


def call(attack, images, labels, key=7):
    return attack(images, labels, torch.arange(len(images)), torch.tensor([key])).adversarial


def test_it_is_pgd_with_the_samples_own_draws(images_labels):
    images, labels = images_labels
    model = small_model().train()
    attack = TrainingAttack(model, recipe(), "fp32")
    found = call(attack, images, labels)
    again = call(attack, images.flip(0), labels.flip(0))
    assert (found - images / 255).abs().max() <= 0.1 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert not torch.equal(found, again.flip(0))  # the index, not the place in the batch, draws
    index = torch.arange(12).flip(0)
    own = attack(images.flip(0), labels.flip(0), index, torch.tensor([7])).adversarial
    torch.testing.assert_close(own.flip(0), found, rtol=0, atol=1e-5)
    expected = PGD(eps=0.1, step_size=0.025, steps=2).run(
        model, images, labels, index=torch.arange(12), key=torch.tensor([7])
    )
    torch.testing.assert_close(found, expected.adversarial)


def test_sizes_grow_to_the_recipes(images_labels):
    images, labels = images_labels
    attack = TrainingAttack(small_model(), recipe(epochs=3, eps_warmup_epochs=2), "fp32")
    reached = []
    for epoch in (0.0, 1.0, 2.0, 5.0):
        attack.grow(epoch)
        reached.append((call(attack, images, labels) - images / 255).abs().max().item())
    assert reached[0] == 0
    assert reached[1] == pytest.approx(0.05, abs=1e-6)
    assert reached[2] == reached[3] == pytest.approx(0.1, abs=1e-6)


def test_in_train_mode_the_batch_normalises_and_statistics_stay(images_labels):
    """Against the formula of a step in plain torch, on a network whose gradient depends on the mode."""
    images, labels = images_labels
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    model.train()
    before = weights(model)
    settings = recipe(attack_mode="train", steps=1, step_size=0.05, eps=0.1)
    found = call(TrainingAttack(model, settings, "fp32"), images, labels)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    start = PGD(eps=0.1).start(images, 0.1, torch.tensor([7, 0]), torch.arange(12))
    start.requires_grad_()
    F.cross_entropy(model(start), labels).backward()
    step = start + 0.05 * start.grad.sign()
    clean = images / 255
    expected = torch.minimum(torch.maximum(step, clean - 0.1), clean + 0.1).clamp(0, 1)
    differ = (found - expected.detach()).abs() > 1e-6
    assert differ.float().mean() < 0.01
    in_eval = call(TrainingAttack(model, recipe(steps=1, step_size=0.05), "fp32"), images, labels)
    assert (found - in_eval).abs().max() > 0.04  # the mode matters here


class Observer(nn.Module):
    """Keeps a mean of its own, in a tensor that each forward makes anew."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("unset", None)
        self.register_buffer("expanded", torch.ones(1).expand(3))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        self.unset = x.detach().amax()
        return x


class OwnStatistics(nn.BatchNorm2d):
    """Tracks whenever it trains, whatever track_running_stats says."""

    def forward(self, x):
        if self.training:
            self.num_batches_tracked += 1
            self.running_mean = self.running_mean.lerp(x.detach().mean((0, 2, 3)), 0.1)
        return x - self.running_mean[:, None, None]


def patched_norm():
    norm = nn.BatchNorm2d(4)
    norm.forward = functools.partial(OwnStatistics.forward, norm)
    return norm


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.InstanceNorm2d(4, track_running_stats=True),
        lambda: EvoNorm2dB0(4),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)),
        lambda: nn.utils.spectral_norm(nn.Conv2d(4, 4, 1)),
        Observer,
        lambda: OwnStatistics(4),
        patched_norm,
        lambda: BatchNormAct2d(4),
    ],
    ids=[
        *("instance norm", "evonorm", "spectral norm", "older spectral norm", "observer"),
        *("batch norm of the user's", "patched batch norm", "timm's batch norm"),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_in_train_mode_no_buffer_changes(layer, fails, images_labels):
    """Nor its place in memory, which a graph of the training step may know."""
    images, labels = images_labels
    model = nn.Sequential(nn.Conv2d(1, 4, 3), layer(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))
    model.train()
    if fails:
        model[4].register_forward_hook(lambda *_: 1 / 0)
    buffers, before = dict(model.named_buffers()), weights(model)
    attack = TrainingAttack(model, recipe(attack_mode="train", steps=1), "fp32")
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        call(attack, images, labels)
    after = dict(model.named_buffers())
    assert after.keys() == buffers.keys()
    assert all(after[name] is buffer for name, buffer in buffers.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[2].track_running_stats


def test_nfgsm_starts_in_noise_and_is_not_pulled_back():
    """de Jorge et al. 2022: x + noise + eps sign(gradient there), clamped to the box alone."""
    images = torch.full((5, 1, 4, 4), 0.5, dtype=torch.float64)
    labels = torch.zeros(5, dtype=torch.int64)
    direction = torch.randn(2, 16, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    with torch.no_grad():
        model[1].weight.copy_(direction)
    attack = NFGSM(eps=0.1)
    assert attack.eps == pytest.approx(0.3)
    moved = attack(model, images, labels) - images
    ascent = 0.1 * (direction[1] - direction[0]).sign().reshape(4, 4)
    noise = moved - ascent
    assert noise.abs().max() <= 0.2 + 1e-12
    assert noise.abs().max() > 0.15
    with pytest.raises(ValueError, match="noise: got 0, accepted: a number above 0"):
        NFGSM(noise=0)


def test_the_fastest_precision_is_one_of_those_allowed(images_labels):
    images, labels = images_labels
    model = small_model()
    assert fastest_precision(model, images, labels, recipe()) in ("fp32", "bf16")
    for settings, expected in (
        (recipe(precision="bf16"), "bf16"),
        (recipe(precision="auto", attack_mode="train"), "fp32"),
        (recipe(precision="auto", attack="none"), "fp32"),
    ):  # and no batch is read
        assert settled_precision(model, None, settings, None) == expected


def test_a_precision_that_does_not_fit_into_memory_is_not_chosen(images_labels, monkeypatch):
    images, labels = images_labels
    model, passes = small_model(), module._seconds

    def measured(call, device):
        if call.func.precision == "fp32":
            raise torch.OutOfMemoryError("fp32")
        return passes(call, device)

    monkeypatch.setattr(module, "_seconds", measured)
    assert fastest_precision(model, images, labels, recipe()) == "bf16"

    def none(call, device):
        raise torch.OutOfMemoryError(call.func.precision)

    monkeypatch.setattr(module, "_seconds", none)
    with pytest.raises(torch.OutOfMemoryError):
        fastest_precision(model, images, labels, recipe())


def test_in_train_mode_each_step_is_paid_once(images_labels):
    """The first batch tells the shape of outputs; after it, there is nothing but the attack."""
    images, labels = images_labels
    model = small_model().train()
    attack = TrainingAttack(model, recipe(attack_mode="train", steps=3), "fp32")
    call(attack, images, labels)
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    for _ in range(2):
        seen.clear()
        assert call(attack, images, labels).shape == images.shape
        assert seen == [12] * 3
