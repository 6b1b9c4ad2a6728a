"""The Linf family: its ball, its box, its special values."""

from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from roli_fast import ops

from . import oracle
from .cases import (
    BY_NAME,
    FLOATS,
    INF,
    NAN,
    STATES,
    arguments,
    assert_same_bits,
    channels_last,
    properties,
    spaced,
)

SEED = torch.tensor([3, 4])
step_ops = pytest.mark.parametrize("name", ["linf_step_", "linf_project_"])


def numbers(state, **options):
    return st.floats(allow_nan=False, width=32 if state == torch.float32 else 64, **options)


@st.composite
def attacks(draw, anything=False):
    """adv, grad and clean of one sample, sizes and a box, in either state.

    anything: infinite images as well.
    """
    state = draw(st.sampled_from(STATES))
    value = numbers(state) if anything else numbers(state, min_value=-1e6, max_value=1e6)
    pixels = draw(st.lists(st.tuples(value, numbers(state), value), min_size=1, max_size=12))
    adv, grad, clean = torch.tensor(pixels, dtype=state).T.unsqueeze(1)
    step_size, eps = (draw(numbers(state, min_value=0)) for _ in range(2))
    bound = numbers(state)
    lo, hi = sorted([draw(bound), draw(bound)])
    return adv.contiguous(), grad, clean, step_size, eps, lo, hi


def run(name, adv, grad, clean, step_size, eps, *box):
    """A step, a projection or a start with these arguments."""
    if name == "linf_step_":
        ops.linf_step_(adv, grad, clean, step_size, eps, *box)
    elif name == "linf_project_":
        ops.linf_project_(adv, clean, eps, *box)
    else:
        return ops.linf_start(clean, eps, SEED, *box)
    return adv


each_op = pytest.mark.parametrize("name", ["linf_step_", "linf_project_", "linf_start"])


@each_op
@properties
@given(attack=attacks())
def test_stays_in_the_ball(backend, name, attack):
    """|a - c| <= eps within one unit in the last place of a or c, in exact arithmetic."""
    adv, grad, clean, step_size, eps, *_ = attack
    result = run(name, adv, grad, clean, step_size, eps, -INF, INF)
    assume(result.isfinite().all() and eps < INF)
    unit = oracle.ulp(torch.maximum(result.abs(), clean.abs()), result.dtype)
    for a, c, u in zip(
        result.flatten().tolist(), clean.flatten().tolist(), unit.flatten().tolist(), strict=True
    ):
        assert abs(Fraction(a) - Fraction(c)) <= Fraction(eps) + Fraction(u)


@each_op
@properties
@given(attack=attacks(anything=True))
def test_stays_in_the_box_exactly_and_is_never_nan(backend, name, attack):
    *_, lo, hi = attack
    result = run(name, *attack)
    assert ((result >= lo) & (result <= hi)).all()


@properties
@given(attack=attacks())
def test_projection_is_idempotent(backend, attack):
    adv, _, clean, _, eps, lo, hi = attack
    ops.linf_project_(adv, clean, eps, lo, hi)
    once = adv.clone()
    ops.linf_project_(adv, clean, eps, lo, hi)
    assert_same_bits(adv, once)


@properties
@given(attack=attacks(), zero=st.sampled_from([0.0, -0.0, NAN]))
def test_without_a_gradient_a_step_is_a_projection(backend, attack, zero):
    adv, grad, clean, step_size, eps, lo, hi = attack
    projected = adv.clone()
    ops.linf_project_(projected, clean, eps, lo, hi)
    ops.linf_step_(adv, torch.full_like(grad, zero), clean, step_size, eps, lo, hi)
    assert_same_bits(adv, projected)


@step_ops
@properties
@given(attack=attacks(), zero=st.sampled_from([0.0, -0.0, NAN]))
def test_feasible_samples_without_a_gradient_keep_their_bits(backend, name, attack, zero):
    adv, _, clean, step_size, _, lo, hi = attack
    adv = torch.cat([adv.clamp(lo, hi), adv.new_tensor([[-0.0, 0.0]])], dim=1)
    clean = torch.cat([clean, clean.new_zeros(1, 2)], dim=1)
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    eps = 2 * (adv - clean).abs().max().item()
    before = adv.clone()
    run(name, adv, torch.full_like(adv, zero), clean, step_size, eps, lo, hi)
    assert_same_bits(adv, before)


@properties
@given(attack=attacks())
def test_the_gradient_matters_by_its_sign_only(backend, attack):
    adv, grad, *rest = attack
    signs = adv.clone()
    ops.linf_step_(signs, grad.sign(), *rest)
    ops.linf_step_(adv, grad, *rest)
    assert_same_bits(adv, signs)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_special_gradients(backend, dtype):
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    gradient = [
        0.0,
        -0.0,
        NAN,
        INF,
        -INF,
        smallest,
        -smallest,
        torch.finfo(dtype).max,
        torch.finfo(dtype).min,
    ]
    sign = [0, 0, 0, 1, -1, 1, -1, 1, -1]
    for state in STATES:
        clean = torch.full((1, 9), 0.5, dtype=state)
        adv = clean.clone()
        ops.linf_step_(adv, torch.tensor([gradient], dtype=dtype), clean, 0.25, 0.5)
        assert adv[0].tolist() == [0.5 + 0.25 * s for s in sign]


def test_nan_stays_where_it_was(backend):
    """NaN in adv or clean stays visible; it spreads to no other element, and no gradient makes one."""
    clean = torch.tensor([[0.5, NAN, 0.5, NAN, 0.5]])
    adv = torch.tensor([[0.5, 0.5, NAN, NAN, 0.5]])
    grad = torch.tensor([[1.0, 1.0, 1.0, 1.0, NAN]])
    expected = torch.tensor([False, True, True, True, False])
    for step_size, eps in [(0.1, 0.1), (INF, INF), (0.0, 0.0)]:
        for name in ("linf_step_", "linf_project_"):
            result = run(name, adv.clone(), grad, clean, step_size, eps)
            assert torch.equal(result[0].isnan(), expected)
        assert torch.equal(ops.linf_start(clean, eps, SEED).isnan(), clean.isnan())


def test_nan_of_half_and_double_images(backend):
    for dtype in FLOATS:
        adv = torch.tensor([[0.2, 0.2]])
        ops.linf_project_(adv, torch.tensor([[NAN, 0.25]], dtype=dtype), 0.25)
        assert adv.isnan().tolist() == [[True, False]]


@step_ops
def test_infinite_sizes(backend, name):
    """An infinite step goes to the boundary, where there is a gradient; an infinite ball leaves the box."""
    clean = torch.full((1, 3), 0.5)
    grad = torch.tensor([[1.0, -1.0, 0.0]])
    expected = {"linf_step_": [0.75, 0.25, 0.5], "linf_project_": [0.5, 0.5, 0.5]}
    assert run(name, clean.clone(), grad, clean, INF, 0.25).tolist() == [expected[name]]
    expected = {"linf_step_": [1.0, 0.0, 0.5], "linf_project_": [0.5, 0.5, 0.5]}
    assert run(name, clean.clone(), grad, clean, INF, INF).tolist() == [expected[name]]


def test_numbers_beyond_the_state_are_infinite(backend):
    """1e300 is a number, and a float32 ball of this size is everything."""
    clean = torch.full((1, 2), 0.5)
    grad = torch.tensor([[1.0, -1.0]])
    for sizes in [(1e300, 1e300), (torch.tensor(INF), 1e300), (1e300, torch.tensor(INF))]:
        adv = clean.clone()
        ops.linf_step_(adv, grad, clean, *sizes, -1e300, 1e300)
        assert adv.tolist() == [[INF, -INF]]
    assert set(ops.linf_start(clean, 1e300, SEED).flatten().tolist()) <= {0.0, 1.0}


def test_large_numbers_are_exact_in_float64(backend):
    """Beside a tensor, too: what only float32 cannot hold stays the number that it is."""
    clean, grad = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[1.0, -1.0]])
    infinite = torch.tensor(INF, dtype=torch.float64)
    for sizes in [(1e300, 1e300), (infinite, 1e300), (1e300, infinite)]:
        adv = clean.clone()
        ops.linf_step_(adv, grad, clean, *sizes, -INF, INF)
        assert adv.tolist() == [[1e300, -1e300]]


def test_the_box_wins_where_clean_lies_outside(backend):
    clean = torch.tensor([[1.5, -0.5, 1.05]])
    grad = torch.tensor([[1.0, -1.0, -1.0]])
    for name in ("linf_step_", "linf_project_"):
        result = run(name, clean.clone(), grad, clean, 0.01, 0.1)
        assert result.tolist()[0][:2] == [1.0, 0.0]
    start = ops.linf_start(clean, 0.1, SEED)
    assert start.tolist()[0][:2] == [1.0, 0.0]


def test_a_positional_call_is_the_formula(backend):
    """The call of the documentation, against the line of torch that it replaces."""
    given = arguments(BY_NAME["linf_step_"])
    adv, grad, clean = given["adv"], given["grad"].nan_to_num(), given["clean"]
    line = (adv + 2 / 255 * grad.sign()).clamp(clean - 8 / 255, clean + 8 / 255).clamp(-0.5, 0.5)
    ops.linf_step_(adv, grad, clean, 2 / 255, 8 / 255, -0.5, 0.5)
    assert_same_bits(adv, line)


def test_the_functional_twin(backend):
    """Equal to the step on a copy; adv may require a gradient, which ends here."""
    given = arguments(BY_NAME["linf_step_"])
    active = torch.tensor([True, False, True])
    before = given["adv"].clone()
    stepped = ops.linf_step(**given | {"adv": before.clone().requires_grad_()}, active=active)
    assert_same_bits(given["adv"], before)
    ops.linf_step_(**given, active=active)
    assert_same_bits(stepped, given["adv"])
    assert not stepped.requires_grad


@pytest.mark.parametrize("layout", [channels_last, lambda x: x])
def test_start_has_the_shape_and_layout_of_clean(backend, layout):
    for dtype, state in [(torch.uint8, torch.float32), (torch.float16, torch.float32), (torch.float64,) * 2]:
        clean = layout(torch.zeros(2, 3, 4, 5, dtype=dtype))
        start = ops.linf_start(clean, 0.1, SEED)
        assert (start.shape, start.stride(), start.dtype) == (clean.shape, clean.stride(), state)
    assert ops.linf_start(spaced(torch.zeros(2, 3, 4, 5)), 0.1, SEED).is_contiguous()


def test_a_pgd_attack_ends_on_the_corner(backend):
    """Ten steps against a linear model: the exact maximiser."""
    random = torch.Generator().manual_seed(0)
    clean, weight = torch.rand(4, 3, 8, 8, generator=random), torch.randn(3, 8, 8, generator=random)
    adv = ops.linf_start(clean, 8 / 255, SEED)
    for _ in range(10):
        ops.linf_step_(adv, weight.expand_as(adv), clean, 2 / 255, 8 / 255)
    eps = torch.tensor(8 / 255)
    assert_same_bits(adv, (clean + eps * weight.sign()).clamp(0, 1))
