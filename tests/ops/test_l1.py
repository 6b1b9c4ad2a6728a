"""The L1 family: sparse steps, and the nearest point of ball and box."""

import pytest
import torch

from roli_fast import ops

from .cases import (
    BY_NAME,
    FLOATS,
    INF,
    NAN,
    STATES,
    arguments,
    assert_agree,
    assert_same_bits,
    copied,
    for_any,
)

STEP, PROJECT = BY_NAME["l1_step_"], BY_NAME["l1_project_"]
each_state = pytest.mark.parametrize("state", STATES, ids=str)


def moved(grad, sparsity, step_size=1.0, dtype=torch.float32):
    """By how much a step moves each element of one sample, without ball and box."""
    grad = torch.tensor([grad], dtype=dtype)
    adv = torch.zeros(grad.shape)
    ops.l1_step_(adv, grad, adv.clone(), step_size, INF, -INF, INF, sparsity=sparsity)
    return adv[0].tolist()


def test_as_many_move_as_sparsity_says(backend):
    """The share of all elements, rounded; one at least; those without a gradient never."""
    grad = [1.0, -2.0, 3.0, -4.0, 5.0, -6.0, 7.0, -8.0, 9.0, -10.0]
    for sparsity, count in [
        (0.0, 1),
        (0.04, 1),
        (0.05, 1),
        (0.2, 2),
        (0.24, 2),
        (0.25, 3),
        (0.7, 7),
        (1.0, 10),
    ]:
        expected = [0.0] * (10 - count) + [(1 if g > 0 else -1) / count for g in grad[10 - count :]]
        assert moved(grad, sparsity) == pytest.approx(expected, rel=1e-7)
    assert moved([0.0, NAN, -0.0, 2.0, 0.0], 1.0) == [0.0, 0.0, 0.0, 1.0, 0.0]
    assert moved([0.0, NAN, -0.0], 0.5) == [0.0] * 3


def test_gradients_that_std_brings_to_nothing_move(backend):
    """The smallest of float32 divided by 4 is 0: each of four elements moves by a quarter of the step."""
    grad = torch.full((1, 1, 2, 2), 1.4e-45)
    adv = torch.zeros(1, 1, 2, 2)
    out = torch.empty_like(adv)
    mean, std = torch.zeros(1), torch.full((1,), 4.0)
    ops.l1_step_(adv, grad, adv.clone(), 0.04, INF, -INF, INF, sparsity=1.0, out=out, mean=mean, std=std)
    assert adv.flatten().tolist() == pytest.approx([0.01] * 4)


def test_ties_move_together(backend):
    """Those that equal the last of them share the step."""
    assert moved([1.0, -1.0, 1.0, 0.5], 0.25) == pytest.approx([1 / 3, -1 / 3, 1 / 3, 0.0], rel=1e-7)
    assert moved([2.0, -1.0, 1.0, 0.5], 0.5) == pytest.approx([1 / 3, -1 / 3, 1 / 3, 0.0], rel=1e-7)
    assert moved([INF, -INF, 1.0, 3e38], 0.25) == [0.5, -0.5, 0.0, 0.0]
    many = moved([1.0] * 1000 + [0.5] * 1000, 0.01)
    assert many == pytest.approx([0.001] * 1000 + [0.0] * 1000, rel=1e-6)


def test_the_default_sparsity(backend):
    """A twentieth, whether other sizes are numbers or tensors."""
    given = arguments(STEP, (2, 3, 20, 20))
    expected = STEP(**copied(given) | {"sparsity": 0.05})
    for step_size in (given["step_size"], torch.tensor(given["step_size"])):
        call = copied(given) | {"step_size": step_size}
        del call["sparsity"]
        assert_same_bits(STEP(**call), expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_selection_at_the_ends_of_each_dtype(backend, dtype):
    """Neighbours among the smallest and among the largest numbers are told apart."""
    info = torch.finfo(dtype)
    tiny = info.smallest_normal * info.eps
    below = info.max * (1 - info.eps / 2)
    assert moved([tiny, 2 * tiny, 0.0, -tiny], 0.25, dtype=dtype) == [0.0, 1.0, 0.0, 0.0]
    assert moved([below, -info.max, 1.0, tiny], 0.25, dtype=dtype) == [0.0, -1.0, 0.0, 0.0]


def test_selection_matches_a_sort_on_many_elements(backend):
    """Beyond what one block or one thread holds, with many ties."""
    random = torch.Generator().manual_seed(0)
    for dtype, n in [(torch.float32, 70_001), (torch.float16, 70_001), (torch.bfloat16, 5_000)]:
        grad = torch.randn(1, n, generator=random).to(dtype)
        adv = torch.zeros(1, n)
        ops.l1_step_(adv, grad, adv.clone(), 1.0, INF, -INF, INF, sparsity=0.1)
        last = grad[0].abs().float().sort(descending=True)[0][round(0.1 * n) - 1]
        chosen = grad.abs() >= last
        length = torch.tensor(1.0, dtype=torch.float64) / chosen.sum()
        assert_same_bits(adv, torch.where(chosen, length.float() * grad.float().sign(), 0.0))


def onto_simplex(d, eps):
    """The projection onto the L1 ball alone (Duchi et al., ICML 2008, figure 1), in float64."""
    v = d.double().abs()
    if v.sum() <= eps:
        return d.double()
    ordered = v.sort(descending=True)[0]
    excess = (ordered.cumsum(0) - eps) / torch.arange(1, len(v) + 1)
    threshold = excess[(ordered >= excess).nonzero().max()]
    return d.sign() * (v - threshold).clamp(min=0)


@each_state
@pytest.mark.parametrize("n", [1, 2, 7, 100, 5000])
def test_without_a_box_it_is_duchis_projection(backend, state, n):
    random = torch.Generator().manual_seed(n)
    clean, adv = torch.randn(2, 1, n, generator=random, dtype=torch.float64).to(state)
    for share in (0.0, 1e-3, 0.1, 0.5, 0.99, 1.01):
        eps = share * (adv - clean).abs().sum().item()
        result = adv.clone()
        ops.l1_project_(result, clean, eps, -INF, INF)
        expected = clean[0].double() + onto_simplex(adv[0] - clean[0], eps)
        torch.testing.assert_close(result[0].double(), expected, rtol=0, atol=20 * torch.finfo(state).eps)


@each_state
def test_no_point_of_ball_and_box_is_nearer(backend, state):
    """The variational inequality: <x - p, q - p> <= 0 for the projection p of x and all q of the set."""
    random = torch.Generator().manual_seed(0)
    for n in (2, 5, 40):
        for eps in (0.05, 0.5, 3.0):
            clean = torch.rand(8, n, generator=random, dtype=torch.float64).to(state)
            clean[0].round_()  # on the bounds, where there is room on one side alone
            x = clean + torch.randn(8, n, generator=random, dtype=torch.float64).to(state)
            p = x.clone()
            ops.l1_project_(p, clean, eps)
            sums = (p.double() - clean).abs().sum(1)
            tolerance = 4 * n * torch.finfo(state).eps
            assert (sums <= eps + tolerance).all()
            for _ in range(30):
                # A random point of the box, drawn towards clean into the ball: both are convex.
                q = torch.rand(8, n, generator=random, dtype=torch.float64)
                q = torch.where(torch.rand(8, n, generator=random) < 0.5, q, clean.double())
                d = q - clean
                q = clean + d * (eps / d.abs().sum(1, keepdim=True)).clamp(max=1.0)
                assert ((x.double() - p) * (q - p.double())).sum(1).max() <= tolerance * 4


def test_vertices_and_faces(backend):
    """Closed forms."""

    def projected(x, clean, eps, lo=-INF, hi=INF):
        adv = torch.tensor([x])
        ops.l1_project_(adv, torch.tensor([clean]), eps, lo, hi)
        return adv[0].tolist()

    zero = [0.0, 0.0, 0.0]
    assert projected([3.0, 1.0, -0.5], zero, 1.0) == [1.0, 0.0, 0.0]
    assert projected([3.0, 2.0, -0.5], zero, 3.0) == [2.0, 1.0, 0.0]
    assert projected([3.0, -2.0, 1.0], zero, 3.0) == [2.0, -1.0, 0.0]
    assert projected([3.0, -2.0, 1.0], zero, 4.5) == [2.5, -1.5, 0.5]
    assert projected([3.0, -2.0, 1.0], zero, 6.0) == [3.0, -2.0, 1.0]
    # The box takes less than the ball would give: the others get what is left.
    assert projected([3.0, 2.0, -0.5], zero, 3.0, -1.0, 1.5) == [1.5, 1.5, 0.0]
    assert projected([3.0, 2.0, -0.5], zero, 3.0, -1.0, 1.0) == [1.0, 1.0, -0.5]
    assert projected([3.0, 2.0, -0.5], zero, 2.25, -1.0, 1.0) == [1.0, 1.0, -0.25]
    # No room at all upwards.
    assert projected([3.0, 2.0, -0.5], zero, 0.25, -1.0, 0.0) == [0.0, 0.0, -0.25]


def test_what_is_feasible_keeps_its_bits(backend):
    def check(attack):
        (once,) = PROJECT(**copied(attack))
        eps = 2 * (once.double() - attack["clean"]).abs().sum().item()
        (twice,) = PROJECT(**copied(attack) | {"adv": once.clone(), "eps": eps})
        assert_same_bits(twice, once)

    for_any(PROJECT, backend, check)


def test_samples_do_not_meet(backend):
    """Each has its threshold, its share and its ties; a batch of one is the same."""
    given = arguments(STEP, (6, 50)) | {"sparsity": torch.tensor([0.0, 0.1, 0.3, 0.5, 0.9, 1.0])}
    together, *_ = STEP(**copied(given))
    for n in range(6):
        alone = {k: v[n : n + 1] if isinstance(v, torch.Tensor) else v for k, v in copied(given).items()}
        assert_same_bits(STEP(**alone)[0], together[n : n + 1])


@each_state
def test_a_step_is_the_ascent_then_the_projection(backend, state):
    given = arguments(STEP, (4, 3, 9, 9), state=state)
    free, *_ = STEP(**copied(given) | {"eps": INF, "lo": -INF, "hi": INF})
    projected = PROJECT(adv=free, clean=given["clean"], eps=given["eps"])
    assert_agree(STEP, STEP(**copied(given)), projected, given)


def test_pgd_finds_the_knapsacks_optimum(backend):
    """Against a linear model the maximum spends the radius on the largest weights, as far as the box has room
    for each. A step moves a fixed number of them: a radius is chosen that fills their room."""
    random = torch.Generator().manual_seed(0)
    n, count = 40, 8
    clean, weight = torch.rand(4, n, generator=random), torch.randn(n, generator=random)
    room = torch.where(weight > 0, 1 - clean, clean)
    largest = weight.abs() >= weight.abs().sort(descending=True)[0][count - 1]
    eps = (room * largest).sum(1)
    adv = ops.l1_start(clean, eps, torch.tensor([3, 4]))
    assert ((adv != clean).sum(1) > 30).all()
    for _ in range(20):
        ops.l1_step_(adv, weight.expand_as(adv), clean, eps, eps, sparsity=count / n)
    best = torch.where(largest, (weight > 0).float(), clean)
    torch.testing.assert_close(adv, best, rtol=0, atol=1e-6)
