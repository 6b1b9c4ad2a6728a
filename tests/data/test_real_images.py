"""Image folders as they are found: CIFAR-10 and Tiny-ImageNet as JPEG."""

import itertools
import tarfile

import pytest
import torch
from PIL import Image

from roli_fast.data import Loader, load
from roli_fast.data.images import StoredImages


def unpacked(archive, folder, every):
    """The archive, or one image in ``every``."""
    with tarfile.open(archive) as tar:
        files = (member for member in tar if member.isfile())
        for member in itertools.islice(files, 0, None, every):  # in one pass: unpacking takes seconds
            tar.extract(member, folder, filter="data")
    return next(folder.iterdir())


@pytest.mark.parametrize(
    ("every", "sizes"), [(24, (375, 42, 83)), pytest.param(1, (9_000, 1_000, 2_000), marks=pytest.mark.slow)]
)
def test_cifar10_as_a_folder(every, sizes, shared_data, tmp_path):
    root = unpacked(shared_data / "cifar10-12k.tar.xz", tmp_path, every)
    splits = load("folder", root)
    assert tuple(len(split) for split in splits) == sizes
    assert len(splits.classes) == 10
    assert set(splits.train.keys).isdisjoint(splits.val.keys)
    loader = Loader(splits.train, 64, train=True)
    assert isinstance(loader.images, StoredImages)
    images, labels, index = next(loader.epoch(0))
    assert (images.shape, images.dtype) == ((64, 3, 32, 32), torch.uint8)
    for image, label, i in zip(images, labels.tolist(), index.tolist(), strict=True):
        key = splits.train.keys[i]
        assert key.startswith(f"{splits.classes[label]}/")
        expected = torch.tensor(list(Image.open(root / "train" / key).tobytes()), dtype=torch.uint8)
        assert torch.equal(image.permute(1, 2, 0).flatten(), expected)


def test_tiny_imagenet_has_grey_images_and_no_test_folder(shared_data, tmp_path):
    root = unpacked(shared_data / "tiny-imagenet-100.tar.xz", tmp_path, 20)
    splits = load("folder", root, input_size=32, crop_pct=1.0, hflip=0.5)
    assert len(splits.classes) == 100
    assert sum(map(len, splits)) == 850
    assert len(splits.test) == 100  # the val folder's
    loader = Loader(splits.train, 100, train=True)
    images = torch.cat([images for images, _, _ in loader.epoch(0)])
    assert images.shape[1:] == (3, 32, 32)
    grey = [i for i, key in enumerate(splits.train.keys) if Image.open(root / "train" / key).mode == "L"]
    assert grey
    for i in grey:
        image, _ = splits.train[i]
        assert torch.equal(image, image[:1].expand(3, 32, 32))
