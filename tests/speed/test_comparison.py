"""What a comparison says, and when it says nothing. Times are looked at, never judged."""

import dataclasses
import functools
import json

import pytest
import torch
from torch import nn

from roli_fast.attacks import PGD
from roli_fast.models import Normalized
from roli_fast.speed import comparison
from roli_fast.speed.comparison import BEST, OURS, Variant, compare
from roli_fast.speed.peers import Settings
from roli_fast.speed.subjects import labelled

SETTINGS = Settings("linf", 8 / 255, 2 / 255, 3)


def pgd(model, settings, images):
    attack = PGD(**dataclasses.asdict(settings))
    return lambda images, labels: attack(model, images, labels)


def leaving_the_ball(model, settings, images):
    return lambda images, labels: (images + 2 * settings.eps).clamp(0, 1)


def doing_nothing(model, settings, images):
    return lambda images, labels: images.clone()


def unable_under_autocast(model, settings, images):
    def attack(images, labels):
        if torch.is_autocast_enabled("cpu"):
            raise TypeError("no bf16 here\nbut a second line")
        return pgd(model, settings, images)(images, labels)

    return attack


@pytest.fixture
def model(randomize_norms):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    return Normalized(randomize_norms(net), (0.5,) * 3, (0.25,) * 3).eval()


@pytest.fixture
def batches(model):
    return labelled(model, [torch.rand(8, 3, 8, 8) for _ in range(2)])


def by_place(found):
    return {(entry.column, entry.contender): entry for entry in found.entries}


def test_everything_is_measured_in_every_column(model, batches):
    seen = []
    found = compare(
        model,
        batches,
        SETTINGS,
        precisions=("fp32", "bf16"),
        peers={"twin": pgd},
        rounds=2,
        progress=lambda *state: seen.append(state),
    )
    entries = by_place(found)
    columns, names = ("fp32", "bf16", BEST), (OURS, "twin")
    assert sorted(entries) == sorted((column, name) for column in columns for name in names)
    for (column, name), entry in entries.items():
        assert entry.notes == ()
        assert entry.ms_per_image["q1"] <= entry.ms_per_image["median"] <= entry.ms_per_image["q3"]
        assert (entry.ratio is None) == (name == OURS)
        assert entry.peak_bytes > batches[0][0].nbytes
        assert entry.robust.images == 16
        assert 0 <= entry.robust.low <= entry.robust.value <= entry.robust.high <= 1
        assert column == BEST or entry.variant == f"{column}, channels-last"
    assert set(found.overhead) == {"fp32", "bf16"}
    assert found.shape == (8, 3, 8, 8)
    assert {what for what, _, _ in seen} == {"trying", "measuring"}
    assert seen[-1][1] == seen[-1][2]
    assert json.loads(json.dumps(dataclasses.asdict(found)))["entries"][0]["contender"] == OURS


def test_no_ratio_where_robust_accuracies_differ(model, batches):
    found = compare(model, batches, SETTINGS, precisions=["fp32"], peers={"idle": doing_nothing}, rounds=2)
    for column in ("fp32", BEST):
        ours, idle = (by_place(found)[column, name] for name in (OURS, "idle"))
        assert ours.robust.high < 1 == idle.robust.value  # the model's own labels
        assert idle.ms_per_image is not None
        assert idle.ratio is None
        assert "robust accuracy differs from ours by +" in idle.notes[0]


def test_no_ratio_outside_the_ball(model, batches):
    found = compare(model, batches, SETTINGS, precisions=["fp32"], peers={"far": leaving_the_ball}, rounds=2)
    entry = by_place(found)["fp32", "far"]
    assert entry.ratio is None
    assert entry.notes == ("leaves the ball or the box",)


def test_an_error_under_autocast_is_reported_and_another_variant_is_the_best(model, batches):
    peers = {"old": unable_under_autocast}
    found = by_place(compare(model, batches, SETTINGS, precisions=("fp32", "bf16"), peers=peers, rounds=2))
    failed, best = found["bf16", "old"], found[BEST, "old"]
    assert found["fp32", "old"].notes == ()
    assert (failed.ms_per_image, failed.robust, failed.variant, failed.peak_bytes) == (None,) * 4
    assert failed.notes == ("TypeError: no bf16 here",)
    assert best.variant.startswith("fp32")
    assert best.ratio is not None
    (note,) = best.notes
    assert note.startswith("TypeError: no bf16 here (bf16, channels-last;")


def test_a_peer_that_never_runs_is_in_no_column(model, batches):
    def broken(model, settings, images):
        raise RuntimeError("not today")

    found = compare(model, batches, SETTINGS, precisions=["fp32"], peers={"broken": broken}, rounds=2)
    for column in ("fp32", BEST):
        entry = by_place(found)[column, "broken"]
        assert entry.ms_per_image is None
        assert entry.notes[0] == "RuntimeError: not today"


def test_the_best_of_a_peer_is_its_fastest_variant(model, batches, monkeypatch):
    """By a clock that is kind to contiguous images and parameters without gradients in fp32."""
    seconds = [1.0]

    def picky(model, settings, images):
        attack = pgd(model, settings, images)

        def run(images, labels):
            frozen = not any(p.requires_grad for p in model.parameters())
            liked = frozen and images.is_contiguous() and not torch.is_autocast_enabled("cpu")
            seconds[0] = 0.5 if liked else 2.0
            return attack(images, labels)

        return run

    def stopwatch(call, repeats):
        seconds[0] = 1.0
        call()
        return seconds[0]

    monkeypatch.setattr(comparison, "until_done", stopwatch)
    found = by_place(compare(model, batches, SETTINGS, peers={"picky": picky}, rounds=2))
    best = found[BEST, "picky"]
    assert best.variant == str(Variant("fp32", channels_last=False, frozen=True))
    assert best.ratio == {"median": 0.5, "q1": 0.5, "q3": 0.5}
    assert best.ms_per_image["median"] == 500 / 8
    assert found["fp32", "picky"].ratio["median"] == 2


def test_what_was_slow_only_when_it_was_tried_can_be_the_best(model, batches, monkeypatch):
    """By a clock on which bf16 is the faster one until the rounds begin."""
    in_rounds = [False]

    def stopwatch(call, repeats):
        call()
        precision = getattr(call, "args", ("",))[0]
        return {"bf16": 1.0, "fp32": 0.5 if in_rounds[0] else 2.0}[precision]

    class Named(comparison._Bench):
        def calls(self, name, variant):
            run = super().calls(name, variant)
            return [functools.partial(lambda _, call: call(), variant.precision, call) for call in run]

        def model_alone(self, precision):
            in_rounds[0] = True
            return [functools.partial(lambda _: None, precision)]

    monkeypatch.setattr(comparison, "_Bench", Named)
    monkeypatch.setattr(comparison, "_timed", lambda call: (stopwatch(call, 1), call()))
    monkeypatch.setattr(comparison, "until_done", stopwatch)
    found = by_place(compare(model, batches, SETTINGS, peers={}, rounds=2))
    assert found[BEST, OURS].variant == "fp32, channels-last"
    assert found[BEST, OURS].ms_per_image == found["fp32", OURS].ms_per_image


def test_the_model_is_left_as_it_was(model, batches):
    def rude(model, settings, images):
        def attack(images, labels):
            model.train()
            model(images).sum().backward()
            model.eval()
            return pgd(model, settings, images)(images, labels)

        return attack

    before = {name: value.clone() for name, value in model.state_dict().items()}
    compare(model, batches, SETTINGS, precisions=["fp32"], peers={"rude": rude}, rounds=2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())
