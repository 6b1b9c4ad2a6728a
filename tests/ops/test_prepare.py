"""What the model eats: normalised, cast, laid out."""

import itertools

import pytest
import torch

import roli_fast
from roli_fast import ops

from .cases import FLOATS, INF, LAYOUTS, NAN, STATES, assert_same_bits, channels_last

PRESERVE, DENSE = torch.preserve_format, torch.contiguous_format
LAST, LAST_3D = torch.channels_last, torch.channels_last_3d


def test_is_the_formula(backend):
    """Bit for bit the line of torch of the documentation, in every layout and dtype."""
    random = torch.Generator().manual_seed(0)
    for state, dtype, layout in itertools.product(STATES, FLOATS, LAYOUTS):
        adv = layout(torch.randn(2, 3, 9, 11, generator=random, dtype=state))
        mean, std = torch.rand(2, 3, generator=random, dtype=state) + 0.1
        for memory_format in (PRESERVE, DENSE, LAST):
            got = ops.prepare(adv, mean, std, dtype=dtype, memory_format=memory_format)
            line = (adv - mean[:, None, None]) / std[:, None, None]
            assert_same_bits(got, line.to(dtype))
            assert got.is_contiguous(memory_format=memory_format) or memory_format == PRESERVE


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4, 5, 6), (1, 3, 1, 5), (2, 1, 4, 4)], ids=str)
def test_layout_of_the_result(backend, shape):
    """That of torch.empty_like, in memory of its own even where nothing changes."""
    formats = (PRESERVE, DENSE, LAST) if len(shape) == 4 else (PRESERVE, DENSE, LAST_3D)
    for layout, memory_format in itertools.product(LAYOUTS, formats):
        adv = layout(torch.rand(shape))
        got = ops.prepare(adv, None, None, memory_format=memory_format)
        assert got.stride() == torch.empty_like(adv, memory_format=memory_format).stride()
        assert_same_bits(got, adv)
        assert got.untyped_storage().data_ptr() != adv.untyped_storage().data_ptr()


def test_defaults(backend):
    adv = channels_last(torch.rand(2, 3, 4, 5, dtype=torch.float64))
    got = ops.prepare(adv, None, None)
    assert got.dtype == torch.float32
    assert got.stride() == adv.stride()


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 7), (4, 3, 2, 2, 2)], ids=str)
def test_channels_are_the_second_dimension(backend, shape):
    adv = torch.ones(shape)
    mean, std = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.5, 1.0, 2.0])
    got = ops.prepare(adv, mean, std)
    for channel, value in enumerate([2.0, 0.0, -0.5]):
        assert (got[:, channel] == value).all()


def test_samples_without_channels(backend):
    """A batch of scalars can be cast, but not normalised."""
    assert ops.prepare(torch.tensor([0.1, 0.2]), None, None, dtype=torch.float16).dtype == torch.float16


def test_values_that_are_not_finite(backend):
    adv = torch.tensor([[INF, 0.5], [-INF, NAN], [0.0, 0.0]])
    got = ops.prepare(adv, torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.0]))
    assert_same_bits(got, torch.tensor([[INF, NAN], [-INF, NAN], [-1.0, -INF]]))


def test_many_channels_in_the_last_dimension(backend):
    """Features, (N, C): the channel changes with every element."""
    for channels in (1, 5, 64, 1023, 1025, 40_000):
        given = {
            "adv": torch.rand(3, channels),
            "mean": torch.rand(channels),
            "std": torch.rand(channels) + 0.1,
        }
        expected = (given["adv"] - given["mean"]) / given["std"]
        for layout in LAYOUTS:
            assert_same_bits(ops.prepare(**given | {"adv": layout(given["adv"])}), expected)


def test_a_mean_of_its_own_memory(backend):
    """mean and std may be columns of a table, or one value for all channels."""
    adv, table = torch.rand(2, 3, 4, 4), torch.rand(3, 2) + 0.1
    expected = ops.prepare(adv, table[:, 0].contiguous(), table[:, 1].contiguous())
    assert_same_bits(ops.prepare(adv, table[:, 0], table[:, 1]), expected)
    one = torch.tensor(0.5)
    expected = ops.prepare(adv, torch.full((3,), 0.5), torch.full((3,), 0.5))
    assert_same_bits(ops.prepare(adv, one.expand(3), one.expand(3)), expected)


@pytest.mark.skipif(roli_fast.backends()["cpu"].missing is not None, reason="no native library")
def test_a_lack_of_memory_is_torchs_own_error():
    """Whoever tries a smaller batch then looks for it."""
    huge = torch.zeros(1, 1).expand(1 << 45, 1)
    with roli_fast.backend("cpu"), pytest.raises(torch.OutOfMemoryError):
        ops.prepare(huge, None, None)
