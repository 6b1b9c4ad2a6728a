"""cleverhans' ways, and the tests that the library carries."""

import math
import unittest

import pytest
import torch
from torch import nn

from roli_fast.compat import cleverhans


@pytest.fixture
def s(digits_subject):
    return digits_subject.first(40)


def test_labels_default_to_what_the_model_sees(s):
    with torch.no_grad():
        seen = s.model(s.images).argmax(1)
    arguments = s.model, s.images, 0.1, math.inf
    assert torch.equal(
        cleverhans.fast_gradient_method(*arguments), cleverhans.fast_gradient_method(*arguments, y=seen)
    )


def test_flags_are_what_the_library_takes_for_them(s):
    pgd, arguments = cleverhans.projected_gradient_descent, (s.model, s.images, 0.1, 0.05, 2, math.inf)
    found = pgd(*arguments, y=s.labels, targeted=1, rand_init=0)
    assert torch.equal(found, pgd(*arguments, y=s.labels, targeted=True, rand_init=False))


def test_nothing_to_do(s):
    assert cleverhans.fast_gradient_method(s.model, s.images, 0, 2) is s.images
    for eps, eps_iter in ((0, 0.1), (0.1, 0)):
        assert cleverhans.projected_gradient_descent(s.model, s.images, eps, eps_iter, 3, 2) is s.images


def test_without_a_box_pixels_go_anywhere(s):
    found = cleverhans.fast_gradient_method(s.model, s.images, 0.1, math.inf)
    assert found.min() == pytest.approx(-0.1)


def test_functions_take_callables(s):
    found = cleverhans.fast_gradient_method(lambda x: s.model(x), s.images, 0.1, math.inf, y=s.labels)
    torch.testing.assert_close(
        found, cleverhans.fast_gradient_method(s.model, s.images, 0.1, math.inf, y=s.labels)
    )


def test_float64_images_are_taken_in_the_models_type(s):
    """cleverhans computes in float32 whatever it is given."""
    for labels in (None, s.labels):
        found = cleverhans.fast_gradient_method(s.model, s.images.double(), 0.1, math.inf, y=labels)
        assert torch.equal(found, cleverhans.fast_gradient_method(s.model, s.images, 0.1, math.inf, y=labels))
        assert found.dtype == torch.float32


def test_float64_images_for_what_has_no_parameters(s):
    """Of which nobody can know in what it computes."""
    weight = s.images[:10].flatten(1)
    for labels in (None, s.labels):
        found = cleverhans.fast_gradient_method(
            lambda x: x.flatten(1) @ weight.T, s.images.double(), 0.1, math.inf, y=labels
        )
        assert found.dtype == torch.float32


def test_rand_minmax(s):
    """Half the side of the cube in which a start is drawn."""
    arguments = s.model, torch.full_like(s.images, 0.5), 0.2, 1e-9, 1, math.inf
    found = cleverhans.projected_gradient_descent(*arguments, rand_minmax=0.05)
    assert 0.04 < (found - 0.5).abs().max() <= 0.0501
    found = cleverhans.projected_gradient_descent(*arguments, rand_minmax=1.0)
    assert ((found - 0.5).abs() - 0.2).abs().median() < 1e-5  # most are brought back to the ball


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"norm": 3}, ValueError, "norm: got 3"),
        ({"norm": "inf"}, ValueError, "norm: got 'inf', accepted: inf, 2"),
        ({"norm": 1}, NotImplementedError, "norm: got 1, accepted: inf, 2; for L1, roli_fast"),
        ({"eps": -1}, ValueError, "eps: got -1"),
        ({"eps_iter": -1}, ValueError, "eps_iter: got -1"),
        ({"eps_iter": 1}, AssertionError, "eps_iter: got 1, accepted: at most eps"),
        ({"clip_min": 1, "clip_max": 0}, ValueError, "clip_min: got 1"),
        ({"clip_min": 0}, ValueError, "clip_min, clip_max: got 0, None, accepted: both or none"),
        ({"clip_min": 0.5, "clip_max": 1}, AssertionError, "x: got values in"),
    ],
)
def test_what_is_refused(s, arguments, error, message):
    given = {"eps": 0.1, "eps_iter": 0.05, "nb_iter": 2, "norm": math.inf, **arguments}
    with pytest.raises(error, match=message):
        cleverhans.projected_gradient_descent(s.model, s.images, **given)


def outcomes(tests):
    """Which of the library's tests of these functions pass, and what the others say."""
    passed, failed = set(), {}
    for kind in (tests.TestFastGradientMethod, tests.TestProjectedGradientMethod):
        for case in unittest.defaultTestLoader.loadTestsFromTestCase(kind):
            result = unittest.TestResult()
            case.run(result)
            if result.wasSuccessful():
                passed.add(case.id())
            else:
                failed[case.id()] = result.errors + result.failures
    return passed, failed


def test_the_librarys_own_tests_pass(monkeypatch):
    """Those of its tests of these functions that pass with itself."""
    pytest.importorskip("nose")
    tests = pytest.importorskip("cleverhans.torch.tests.test_attacks", exc_type=ImportError)
    with_itself, _ = outcomes(tests)
    for name in cleverhans.__all__:
        monkeypatch.setattr(tests, name, getattr(cleverhans, name))
    passed, failed = outcomes(tests)
    assert with_itself <= passed, [failed[name] for name in with_itself - passed]
    assert len(passed) >= 25


def test_integers_are_taken_by_their_value(s):
    """Pixels from 0 to 255, with a box of as much."""
    model = nn.Sequential(Divided(), s.model)
    pixels = (s.images * 255).round()
    settings = {"eps": 8.0, "norm": math.inf, "clip_min": 0, "clip_max": 255}
    expected = cleverhans.fast_gradient_method(model, pixels.float(), **settings)
    found = cleverhans.fast_gradient_method(model, pixels.to(torch.uint8), **settings)
    assert torch.equal(found, expected)
    assert found.max() > 100


class Divided(nn.Module):
    def forward(self, pixels):
        return pixels / 255


@pytest.mark.parametrize("norm", [math.inf, 2, 1])
def test_a_step_from_outside_of_the_box_is_clipped_and_no_more(norm, s):
    """As the original does, for which the ball does not hold back what the box brings in."""
    images = 2 * s.images - 0.5
    with pytest.warns(UserWarning, match="is it normalised"):
        found = cleverhans.fast_gradient_method(s.model, images, 0.5, norm, 0.0, 1.0, y=s.labels)
    free = cleverhans.fast_gradient_method(s.model, images, 0.5, norm, y=s.labels)
    torch.testing.assert_close(found, free.clamp(0, 1), rtol=0, atol=1e-6)
