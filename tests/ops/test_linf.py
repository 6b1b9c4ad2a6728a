"""The Linf family: its ball, its box, its special values."""

import pytest
import torch

from roli_fast import ops

from .cases import BY_NAME, FLOATS, INF, NAN, STATES, arguments, assert_same_bits, copied, for_any

STEP = BY_NAME["linf_step_"]
SEED = torch.tensor([3, 4])


def test_the_gradient_matters_by_its_sign_only(backend):
    def check(attack):
        signs = copied(attack) | {"grad": attack["grad"].sign()}
        assert_same_bits(STEP(**attack), STEP(**signs))

    for_any(STEP, backend, check)


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


def test_large_numbers_are_exact_in_float64(backend):
    """Beside a tensor, too: what only float32 cannot hold stays the number that it is."""
    clean, grad = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[1.0, -1.0]])
    infinite = torch.tensor(INF, dtype=torch.float64)
    for sizes in [(1e300, 1e300), (infinite, 1e300), (1e300, infinite)]:
        adv = clean.clone()
        ops.linf_step_(adv, grad, clean, *sizes, -INF, INF)
        assert adv.tolist() == [[1e300, -1e300]]


def test_a_positional_call_is_the_formula(backend):
    """The call of the documentation, against the line of torch that it replaces."""
    given = arguments(STEP)
    adv, grad, clean = given["adv"], given["grad"].nan_to_num(), given["clean"]
    line = (adv + 2 / 255 * grad.sign()).clamp(clean - 8 / 255, clean + 8 / 255).clamp(-0.5, 0.5)
    ops.linf_step_(adv, grad, clean, 2 / 255, 8 / 255, -0.5, 0.5)
    assert_same_bits(adv, line)


def test_a_pgd_attack_ends_on_the_corner(backend):
    """Ten steps against a linear model: the exact maximiser."""
    random = torch.Generator().manual_seed(0)
    clean, weight = torch.rand(4, 3, 8, 8, generator=random), torch.randn(3, 8, 8, generator=random)
    adv = ops.linf_start(clean, 8 / 255, SEED)
    for _ in range(10):
        ops.linf_step_(adv, weight.expand_as(adv), clean, 2 / 255, 8 / 255)
    eps = torch.tensor(8 / 255)
    assert_same_bits(adv, (clean + eps * weight.sign()).clamp(0, 1))
