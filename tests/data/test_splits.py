"""A cut is in proportion, disjoint, and the same everywhere."""

import random
from fractions import Fraction

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roli_fast.data.images import StoredImages
from roli_fast.data.splits import cut, cut_share
from roli_fast.data.view import View


def images(sizes: list[int]) -> StoredImages:
    """So many images of each class, class after class; an image's pixel is its number."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    pixels = torch.arange(len(labels), dtype=torch.int32)[:, None, None, None]
    keys = [f"{label}/{row}.jpg" for row, label in enumerate(labels.tolist())]
    return StoredImages(pixels, labels, [f"class {c}" for c in range(len(sizes))], keys, View())


def numbers(part):
    return part.images.flatten().long().tolist()


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(2, 30), min_size=1, max_size=8),
    st.fractions(Fraction(1, 20), Fraction(1, 2), max_denominator=20),
    st.integers(0, 5),
)
def test_a_share_is_cut_in_proportion(sizes, share, seed):
    whole = images(sizes)
    expected = round(share * len(whole))
    try:
        rest, taken = cut_share(whole, share, seed)
    except ValueError:
        assert expected == 0
        return
    assert len(taken) == expected
    assert sorted(numbers(rest) + numbers(taken)) == list(range(len(whole)))
    assert numbers(taken) == sorted(numbers(taken))
    for c, size in enumerate(sizes):
        assert abs(int((taken.labels == c).sum()) - float(share * size)) < 1
        assert (rest.labels == c).any()
    for part in (rest, taken):  # labels and keys go with their images
        assert torch.equal(part.labels, whole.labels[numbers(part)])
        assert part.keys == [whole.keys[row] for row in numbers(part)]


@pytest.mark.parametrize(
    ("sizes", "share", "sizes_after"),
    [
        ([5_000] * 10, Fraction(5_000, 50_000), (45_000, 5_000)),  # CIFAR-10
        ([500] * 100, Fraction(5_000, 50_000), (45_000, 5_000)),  # CIFAR-100
        ([60] * 257, Fraction(771, 15_420), (14_649, 771)),  # Caltech256
        ([30] * 194 + [29] * 6, Fraction(600, 5_994), (5_394, 600)),  # CUB-200-2011
        ([100] * 120, Fraction(1_200, 12_000), (10_800, 1_200)),  # Stanford Dogs
    ],
)
def test_the_papers_sizes(sizes, share, sizes_after):
    rest, taken = cut_share(images(sizes), share, 0)
    assert (len(rest), len(taken)) == sizes_after
    counts = torch.bincount(taken.labels)
    assert counts.max() == counts.min()  # the paper's classes are as good as equally large


def test_the_same_images_on_every_machine():
    """Written down once: a change would let images that validated train."""
    _, taken = cut_share(images([10, 10, 10]), Fraction(1, 5), seed=0)
    assert numbers(taken) == [0, 9, 10, 12, 20, 23]


def test_only_seed_and_keys_decide():
    whole = images([40, 40])
    _, taken = cut_share(whole, Fraction(1, 4), 3)
    random.seed(1)
    numpy.random.seed(1)
    torch.manual_seed(1)
    assert cut_share(whole, Fraction(1, 4), 3)[1].keys == taken.keys
    shuffled = whole.select(torch.randperm(80).tolist())
    assert set(cut_share(shuffled, Fraction(1, 4), 3)[1].keys) == set(taken.keys)
    assert set(cut_share(whole, Fraction(1, 4), 4)[1].keys) != set(taken.keys)


def test_a_name_that_is_not_utf8():
    """As files may have it, in Python's writing."""
    whole = images([20, 20])
    _, taken = cut(whole, [5, 5], 0)
    row = int(numbers(taken)[0])
    whole.keys[row] = "0/caf\udce9.jpg"
    rest, other = cut(whole, [5, 5], 0)
    assert len(set(numbers(taken)) ^ set(numbers(other))) in (0, 2)  # its own place is all that it can change
    assert sorted(numbers(rest) + numbers(other)) == [*range(40)]


def test_more_images_of_a_class_leave_the_others_where_they_are():
    _, few = cut(images([20, 20]), [5, 5], 0)
    _, more = cut(images([20, 20]), [5, 9], 0)
    assert set(few.keys) <= set(more.keys)


@pytest.mark.parametrize(("sizes", "share"), [([3, 3], Fraction(1, 20)), ([1, 9], Fraction(9, 10))])
def test_a_set_too_small_to_cut_is_refused(sizes, share):
    with pytest.raises(ValueError, match=r"got .* images of 2 classes, accepted: enough of each"):
        cut_share(images(sizes), share, 0)
