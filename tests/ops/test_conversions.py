"""Every value of the narrow types in, and every tie and edge out, bit for bit."""

from fractions import Fraction

import pytest
import torch

from roli_fast import ops

from .cases import INF, LAYOUTS, NAN, STATES, assert_same_bits, spaced

HALVES = (torch.float16, torch.bfloat16)
each_half = pytest.mark.parametrize("half", HALVES, ids=str)
each_state = pytest.mark.parametrize("state", STATES, ids=str)


def every(half):
    """All 65536 values."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(half)


def tricky(half, state):
    """Of the half type all values, all midpoints between neighbours (the ties), and their neighbours in the
    state's type; what overflows, what vanishes, and NaN."""
    values = every(half)
    values = values[values.isfinite()].double().unique()
    ties = ((values[1:] + values[:-1]) / 2).to(state)
    largest = torch.tensor([torch.finfo(half).max, torch.finfo(state).max], dtype=state)
    above = largest[0] * (1 + torch.finfo(half).eps / 4)  # the tie between the largest value and infinity
    smallest = torch.tensor([0.0, torch.finfo(state).smallest_normal, 5e-324, 1e-45], dtype=state)
    edges = torch.cat([ties, largest, above[None], smallest, torch.tensor([INF], dtype=state)])
    edges = torch.cat([edges, -edges])
    near = [edges.nextafter(torch.tensor(bound, dtype=state)) for bound in (INF, -INF)]
    return torch.cat([edges, *near, values.to(state), torch.tensor([NAN], dtype=state)])


@each_half
@each_state
def test_every_half_as_clean(backend, half, state):
    """An empty ball leaves clean, exactly."""
    clean = every(half)
    for start in (INF, -INF):
        for layout in (lambda x: x, spaced):
            adv = torch.full((1, len(clean)), start, dtype=state)
            ops.linf_project_(adv, layout(clean[None]), 0.0, -INF, INF)
            torch.testing.assert_close(adv[0], clean.to(state), rtol=0, atol=0, equal_nan=True)


@each_half
@each_state
def test_every_half_as_grad(backend, half, state):
    grad = every(half)
    for layout in (lambda x: x, spaced):
        clean = torch.full((1, len(grad)), 0.5, dtype=state)
        adv = clean.clone()
        ops.linf_step_(adv, layout(grad[None]), clean, 0.25, 0.5)
        assert torch.equal(adv[0], 0.5 + 0.25 * grad.to(state).sign().nan_to_num())


def test_gradients_too_small_for_float32_have_a_sign(backend):
    grad = torch.tensor([[5e-324, -5e-324, 1e-60, -1e-60, 1e300, -1e300]], dtype=torch.float64)
    for layout in (lambda x: x, spaced):
        adv = torch.full((1, 6), 0.5)
        ops.linf_step_(adv, layout(grad), adv.clone(), 0.25, 0.5)
        assert adv.tolist() == [[0.75, 0.25] * 3]


@each_state
def test_bytes_are_correctly_rounded(backend, state):
    """v / 255 to the nearest: no neighbour is nearer. 126 of them differ from v * (1 / 255) in float32."""
    clean = torch.arange(256, dtype=torch.uint8)
    adv = torch.full((1, 256), INF, dtype=state)
    ops.linf_project_(adv, clean[None], 0.0)
    below, above = (adv.nextafter(torch.tensor(bound, dtype=state)) for bound in (-INF, INF))
    for v in range(256):
        error, *others = (abs(Fraction(x[0, v].item()) - Fraction(v, 255)) for x in (adv, below, above))
        assert error < min(others)


@each_half
@each_state
def test_rounding_of_prepare(backend, half, state):
    """To the nearest, ties to even, as torch's own cast."""
    values = tricky(half, state)
    for layout in (lambda x: x, spaced):
        assert_same_bits(ops.prepare(layout(values[None]), None, None, dtype=half)[0], values.to(half))


@each_half
@each_state
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rounding_of_out(backend, half, state, layout):
    values = tricky(half, state)
    values = values[: len(values) // 16 * 16].reshape(2, 2, 2, -1)
    out = layout(torch.zeros(values.shape, dtype=half))
    ops.linf_step_(values.clone(), torch.zeros_like(values), values, 0.0, 0.0, -INF, INF, out=out)
    assert_same_bits(out, values.to(half))


def test_states_into_each_other(backend):
    """float64 clean and out beside a float32 state, and the reverse."""
    values = torch.tensor([[1 / 3, 2 / 3, 1e-300, 0.1 + 2**-40]], dtype=torch.float64)
    adv, out = torch.full((1, 4), INF), torch.empty(1, 4, dtype=torch.float64)
    ops.linf_step_(adv, torch.zeros(1, 4), values, 0.0, 0.0, out=out)
    assert_same_bits(adv, values.float())
    assert_same_bits(out, values.float().double())

    adv, out = torch.full((1, 4), INF, dtype=torch.float64), torch.empty(1, 4)
    ops.linf_step_(adv, torch.zeros(1, 4), values.float(), 0.0, 0.0, out=out)
    assert_same_bits(adv, values.float().double())
    assert_same_bits(out, values.float())


@each_half
def test_a_nan_of_any_payload_stays_one(backend, half):
    payloads = [0x7F800001, 0x7FFFFFFF, 0x7FC00000, 0x7F808000, 0x7FFF8000, -1, -0x400001]
    nan = torch.tensor(payloads, dtype=torch.int32).view(torch.float32)
    assert ops.prepare(nan, None, None, dtype=half).isnan().all()
