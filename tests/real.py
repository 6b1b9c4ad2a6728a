"""Real networks and images, from the folder that the fixture ``shared_data`` gives."""

import io
import tarfile

import numpy
import pytest
import torch
from torch import nn

from benchmarks.real import ResNet4b, SmallCNN
from roli_fast.models import Normalized


def mnist(folder):
    """TRADES' network, and images (2000, 1, 28, 28) with labels."""
    model = SmallCNN()
    model.load_state_dict(torch.load(folder / "trades_mnist_smallcnn.pt", map_location="cpu"))
    with numpy.load(folder / "mnist-2k.npz") as data:
        images, labels = torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])
    return model.eval(), images[:, None] / 255.0, labels


def cifar10(folder):
    """Verified-Intelligence's network, and images (2000, 3, 32, 32) with labels, classes mixed."""
    weights = torch.load(folder / "resnet4b_cifar10.pth", map_location="cpu")
    net = ResNet4b()
    net.load_state_dict(weights.get("state_dict", weights))
    images, labels = images_in(folder / "cifar10-12k.tar.xz", "test", 2000)
    model = Normalized(net, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    return model.eval(), images, labels


def tiny_imagenet(folder):
    """Images (600, 3, 32, 32) of 30 of Tiny-ImageNet's classes, mixed, with labels among all 200."""
    images, labels = images_in(folder / "tiny-imagenet-100.tar.xz", "val", 20 * len(TINY_IMAGENET_CLASSES))
    return nn.functional.avg_pool2d(images, 2), torch.tensor(TINY_IMAGENET_CLASSES)[labels]


def images_in(path, split, count):
    """The first count images of a split of class folders, mixed, as floats in [0, 1], and their classes in
    sorted order."""
    image = pytest.importorskip("PIL.Image")
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            if f"/{split}/" in member.name and member.isfile():
                file = io.BytesIO(archive.extractfile(member).read())
                found[member.name] = numpy.asarray(image.open(file).convert("RGB"))
            if len(found) == count:  # the rest would take seconds to unpack
                break
    names = sorted(found, key=lambda n: (n.rsplit("/", 1)[1], n))
    classes = sorted({n.split("/")[-2] for n in names})
    images = torch.from_numpy(numpy.stack([found[n] for n in names])).permute(0, 3, 1, 2) / 255.0
    labels = torch.tensor([classes.index(n.split("/")[-2]) for n in names])
    return images.contiguous(), labels


# Where the archive's first 30 classes stand among the names of Tiny-ImageNet's 200 in sorted order.
TINY_IMAGENET_CLASSES = [
    1, 5, 7, 8, 10, 14, 15, 18, 19, 20, 22, 24, 26, 28, 29,
    30, 32, 33, 36, 37, 38, 41, 43, 46, 49, 50, 51, 52, 53, 60,
]  # fmt: skip
