"""An epoch is a function of seed and number: whoever asks, with whatever workers, from wherever on."""

import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roli_fast.data import Loader, load
from roli_fast.data.images import StoredImages
from roli_fast.data.view import View

from .layouts import folders


def numbered(count: int, view: View | None = None) -> StoredImages:
    """Image i is 6x8 pixels, each of which tells its place and i."""
    places = torch.arange(48, dtype=torch.uint8).reshape(1, 1, 6, 8).expand(count, 1, 6, 8)
    own = torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(count, 1, 6, 8)
    labels = torch.arange(count) % 3
    keys = [str(i) for i in range(count)]
    return StoredImages(torch.cat([places, own], dim=1), labels, ["a", "b", "c"], keys, view or View())


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """23 training images of different sizes."""
    root = tmp_path_factory.mktemp("photos")
    for split in ("train", "val", "test"):
        folders(root / split, {"cat": 12, "dog": 10}, (30, 24))
        folders(root / split, {"owl": 1}, (24, 24))
    return load("folder", root, input_size=16, crop_pct=0.8).train


def same(batches, others):
    return all(
        torch.equal(a, b)
        for batch, other in zip(batches, others, strict=True)
        for a, b in zip(batch, other, strict=True)
    )


def pixels(batches):
    return torch.cat([images for images, _, _ in batches])


def test_a_batch_is_images_labels_and_index():
    data = numbered(10)
    batches = list(Loader(data, 4))
    assert [len(labels) for _, labels, _ in batches] == [4, 4, 2]
    for images, labels, index in batches:
        assert (images.dtype, labels.dtype, index.dtype) == (torch.uint8, torch.int64, torch.int64)
        assert torch.equal(images, data.images[index])
        assert torch.equal(labels, data.labels[index])
    assert torch.cat([index for _, _, index in batches]).tolist() == list(range(10))


def test_an_epoch_is_a_function_of_seed_and_number():
    data = numbered(40, View(resize=6, crop=4, hflip=0.5))
    epoch = list(Loader(data, 8, train=True, seed=1).epoch(3))
    torch.manual_seed(9)
    loader = Loader(data, 8, train=True, seed=1)
    list(loader.epoch(7))
    assert same(loader.epoch(3), epoch)
    for other in (loader.epoch(2), Loader(data, 8, train=True, seed=2).epoch(3), loader.epoch(1)):
        assert not same(other, epoch)
    # Neighbours share no order either: seed 1 in epoch 3 is not seed 3 in epoch 1.
    assert not same(Loader(data, 8, train=True, seed=3).epoch(1), epoch)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_change_nothing(photos, workers):
    expected = list(Loader(photos, 5, train=True, seed=4, workers=0).epoch(2))
    loader = Loader(photos, 5, train=True, seed=4, workers=workers)
    assert {type(batch) for batch in loader.epoch(0)} == {tuple}
    assert same(loader.epoch(2), expected)  # the same workers, in another epoch
    assert same(loader.epoch(2, start=3), expected[3:])
    next(loader.epoch(1))  # given up
    assert same(loader.epoch(2), expected)
    assert same(Loader(photos, 5, workers=workers), Loader(photos, 5, workers=0))


def test_an_epoch_resumes_at_any_step():
    data = numbered(40, View(resize=6, crop=4, hflip=0.5))
    loader = Loader(data, 8, train=True)
    whole = list(loader.epoch(6))
    for start in range(6):
        assert same(loader.epoch(6, start=start), whole[start:])


def test_global_random_states_are_neither_read_nor_written(photos):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for data in (numbered(20, View(resize=6, crop=4, hflip=0.5)), photos):
        loader = Loader(data, 5, train=True, workers=1)
        list(loader.epoch(0))
        list(Loader(data, 5, workers=1))
    assert torch.equal(torch.get_rng_state(), before)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 24), st.integers(1, 6), st.integers(1, 4))
def test_processes_share_an_epoch(count, batch_size, world_size):
    data = numbered(count)
    ranks = [Loader(data, batch_size, rank=r, world_size=world_size) for r in range(world_size)]
    shares = [list(loader) for loader in ranks]
    assert [len(loader) for loader in ranks] == [len(share) for share in shares]
    seen = torch.cat([index for share in shares for _, _, index in share])
    assert sorted(seen.tolist()) == list(range(count))  # each image once

    if count < world_size:
        with pytest.raises(ValueError, match=rf"images: got {count}, accepted: one for each"):
            Loader(data, batch_size, train=True, rank=0, world_size=world_size)
        return
    ranks = [Loader(data, batch_size, train=True, rank=r, world_size=world_size) for r in range(world_size)]
    shares = [list(loader.epoch(0)) for loader in ranks]
    assert {len(share) for share in shares} == {len(ranks[0])}
    alone = Loader(data, batch_size * world_size, train=True).epoch(0)
    for together, batch in zip(zip(*shares, strict=True), alone, strict=False):
        indices = torch.cat([index for _, _, index in together]).tolist()
        if len(ranks[0]) > 1 or count // world_size >= batch_size:
            assert len(indices) == batch_size * world_size
            assert sorted(indices) == sorted(batch[2].tolist())
        assert len(set(indices)) == len(indices)


def test_the_processes_are_torch_distributeds(monkeypatch):
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 3)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    batches = list(Loader(numbered(10), 2))
    assert torch.cat([index for _, _, index in batches]).tolist() == [1, 4, 7]
    assert torch.cat([index for _, _, index in Loader(numbered(3), 2, rank=0, world_size=1)]).tolist() == [
        0,
        1,
        2,
    ]


def test_what_workers_are_given_can_be_sent(photos):
    """Where processes are not forked, data sets are pickled."""
    sent = pickle.loads(pickle.dumps(photos))
    assert same(Loader(sent, 6, workers=0), Loader(photos, 6, workers=0))


def test_the_last_incomplete_batch_does_not_train():
    loader = Loader(numbered(11), 4, train=True)
    assert [len(labels) for _, labels, _ in loader.epoch(0)] == [4, 4]
    assert len(loader) == 2
    assert len(Loader(numbered(11), 4)) == 3
    (batch,) = Loader(numbered(3), 4, train=True).epoch(0)
    assert len(batch[1]) == 3


def test_every_image_is_augmented_by_draws_of_its_own():
    """Over many epochs images are seen at every place, mirrored half of the time, whatever stands beside."""
    data = numbered(30, View(resize=6, crop=4, hflip=0.5))
    loader = Loader(data, 30, train=True)
    seen = []
    for epoch in range(40):
        ((images, _, index),) = loader.epoch(epoch)
        own = images[:, 1]
        assert torch.equal(own, index[:, None, None].expand_as(own).to(torch.uint8))
        corners = images[:, 0, 0, 0].long()
        mirrored = images[:, 0, 0, 1] < images[:, 0, 0, 0]
        left = torch.where(mirrored, corners % 8 - 3, corners % 8)
        seen += zip((corners // 8).tolist(), left.tolist(), mirrored.tolist(), strict=True)
    counts = {place: seen.count(place) for place in set(seen)}
    assert set(counts) == set(itertools.product(range(3), range(5), (False, True)))
    expected = 1200 / 30
    assert (
        sum((count - expected) ** 2 / expected for count in counts.values()) < 59.7
    )  # chi squared, p = 0.0007
    data.view = View(resize=6, crop=4, hflip=0.0)
    ((images, _, _),) = loader.epoch(0)
    assert (images[:, 0, 0, 1] > images[:, 0, 0, 0]).all()


def test_without_augmentation_only_the_order_is_random():
    data = numbered(20)
    orders = []
    for epoch in range(2):
        batches = list(Loader(data, 5, train=True).epoch(epoch))
        orders.append(torch.cat([index for _, _, index in batches]))
        assert torch.equal(pixels(batches), data.images[orders[-1]])
        assert sorted(orders[-1].tolist()) == list(range(20))
    assert not torch.equal(*orders)


def test_a_training_loader_does_not_repeat_an_epoch_by_accident():
    with pytest.raises(TypeError, match=r"loader: got iter\(\) in training, accepted: loader\.epoch\(e\)"):
        iter(Loader(numbered(4), 2, train=True))


def test_sets_are_plain_data_sets(photos):
    image, label = photos[0]
    assert (image.shape, image.dtype, label) == ((3, 16, 16), torch.uint8, 0)
    assert len(list(photos)) == len(photos) == 23
    images, labels = next(iter(torch.utils.data.DataLoader(photos, batch_size=23)))
    assert torch.equal(images, pixels(Loader(photos, 5, workers=0)))
    assert torch.equal(labels, photos.labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0, accepted: an integer >= 1"),
        ({"workers": -1}, "workers: got -1, accepted: an integer >= 0"),
        ({"rank": 2, "world_size": 2}, r"rank: got 2, accepted: 0 \.\. world_size - 1 = 1"),
        ({"rank": -1}, "rank: got -1"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Loader(numbered(8), **{"batch_size": 2, **options})


def test_epochs_and_steps_that_are_none():
    loader = Loader(numbered(8), 2, train=True)
    with pytest.raises(ValueError, match="epoch: got -1"):
        loader.epoch(-1)
    with pytest.raises(ValueError, match=r"start: got 5, accepted: 0 \.\. 4, the batches of an epoch"):
        loader.epoch(0, start=5)
    assert list(loader.epoch(0, start=4)) == []


def test_labels_that_are_no_classes():
    data = copy.copy(numbered(4))
    with pytest.raises(ValueError, match=r"labels: got values in \[0, 7\], accepted: 0 \.\. 2"):
        StoredImages(data.images, torch.tensor([0, 1, 7, 2]), data.classes, data.keys, View())


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (torch.linspace(0, 255, 8), "0 to 255"),
        (torch.linspace(-2, 2, 8), "-2 to 2"),
        (torch.full((8,), torch.nan), "nan to nan"),
    ],
)
def test_floats_that_are_no_pixels(images, found):
    """Which training without an attack would take, and no test afterwards."""
    with pytest.raises(ValueError, match=f"images: got floats from {found}, accepted: floats from 0 to 1"):
        StoredImages(images.reshape(2, 1, 2, 2), torch.tensor([0, 1]))
