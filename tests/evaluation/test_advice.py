"""What probed and finetuned runs say of each other."""

import dataclasses
import functools
import re

import pytest
import torch

from roli_fast.attacks import PGD
from roli_fast.evaluation import (
    TRANSFERRED,
    Accuracy,
    advise,
    advise_between,
    difference,
    sensitivity_attack,
    transfer,
    transferred,
)
from roli_fast.models import create_model


def accuracy(right, total=100):
    return Accuracy(torch.arange(total) < right)


def test_the_formula():
    """(probed - finetuned) / finetuned, of means over the runs."""
    assert transferred([accuracy(60)], [accuracy(80)]).value == pytest.approx(-0.25)
    assert transferred([accuracy(90)], [accuracy(60)]).value == pytest.approx(0.5)
    assert transferred([accuracy(0)], [accuracy(60)]).value == -1
    several = transferred([accuracy(50), accuracy(60)], [accuracy(40), accuracy(50), accuracy(60)])
    assert several.value == pytest.approx((55 - 50) / 50)
    assert TRANSFERRED.startswith("(probed - finetuned) / finetuned")


def test_the_interval_is_paired_and_knows_of_runs():
    same = transferred([accuracy(60)], [accuracy(60)])
    assert same.value == 0
    assert -0.1 < same.low < 0 < same.high < 0.1
    mirrored = Accuracy(accuracy(60).right.flip(0))
    apart = transferred([mirrored], [accuracy(60)])
    assert apart.low < -0.15 < 0.15 < apart.high
    spread = transferred([accuracy(40), accuracy(80)], [accuracy(60), accuracy(60)])
    assert spread.low < -0.25 < 0.25 < spread.high
    # On one run each, in units of the finetuned accuracy, what difference() says.
    probed, finetuned = accuracy(70, 400), accuracy(90, 400)
    gap, plain = transferred([probed], [finetuned]), difference(probed, finetuned)
    assert gap.value * 90 / 400 == pytest.approx(plain.value)
    assert plain.low < gap.high * 90 / 400 < 0


@pytest.mark.parametrize("runs", [1, 3])
def test_images_that_all_agree_are_no_certainty(runs):
    """In units of the finetuned accuracy, what difference() says of them; nothing is worse than -1."""
    for probed, finetuned, images in ((0, 1, 1), (3, 3, 3), (30, 30, 60)):
        gap = transferred([accuracy(probed, images)] * runs, [accuracy(finetuned, images)] * runs)
        plain = difference(accuracy(probed, images), accuracy(finetuned, images))
        unit = finetuned / images
        assert gap.value == pytest.approx(plain.value / unit)
        assert (gap.low, gap.high) == pytest.approx((max(-1, plain.low / unit), plain.high / unit))
        assert gap.low < gap.high


def test_a_resample_without_anything_right_is_no_number_that_is_wrong():
    rare = transferred([accuracy(5, 20)], [Accuracy(torch.arange(20) == 19)])
    assert rare.value == pytest.approx(4)
    assert rare.high == float("inf")
    assert rare.low <= 4


@pytest.mark.parametrize(
    ("probed", "finetuned", "message"),
    [
        ([], [accuracy(5)], "probed, finetuned: got 0 and 1 runs, accepted: 1 or more"),
        (
            [accuracy(5)],
            [accuracy(5, 50)],
            r"probed, finetuned: got \[50, 100\] images, accepted: the same images",
        ),
        ([accuracy(5)], [accuracy(0)], "finetuned: got an accuracy of 0, accepted: one above 0"),
    ],
)
def test_runs_that_do_not_fit(probed, finetuned, message):
    with pytest.raises(ValueError, match=message):
        transferred(probed, finetuned)


@functools.cache
def found(eps=0.05):
    torch.manual_seed(0)
    model = create_model("small_resnet", 3, in_chans=1, channels=(4, 4, 4, 4))
    images = torch.rand(60, 1, 8, 8)
    labels = model.eval()(images).argmax(dim=1)
    attack = PGD(eps=eps, step_size=eps / 2, steps=2)
    return transfer(model, [(images, labels)], sensitivity_attack(eps, steps=2), [attack])


def run(robust, clean=60, images=60):
    """As if so many images were right and withstood."""
    return dataclasses.replace(found(), clean=accuracy(clean, images), robust=accuracy(robust, images))


@pytest.mark.parametrize(
    ("probed", "finetuned", "method", "reason"),
    [
        ([50], [20], "probe", r"probing measures \+50.0 points"),
        ([20], [50], "finetune", r"probing measures -50.0 points"),
        ([30], [30], "probe", "no difference that these images could show, and probing costs less"),
        ([20, 40], [30, 31], "probe", "no difference that these images could show"),
    ],
)
def test_the_more_robust_way_is_advised(probed, finetuned, method, reason):
    runs = [run(right) for right in probed], [run(right) for right in finetuned]
    advice = advise_between(*runs)
    assert advice.method == method
    assert re.search(reason, advice.reason)
    chosen = runs[0] if method == "probe" else runs[1]
    measured = sum(one.robust.value for one in chosen) / len(chosen)
    assert f"and {measured:.1%} is estimated" in advice.expectation


@pytest.mark.parametrize(
    ("probed", "finetuned", "method", "reason"),
    [
        (run(20, 20), run(0, 55), "none", "neither probing nor finetuning is robust on any image"),
        (run(0, 20), run(0, 55), "none", "neither probing nor finetuning is robust on any image"),
        (run(0, 55), run(0, 55), "none", "neither probing nor finetuning is robust on any image"),
        (run(20, 20), run(1, 55), "finetune", "is not robust on any image, but for what guessing may"),
        (run(0, 55), run(1, 55), "finetune", "is not robust on any image, but for what guessing may"),
        (run(30, 55), run(20, 20), "probe", r"\+50.0 points"),
    ],
)
def test_what_guesses_is_not_robust(probed, finetuned, method, reason):
    """A constant output has one class of three right under any attack."""
    advice = advise_between([probed], [finetuned])
    assert advice.method == method
    assert re.search(reason, advice.reason)


def test_a_constant_is_not_advised_on():
    assert "20 of 60 images right, which guessing among 3 classes may do" in advise(run(20, 20)).reason


def test_a_few_images_that_all_agree_decide_nothing():
    for robust in (1, 3):
        reason = advise_between([run(3, 3, 3)], [run(3 - robust, 3, 3)]).reason
        assert "no difference that these images could show" in reason


def test_more_attacks_lower_what_is_expected():
    """Those that a caller knows of, beside the ones of the analysis."""
    weaker = dataclasses.replace(found(), robust=accuracy(3, 60))
    assert weaker.expected == (min(3 / 60, found().criterion.predicted.value), 3 / 60)
    assert weaker.summary()["robust"]["value"] == 3 / 60
    assert "3 of 60 right images right, less than half" in advise(weaker).reason


def test_expectations_are_bounds():
    """Also where attacks leave less than the criterion promises."""
    low, high = run(0, 60).expected
    assert found().criterion.predicted.value > 0
    assert (low, high) == (0, 0)


def test_runs_under_different_attacks_are_not_compared():
    with pytest.raises(ValueError, match="got 2 different sets of attacks, accepted: the same"):
        advise_between([found()], [found(0.1)])
