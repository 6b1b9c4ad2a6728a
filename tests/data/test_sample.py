"""A sample is evenly spaced, the same at each pass, and no larger than its set."""

import pytest
import torch

from roli_fast.data import Sample, StoredImages


def images(count):
    pixels = torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    return StoredImages(pixels, torch.arange(count) % 2, ["even", "odd"])


@pytest.mark.parametrize(
    ("count", "expected"), [(4, [0, 5, 10, 15]), (None, [*range(20)]), (99, [*range(20)])]
)
def test_evenly_spaced(count, expected):
    sample = Sample(images(20), count, 3)
    assert sample.images == len(expected)
    for _ in range(2):
        batches = list(sample)
        assert len(batches) == len(sample) == -(-len(expected) // 3)
        assert [int(v) for x, _ in batches for v in x[:, 0, 0, 0]] == expected
        assert all(torch.equal(y, x[:, 0, 0, 0].long() % 2) for x, y in batches)


def test_a_set_without_images_is_refused():
    with pytest.raises(ValueError, match="images: got none, accepted: a set that has some"):
        Sample(images(0), None, 3)


@pytest.mark.parametrize(
    ("pixels", "labels"),
    [
        (torch.zeros(10, 3, 4, 4), torch.zeros(8, dtype=torch.long)),
        (torch.zeros(8, 3, 4, 4), torch.zeros(8, dtype=torch.int32)),
        (torch.zeros(8, 4, 4), torch.zeros(8, dtype=torch.long)),
    ],
)
def test_images_and_labels_that_do_not_fit_together(pixels, labels):
    with pytest.raises(ValueError, match=r"images: got shape .* accepted: \(N, C, H, W\), with torch.int64"):
        StoredImages(pixels, labels)


def test_nothing_selected():
    assert len(images(4).select([])) == 0
