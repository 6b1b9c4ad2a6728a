"""The L2 family: directions of every scale, and the sphere."""

import itertools

import pytest
import torch

from roli_fast import ops

from . import oracle
from .cases import BY_NAME, FLOATS, INF, NAN, STATES, assert_same_bits, copied, for_any

STEP, PROJECT = BY_NAME["l2_step_"], BY_NAME["l2_project_"]
each_state = pytest.mark.parametrize("state", STATES, ids=str)


def step(adv, grad, clean, step_size, eps, **options):
    """l2_step_ on lists, of one sample, without a box."""
    result = torch.tensor([adv])
    ops.l2_step_(result, torch.tensor([grad]), torch.tensor([clean]), step_size, eps, -INF, INF, **options)
    return result[0].tolist()


def near(values):
    return pytest.approx(values, rel=2.0**-22)


def test_closed_forms_of_a_step(backend):
    """Closed forms: 3, 4 and 5."""
    zero = [0.0, 0.0]
    assert step(zero, [3.0, -4.0], zero, 10.0, 100.0) == near([6.0, -8.0])
    assert step(zero, [3.0, -4.0], zero, 10.0, 5.0) == near([3.0, -4.0])
    assert step([3.0, 0.0], [0.0, 1.0], zero, 4.0, 100.0) == near([3.0, 4.0])
    assert step([3.0, 0.0], [0.0, 1.0], zero, 4.0, 2.5) == near([1.5, 2.0])
    assert step([6.0, 8.0], zero, zero, 1.0, 5.0) == near([3.0, 4.0])
    assert step([7.0, 9.0], [NAN, 0.0], [1.0, 1.0], 1.0, 5.0) == near([4.0, 5.0])
    # Back through clean, to the other side: what the step passes does not matter.
    assert step([3.0, 4.0], [-3.0, -4.0], zero, 10.0, 100.0) == near([-3.0, -4.0])
    assert step([3.0, 4.0], [-3.0, -4.0], zero, 10.0, 2.5) == near([-1.5, -2.0])
    assert step([3.0, 4.0], [-3.0, -4.0], zero, 5.0, 2.5) == pytest.approx(zero, abs=1e-6)


def test_infinite_elements_are_all_that_counts(backend):
    """As +-1 beside finite ones of 0."""
    zero = [0.0] * 5
    root = 0.5**0.5
    assert step(zero, [INF, -INF, 5.0, NAN, 3e38], zero, 1.0, 9.0) == near([root, -root, 0.0, 0.0, 0.0])
    assert step(zero, [NAN, 3.0, 0.0, -4.0, -0.0], zero, 1.0, 9.0) == near([0.0, 0.6, 0.0, -0.8, 0.0])


@each_state
def test_every_step_is_a_full_one(backend, state):
    """Whatever the largest and smallest of the dtype's numbers are, and in one gradient."""
    for dtype in FLOATS:
        info = torch.finfo(dtype)
        tiny = info.smallest_normal * info.eps
        # The smallest beside the smallest normal one vanishes, as it must.
        for gradient in ([tiny, tiny], [info.max, -info.max], [info.max, tiny], [3 * tiny, 4 * tiny]):
            grad = torch.tensor([gradient * 8], dtype=dtype)
            adv = torch.zeros(1, 16, dtype=state)
            ops.l2_step_(adv, grad, adv.clone(), 0.5, 1.0, -INF, INF)
            assert adv.double().norm().item() == pytest.approx(0.5, rel=1e-6)
            exact = grad.double() / info.max if info.max in gradient else grad.double() / tiny
            torch.testing.assert_close(adv.double(), 0.5 * exact / exact.norm(), rtol=1e-6, atol=1e-7)


def test_the_projection_is_the_nearest_point(backend):
    """Of the ball: the way back from it is along the normal, for every attack."""

    def check(attack):
        given = copied(attack) | {"lo": -INF, "hi": INF}
        (projected,) = PROJECT(**given)
        before, after = attack["adv"].double() - attack["clean"], projected.double() - attack["clean"]
        unit = oracle.ulp(oracle.largest(attack["adv"], attack["clean"], projected), projected.dtype)
        eps = torch.tensor(attack["eps"], dtype=projected.dtype).item()
        if before.norm() <= eps * (1 - 1e-6):
            assert_same_bits(projected, attack["adv"])
        elif eps > 0:
            assert abs(after.norm() - min(eps, before.norm())) <= 4 * unit.norm()
            assert (after - before * min(1.0, eps / before.norm()) <= 4 * unit).all()

    for_any(PROJECT, backend, check)


def test_a_large_sample_in_any_order(backend):
    """Sums over many blocks, of values whose float32 sums would be wrong: every element is still a full part
    of one step."""
    n = 300_000
    grad = torch.full((1, n), 1e-3)
    grad[0, ::1000] = 30.0
    adv = torch.zeros(1, n)
    ops.l2_step_(adv, grad, adv.clone(), 1.0, 9.0, -INF, INF)
    expected = (grad.double() / grad.double().norm()).float()
    torch.testing.assert_close(adv, expected, rtol=3e-7, atol=0)


def test_a_pgd_attack_ends_on_the_sphere(backend):
    """Ten steps against a linear model, with a box that is not met: the closed-form maximiser."""
    random = torch.Generator().manual_seed(0)
    clean = torch.rand(4, 3, 8, 8, generator=random) * 0.2 + 0.4
    weight = torch.randn(3, 8, 8, generator=random)
    eps = 0.3
    adv = ops.l2_start(clean, eps, torch.tensor([3, 4]))
    for _ in range(10):
        ops.l2_step_(adv, weight.expand_as(adv), clean, 4 * eps, eps)
    # Each step of four radii leaves an eighth or less of the angle.
    torch.testing.assert_close(adv, clean + eps * weight / weight.norm(), rtol=0, atol=3e-7)


@each_state
def test_the_box_is_met_after_the_ball(backend, state):
    """Clamping shortens what is left: the ball is not filled again."""
    clean = torch.tensor([[0.9, 0.5]], dtype=state)
    adv = clean.clone()
    ops.l2_step_(adv, torch.tensor([[3.0, 4.0]]), clean, 0.5, 0.5)
    torch.testing.assert_close(adv, torch.tensor([[1.0, 0.9]], dtype=state), rtol=2e-7, atol=0)


def test_samples_do_not_meet(backend):
    """Each has its own norm, its own scale, and its own infinite elements."""
    grad = torch.tensor([[3.0, 4.0], [INF, 1.0], [3e-30, 4e-30], [NAN, NAN], [-3e30, 4e30]])
    adv = torch.zeros(5, 2)
    ops.l2_step_(adv, grad, adv.clone(), 1.0, 9.0, -INF, INF)
    expected = [[0.6, 0.8], [1.0, 0.0], [0.6, 0.8], [0.0, 0.0], [-0.6, 0.8]]
    torch.testing.assert_close(adv, torch.tensor(expected), rtol=3e-7, atol=0)


@each_state
def test_a_gradient_at_the_input_is_divided_by_std(backend, state):
    """So that the step is the steepest in pixels; mean and std without scale change nothing."""
    mean, std = torch.tensor([[0.5, 0.25], [0.5, 2.0]], dtype=state)
    for name, (op, size) in itertools.product(["out", "no out"], [(ops.l2_step_, 1.0)]):
        adv = torch.zeros(1, 2, 1, dtype=state)
        options = {"out": torch.zeros(1, 2, 1), "mean": mean, "std": std} if name == "out" else {}
        op(adv, torch.tensor([[[3.0], [16.0]]]), adv.clone(), size, 9.0, -INF, INF, **options)
        expected = [6.0, 8.0] if options else [3.0, 16.0]
        expected = torch.tensor(expected, dtype=state)
        torch.testing.assert_close(adv.flatten(), expected / expected.norm(), rtol=3e-7, atol=0)
