"""Advice goes by all that the page has measured, and by nothing that it does not believe itself."""

import dataclasses

import pytest
import torch
from torch import nn

from roli_fast.evaluation import Accuracy
from roli_fast.report import Rate, compare, measure, read_run, sanity
from roli_fast.report.advice import advice, advice_between

from .cases import CLASSES, EPS, images, linear, shorten


class DarkRounded(nn.Module):
    """Of dark images, levels of grey: they have no gradient."""

    def forward(self, x):
        dark = x.mean(dim=(1, 2, 3), keepdim=True) < 0.5
        return torch.where(dark, (x * 16).round() / 16, x)


def measured(model):
    return measure(model, [images()], eps=EPS, classes=CLASSES)


@pytest.fixture(scope="module")
def sound():
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)  # three steps are enough for a linear model
        return measured(linear())


@pytest.fixture(scope="module")
def masked():
    model = linear()
    model.backbone = nn.Sequential(DarkRounded(), model.backbone)
    return measured(model)


def withstood(found, count):
    """As if the page's attacks together left so many images right."""
    robust = Accuracy(torch.arange(40) < count)
    return dataclasses.replace(
        found,
        numbers=dataclasses.replace(found.numbers, robust=Rate.of(robust)),
        transfer=dataclasses.replace(found.transfer, robust=robust),
    )


def test_what_all_attacks_leave_is_what_is_advised_by(masked):
    numbers = masked.numbers
    assert numbers.robust.value < masked.transfer.outcomes[0].robust.value
    moved = numbers.transfer
    assert moved.kept == numbers.robust.right
    assert moved.summary["robust"]["value"] == numbers.robust.value
    assert moved.summary["expected_robust_estimated"][1] == numbers.robust.value
    assert masked.transfer.robust.value == numbers.robust.value


def test_a_failed_check_withholds_advice(sound, masked):
    failed = [check.name for check in sanity(masked.numbers) if not check.passed]
    assert failed
    for advised in (advice(masked), advice_between([sound], [masked]), advice_between([masked], [sound])):
        assert advised.method == "none"
        assert "cannot be trusted" in advised.reason
        assert all(name in advised.reason for name in failed)
        assert f"{masked.numbers.robust.value:.1%}" in advised.expectation


def test_a_sound_model_is_advised_on(sound):
    right = sum(sound.numbers.robust.right)
    assert f"the attacks leave {right} of 40 right images right" in advice(sound).reason
    better, worse = withstood(sound, 30), withstood(sound, 10)
    assert "+50.0 points" in advice_between([better], [worse]).reason
    assert advice_between([better], [worse]).method == "probe"
    assert advice_between([worse], [better]).method == "finetune"


def test_without_an_analysis_there_is_no_advice(sound):
    none = dataclasses.replace(sound, transfer=None)
    assert advice(none) is None
    assert advice_between([sound], [none]) is None


def test_runs_are_compared_under_all_attacks(sound, made):
    """Not under PGD, which the same two models withstand alike."""
    runs = [read_run(made / name) for name in ("roli", "ranli")]
    found = {"roli": withstood(sound, 30), "ranli": withstood(sound, 10)}
    gaps = {gap.what: gap.value for gap in compare(runs, found).gaps}
    assert gaps == pytest.approx({"clean": 0, "robust": 0.5})
    runs[1] = dataclasses.replace(runs[1], method="linear", kind="linear probing")
    compared = compare(runs, found)
    assert {gap.what: gap.value for gap in compared.transferred}["robust"] == pytest.approx(-2 / 3)
    assert compared.advice.method == "finetune"
