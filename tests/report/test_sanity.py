"""Each check fails on a model that was built for it, says so, and lets sound ones pass."""

import dataclasses

import pytest
import torch

from roli_fast.report import TOLERANCE, measure, sanity

from .cases import CLASSES, EPS, PIXELS, NaNGradient, NarrowBand, Quantised, images, linear

BOX, RISE, RESTARTS, SQUARE, GRADIENTS = range(5)


def checked(model, x=None, labels=None, eps=EPS, tell=lambda what: None):
    x, labels = images() if x is None else (x, labels)
    found = measure(model, [(x, labels)], eps=eps, classes=CLASSES, tell=tell).numbers
    return found, sanity(found)


def failed(checks):
    return {number for number, check in enumerate(checks) if not check.passed}


def test_a_sound_model_passes():
    _, checks = checked(linear())
    assert failed(checks) == set()
    assert [check.value for check in checks] == [0.0] * 5


def test_quantised_input():
    """No gradient leads anywhere, so that only random search finds what there is."""
    found, checks = checked(Quantised(16))
    assert failed(checks) >= {BOX, SQUARE, GRADIENTS}
    assert found.gradients.zero == found.images
    assert checks[GRADIENTS].measured == "zero for 40 and not finite for 0 of 40 images"
    assert checks[GRADIENTS].value == 1
    assert found.ensemble.only_square > 4
    assert checks[SQUARE].measured.startswith(f"{found.ensemble.only_square} of 40 images withstood")
    assert found.robust.value < found.at_eps.carried.value
    for number in (BOX, SQUARE, GRADIENTS):
        assert "gradient" in checks[number].means.lower()
        assert "mask" in checks[number].means


def test_an_attack_that_is_weaker_at_a_larger_eps():
    x = torch.full((20, 1, 8, 8), 0.5)
    found, checks = checked(NarrowBand(), x, torch.zeros(20, dtype=torch.int64), eps=0.06)
    assert RISE in failed(checks)
    assert checks[RISE].value > 0.3
    assert "rises by" in checks[RISE].measured
    assert "from eps " in checks[RISE].measured
    carried = [point.carried.value for point in found.points]
    assert carried == sorted(carried, reverse=True)
    alone = [point.alone.value for point in found.points]
    assert alone != sorted(alone, reverse=True)


def test_restarts_are_compared_at_one_eps(quick):
    """Successes of smaller eps are none of a single start at this one."""
    x = torch.full((20, 1, 8, 8), 0.5)
    found, _ = checked(NarrowBand(), x, torch.zeros(20, dtype=torch.int64), eps=0.12)
    assert found.at_eps.alone.value > found.at_eps.carried.value
    assert found.restarts[1] == found.at_eps.alone


def test_a_model_that_changes_as_it_is_asked():
    state = {"hardened": False}
    inner = linear()

    def model(x):
        return inner(x.round() * 0.4 + 0.3 if state["hardened"] else x)

    def tell(what):
        state["hardened"] = what == "5 starts"

    found, checks = checked(model, tell=tell)
    assert RESTARTS in failed(checks)
    assert found.restarts[5].value > found.restarts[1].value + 0.2
    assert "random, or change" in checks[RESTARTS].means


def test_gradients_that_are_nan(quick):
    found, checks = checked(NaNGradient())
    assert GRADIENTS in failed(checks)
    assert (found.gradients.zero, found.gradients.not_finite) == (0, 40)
    assert "not finite for 40 of 40" in checks[GRADIENTS].measured


def test_a_constant_model_is_not_robust(quick):
    bias = torch.tensor([1.0, 0.0])
    found, checks = checked(lambda x: bias + 0 * x.reshape(len(x), PIXELS)[:, :2])
    assert found.clean.value == found.points[-1].alone.value == 0.5
    assert failed(checks) >= {BOX, GRADIENTS}


@pytest.mark.parametrize(("right", "passes"), [(0, True), (2, True), (3, False)])
def test_the_tolerance_is_a_share_of_the_images(right, passes, quick):
    found, _ = checked(linear())
    few = dataclasses.replace(found.points[-1].alone, value=right / 100)
    last = dataclasses.replace(found.points[-1], alone=few)
    check = sanity(dataclasses.replace(found, points=[*found.points[:-1], last]))[BOX]
    assert TOLERANCE == check.limit == 0.02
    assert check.passed == passes
