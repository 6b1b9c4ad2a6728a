"""Random starts: Philox, and draws that belong to the sample."""

import numpy
import pytest
import scipy.stats
import torch

from roli_fast import ops
from roli_fast.ops import reference

from . import oracle
from .cases import (
    BY_NAME,
    INF,
    LAYOUTS,
    assert_ideal,
    assert_same_bits,
    channels_last,
    each_start,
    interpreted,
)

# Counter, key and output of Random123's kat_vectors, philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def seed(key, stream=0):
    return torch.tensor([key, stream])


def draws(shape=(4, 3, 8, 8), key=1, stream=2, op=BY_NAME["linf_start"], **options):
    """The draws themselves: a start in the unit ball around 0, without a box."""
    given = {"clean": torch.zeros(shape), "eps": 1.0, "seed": seed(key, stream), "lo": -INF, "hi": INF}
    (start,) = op(**given | options)
    return start


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, output):
    def words(text):
        return [int(word, 16) for word in text.split()]

    of_reference = reference.draws.philox(
        tuple(map(torch.tensor, words(counter))), tuple(map(torch.tensor, words(key)))
    )
    assert [int(word) for word in of_reference] == words(output)
    of_oracle = oracle.philox(map(numpy.uint64, words(counter)), map(numpy.uint64, words(key)))
    assert [int(word) for word in of_oracle] == words(output)


@pytest.mark.parametrize("key", [0, 1, -1, 2**32, -(2**63), 2**63 - 1, 0x0123456789ABCDEF])
def test_draws_are_philox_of_seed_index_and_element(backend, key):
    """Every bit of key, stream and index counts. The draws are fixed for good: a run can be repeated."""
    index = torch.tensor([0, 1, 2**32, 2**32 + 1, -1, 2**63 - 1])
    for stream in (0, 5, -5, 2**32, 2**62 + 7):
        got = draws((6, 3, 7), key, stream, index=index)
        expected = oracle.symmetric_uniform(key, stream, index.numpy(), 21)
        assert numpy.array_equal(got.numpy().reshape(6, 21), expected)


def test_draws_are_uniform_in_the_open_ball(backend):
    """One million of them, within five standard deviations of every statistic."""
    u = draws((10, 100_000)).double().flatten()
    n = len(u)
    assert -1 < u.min() < -1 + 1e-4
    assert 1 - 1e-4 < u.max() < 1
    assert u.abs().min() > 0
    assert abs(u.mean()) < 5 * (1 / 3 / n) ** 0.5
    assert abs(u.var() - 1 / 3) < 5 * (4 / 45 / n) ** 0.5
    assert scipy.stats.kstest(u.numpy(), "uniform", (-1, 2)).pvalue > 1e-6
    assert abs(numpy.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / n**0.5  # neighbours
    assert abs(numpy.corrcoef(u[: n // 2], u[n // 2 :])[0, 1]) < 5 / (n / 2) ** 0.5  # samples


def test_draws_differ_by_key_stream_sample_and_element(backend):
    base = draws()
    others = [
        draws(key=3),
        draws(key=1 + 2**32),
        draws(stream=3),
        draws(stream=2 + 2**32),
        draws(key=2, stream=1),
        draws(index=torch.arange(4) + 4),
        draws(index=torch.arange(4) + 2**32),
    ]
    everything = torch.cat([base, *others]).flatten()
    # Of 24-bit draws some coincide by chance: 6144 of them give about one pair.
    assert len(everything.unique()) > len(everything) - 12
    for other in others:
        assert (other == base).sum() <= 2


@each_start
def test_draws_belong_to_the_sample(op, backend):
    """Whatever the batch, its order, the layout and the rank: the same index draws the same."""
    whole = draws((6, 3, 4, 5), op=op)
    order = torch.tensor([4, 0, 5, 1, 3, 2])
    assert_same_bits(draws((6, 3, 4, 5), op=op, index=order), whole[order])
    assert_same_bits(draws((2, 3, 4, 5), op=op, index=torch.tensor([4, 5])), whole[4:])
    assert_same_bits(draws((6, 3, 4, 5), op=op, index=torch.arange(6)), whole)
    assert_same_bits(draws((6, 60), op=op), whole.view(6, 60))
    assert_same_bits(draws((6, 1, 3, 20, 1), op=op), whole.view(6, 1, 3, 20, 1))
    twice = draws((2, 3, 4, 5), op=op, index=torch.tensor([3, 3]))
    assert_same_bits(twice[0], twice[1])
    for layout in LAYOUTS:
        assert_same_bits(draws(op=op, clean=layout(torch.zeros(6, 3, 4, 5))), whole)


def test_draws_of_more_elements_begin_alike(backend):
    assert_same_bits(draws((6, 41)), draws((6, 60))[:, :41])


@each_start
def test_draws_of_half_images_are_the_same(op, backend):
    expected = draws(op=op)
    for dtype in (torch.float16, torch.bfloat16, torch.uint8):
        assert_same_bits(draws(op=op, clean=torch.zeros(4, 3, 8, 8, dtype=dtype)), expected)
    double = draws(op=op, clean=torch.zeros(4, 3, 8, 8, dtype=torch.float64))
    torch.testing.assert_close(double, expected.double(), rtol=2e-7, atol=0)
    if op.agrees is None:
        assert torch.equal(double, expected.double())


def test_the_draw_does_not_depend_on_the_image(backend):
    clean = torch.full((4, 3, 8, 8), 0.5)
    assert_same_bits(ops.linf_start(clean, 0.25, seed(1, 2)), 0.5 + 0.25 * draws())


@each_start
def test_no_global_random_state(op, backend):
    """Nothing is drawn from torch's generators, and nothing seeds them."""
    state = torch.get_rng_state()
    first = draws(op=op)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert_same_bits(draws(op=op), first)


def test_a_seed_from_a_generator(backend):
    """How attacks seed: any int64 pair does, negative ones too."""
    pair = torch.randint(-(2**63), 2**63 - 1, (2,), generator=torch.Generator().manual_seed(0))
    a = ops.linf_start(torch.zeros(2, 50), 1.0, pair, -INF, INF)
    assert_same_bits(a, torch.from_numpy(oracle.symmetric_uniform(*pair.tolist(), range(2), 50)).float())


@each_start
def test_starts_of_large_images_continue_over_pieces(op, backend):
    """Logical elements far into a sample, where kernels work piece by piece."""
    shape = (2, 3, 150, 161)
    given = {"eps": 1.0, "seed": seed(1, 2), "lo": -INF, "hi": INF}
    for layout in (lambda x: x, channels_last):
        given["clean"] = layout(torch.zeros(shape))
        assert_ideal(op, op(**given), given)


each_round_start = pytest.mark.parametrize("op", [BY_NAME["l2_start"], BY_NAME["l1_start"]], ids=str)


def points(op, backend, n):
    """Many points of the unit ball in n dimensions, (N, n), and their number. Few where each takes long."""
    count = 400 if interpreted(backend) else 20_000
    found = draws((count, n), op=op).double()
    assert (found.norm(p=op.power, dim=1) <= 1 + 1e-6).all()
    return found, count


@each_round_start
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 9])
def test_radii_are_those_of_a_uniform_ball(op, backend, n):
    """The volume within a radius grows with its n-th power."""
    found, _ = points(op, backend, n)
    volume = found.norm(p=op.power, dim=1) ** n
    assert scipy.stats.kstest(volume.numpy(), "uniform").pvalue > 1e-6


@each_round_start
@pytest.mark.parametrize("n", [2, 5, 9])
def test_all_coordinates_are_alike(op, backend, n):
    """Wherever in a block of four an element draws: mean 0, the variance of the uniform ball, no pair that
    goes together, and either sign."""
    found, count = points(op, backend, n)
    variance = {2: 1 / (n + 2), 1: 2 / (n + 1) / (n + 2)}[op.power]
    assert (found.mean(0).abs() < 5 * (variance / count) ** 0.5).all()
    spread = found.square().std() / count**0.5
    assert ((found.square().mean(0) - variance).abs() < 5 * spread).all()
    covariance = found.T.cov()
    assert (covariance - covariance.diag().diag()).abs().max() < 5 * variance / count**0.5
    assert ((found > 0).double().mean(0) - 0.5).abs().max() < 2.5 / count**0.5


def test_directions_in_the_plane_are_uniform(backend):
    """All angles in L2; in L1, which turned by 45 degrees is a square, all points of that."""
    found, _ = points(BY_NAME["l2_start"], backend, 2)
    angle = torch.atan2(found[:, 0], found[:, 1]) / numpy.pi
    assert scipy.stats.kstest(angle.numpy(), "uniform", (-1, 2)).pvalue > 1e-6
    found, _ = points(BY_NAME["l1_start"], backend, 2)
    for side in (found[:, 0] + found[:, 1], found[:, 0] - found[:, 1]):
        assert scipy.stats.kstest(side.numpy(), "uniform", (-1, 2)).pvalue > 1e-6


def test_normal_draws_are_normal(backend):
    """A point of the ball of very many dimensions is a normal vector, scaled."""
    found = draws((3, 100_000), op=BY_NAME["l2_start"]).double()
    for sample in found:
        z = sample / sample.norm() * 100_000**0.5
        assert scipy.stats.kstest(z.numpy(), "norm").pvalue > 1e-6
    found = draws((3, 100_000), op=BY_NAME["l1_start"]).double()
    for sample in found:
        assert scipy.stats.kstest((sample / sample.abs().mean()).numpy(), "laplace").pvalue > 1e-6
