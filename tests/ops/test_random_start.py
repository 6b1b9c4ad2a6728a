"""Random starts: Philox, and draws that belong to the sample."""

import numpy
import pytest
import scipy.stats
import torch

from roli_fast import ops
from roli_fast.ops import reference

from . import oracle
from .cases import INF, LAYOUTS, assert_same_bits, channels_last

# Counter, key and output of Random123's kat_vectors, philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def seed(key, stream=0):
    return torch.tensor([key, stream])


def draws(shape=(4, 3, 8, 8), key=1, stream=2, **options):
    """The draws themselves: a start in the unit ball around 0, without a box."""
    return ops.linf_start(torch.zeros(shape), 1.0, seed(key, stream), -INF, INF, **options)


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, output):
    def words(text):
        return [int(word, 16) for word in text.split()]

    of_reference = reference.philox(
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


def test_draws_belong_to_the_sample(backend):
    """Whatever the batch, its order, the layout and the rank: the same index draws the same."""
    whole = draws((6, 3, 4, 5))
    order = torch.tensor([4, 0, 5, 1, 3, 2])
    assert_same_bits(draws((6, 3, 4, 5), index=order), whole[order])
    assert_same_bits(draws((2, 3, 4, 5), index=torch.tensor([4, 5])), whole[4:])
    assert_same_bits(draws((6, 3, 4, 5), index=torch.arange(6)), whole)
    assert_same_bits(draws((6, 60)), whole.view(6, 60))
    assert_same_bits(draws((6, 1, 3, 20, 1)), whole.view(6, 1, 3, 20, 1))
    assert_same_bits(draws((6, 41)), whole.view(6, 60)[:, :41])
    twice = draws((2, 3, 4, 5), index=torch.tensor([3, 3]))
    assert_same_bits(twice[0], twice[1])
    for layout in LAYOUTS:
        clean = layout(torch.zeros(6, 3, 4, 5))
        assert_same_bits(ops.linf_start(clean, 1.0, seed(1, 2), -INF, INF), whole)


def test_draws_of_half_and_double_images_are_the_same(backend):
    expected = draws().double()
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.uint8):
        clean = torch.zeros(4, 3, 8, 8, dtype=dtype)
        assert torch.equal(ops.linf_start(clean, 1.0, seed(1, 2), -INF, INF).double(), expected)


def test_the_draw_does_not_depend_on_the_image(backend):
    clean = torch.full((4, 3, 8, 8), 0.5)
    assert_same_bits(ops.linf_start(clean, 0.25, seed(1, 2)), 0.5 + 0.25 * draws())


def test_no_global_random_state(backend):
    """Nothing is drawn from torch's generators, and nothing seeds them."""
    state = torch.get_rng_state()
    first = draws()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert_same_bits(draws(), first)


def test_a_seed_from_a_generator(backend):
    """How attacks seed: any int64 pair does, negative ones too."""
    pair = torch.randint(-(2**63), 2**63 - 1, (2,), generator=torch.Generator().manual_seed(0))
    a = ops.linf_start(torch.zeros(2, 50), 1.0, pair, -INF, INF)
    assert_same_bits(a, torch.from_numpy(oracle.symmetric_uniform(*pair.tolist(), range(2), 50)).float())


def test_starts_of_large_images_continue_over_pieces(backend):
    """Logical elements far into a sample, where kernels work piece by piece."""
    shape = (2, 3, 150, 161)
    expected = oracle.symmetric_uniform(1, 2, range(2), 3 * 150 * 161).reshape(shape)
    for layout in (lambda x: x, channels_last):
        got = ops.linf_start(layout(torch.zeros(shape)), 1.0, seed(1, 2), -INF, INF)
        assert numpy.array_equal(got.numpy(), expected)
