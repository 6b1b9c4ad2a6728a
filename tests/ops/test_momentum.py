"""Accumulated gradients."""

import math

import pytest
import torch

from roli_fast import ops

from .cases import FLOATS, INF, LAYOUTS, NAN, STATES, assert_same_bits

each_state = pytest.mark.parametrize("state", STATES, ids=str)


def added(grad, dtype=torch.float32, state=torch.float32):
    """What a gradient adds to a momentum of 0."""
    grad = torch.tensor([grad], dtype=dtype)
    momentum = torch.zeros(grad.shape, dtype=state)
    ops.momentum_(momentum, grad)
    return momentum[0].tolist()


def test_is_the_formula(backend):
    """The line of torch of the documentation, as MI-FGSM has it."""
    random = torch.Generator().manual_seed(0)
    momentum, grad = torch.randn(2, 5, 3, 8, 8, generator=random)
    for decay in (0.0, 0.5, 1.0, 2.0):
        got = momentum.clone()
        ops.momentum_(got, grad, decay)
        line = decay * momentum + grad / grad.abs().mean((1, 2, 3), keepdim=True)
        torch.testing.assert_close(got, line, rtol=1e-6, atol=1e-6)


def test_simple_values(backend):
    assert added([1.0, -1.0, 1.0, -1.0]) == [1.0, -1.0, 1.0, -1.0]
    assert added([4.0, 0.0, 0.0, -0.0]) == [4.0, 0.0, 0.0, 0.0]
    assert added([3.0, -1.0]) == [1.5, -0.5]
    assert added([NAN, 3.0, 1.0, 0.0]) == [0.0, 3.0, 1.0, 0.0]
    assert added([INF, -INF, 5.0, NAN]) == [2.0, -2.0, 0.0, 0.0]
    assert added([0.0, NAN]) == [0.0, 0.0]


@each_state
def test_every_scale_has_a_mean_of_one(backend, state):
    for dtype in FLOATS:
        info = torch.finfo(dtype)
        tiny = info.smallest_normal * info.eps
        for scale in (tiny, info.smallest_normal, 1.0, 2.0 ** (math.frexp(info.max)[1] - 3)):
            grad = [scale * (1 + n % 3) * (-1) ** n for n in range(9)]
            result = added(grad, dtype, state)
            assert sum(map(abs, result)) / 9 == pytest.approx(1.0, rel=1e-6)
            assert result == pytest.approx([(1 + n % 3) / 2 * (-1) ** n for n in range(9)], rel=1e-6)


def test_without_a_gradient_momentum_decays(backend):
    momentum = torch.tensor([[1.0, -3.0], [0.5, 1e-40]])
    ops.momentum_(momentum, torch.zeros(2, 2), 0.5)
    assert_same_bits(momentum, torch.tensor([[0.5, -1.5], [0.25, 5e-41]]))
    ops.momentum_(momentum, torch.full((2, 2), NAN))
    assert_same_bits(momentum, torch.tensor([[0.5, -1.5], [0.25, 5e-41]]))


def test_samples_have_means_of_their_own(backend):
    grad = torch.tensor([[1.0, 3.0], [1e-30, 3e-30], [0.0, 0.0], [INF, 3.0]])
    for layout in LAYOUTS:
        momentum = layout(torch.ones(4, 2))
        ops.momentum_(momentum, layout(grad), 1.0)
        torch.testing.assert_close(
            momentum, torch.tensor([[1.5, 2.5], [1.5, 2.5], [1.0, 1.0], [3.0, 1.0]]), rtol=3e-7, atol=0
        )


def test_many_elements(backend):
    """The mean of what float32 would lose in its sum."""
    n = 2**18
    grad = torch.full((1, n), 1e-4)
    grad[0, 0] = 1e4
    momentum = torch.zeros(1, n)
    ops.momentum_(momentum, grad)
    mean = math.fsum(grad[0].double().tolist()) / n
    torch.testing.assert_close(momentum, (grad.double() / mean).float(), rtol=3e-7, atol=0)


def test_ten_steps_of_one_gradient(backend):
    """The geometric sum."""
    grad, momentum = torch.tensor([[2.0, -6.0]]), torch.zeros(1, 2)
    for _ in range(10):
        ops.momentum_(momentum, grad, 0.5)
    total = 2 - 0.5**9
    torch.testing.assert_close(momentum, torch.tensor([[0.5, -1.5]]) * total, rtol=1e-6, atol=0)
