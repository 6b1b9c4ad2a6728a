"""Real images and robust checkpoints, which are no part of the repository: ../shared/data."""

import io
import tarfile
from collections import OrderedDict
from pathlib import Path

import numpy
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from roli_fast.models import Normalized, resnet10_tin

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


class _Block(nn.Module):
    """A basic block without BatchNorm."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.shortcut = nn.Sequential(
            nn.Conv2d(channels_in, channels, 1, stride) if stride > 1 else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x).relu()) + self.shortcut(x)).relu()


class ResNet4b(nn.Module):
    """Verified-Intelligence's network for CIFAR-10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 2, 1)
        self.layer1 = nn.Sequential(_Block(16, 32, 2), _Block(32, 32, 1))
        self.layer2 = nn.Sequential(_Block(32, 32, 2), _Block(32, 32, 1))
        self.linear1, self.linear2 = nn.Linear(512, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.conv1(x).relu())).flatten(1)
        return self.linear2(self.linear1(x).relu())


class SmallCNN(nn.Module):
    """The network of TRADES' MNIST experiments."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"conv1": (1, 32), "conv2": (32, 32), "conv3": (32, 64), "conv4": (64, 64)}
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for name, size in sizes.items():
            layers[name], layers[f"relu_{name}"] = nn.Conv2d(*size, 3), nn.ReLU()
            if name in ("conv2", "conv4"):
                layers[f"pool_{name}"] = nn.MaxPool2d(2)
        self.feature_extractor = nn.Sequential(layers)
        head = {"fc1": nn.Linear(1024, 200), "relu1": nn.ReLU(), "drop": nn.Dropout(0.5)}
        head |= {"fc2": nn.Linear(200, 200), "relu2": nn.ReLU(), "fc3": nn.Linear(200, 10)}
        self.classifier = nn.Sequential(OrderedDict(head))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.feature_extractor(x).flatten(1))


def trades_mnist() -> nn.Module:
    """Linf 0.3; grey pixels in [0, 1]."""
    return _loaded(
        SmallCNN(), torch.load(SHARED / "trades_mnist_smallcnn.pt", map_location="cpu", weights_only=True)
    )


def resnet4b_cifar10() -> nn.Module:
    """Linf 2/255; without BatchNorm."""
    weights = torch.load(SHARED / "resnet4b_cifar10.pth", map_location="cpu", weights_only=True)
    weights = weights.get("state_dict", weights)
    return Normalized(_loaded(ResNet4b(), weights), (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)).eval()


def resnet10_tiny_imagenet(which: str = "robust") -> nn.Module:
    """Linf 4/255 ("robust"), or trained without attacks ("standard"); BatchNorm, 32x32 pixels."""
    model = resnet10_tin(200)
    weights = load_file(SHARED / f"resnet10_tin200_{which}.safetensors")
    return Normalized(_loaded(model, weights), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).eval()


def _loaded(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    model.load_state_dict(weights)
    return model.eval()


def mnist() -> tuple[Tensor, Tensor]:
    """2,000 test images (N, 1, 28, 28) in [0, 1] and their labels, 200 of each digit."""
    stored = numpy.load(SHARED / "mnist-2k.npz")
    return torch.tensor(stored["images"])[:, None].float() / 255, torch.tensor(stored["labels"])


def cifar10(split: str, per_class: int | None = None) -> tuple[Tensor, Tensor]:
    """ "train" or "test" images (N, 3, 32, 32), uint8, and their labels; the first of each class."""
    return _images("cifar10-12k", split, per_class, 32)


def tiny_imagenet(split: str, per_class: int | None = None) -> tuple[Tensor, Tensor]:
    """ "train" or "val" images of 100 classes, uint8, at 32 pixels a side."""
    return _images("tiny-imagenet-100", split, per_class, 32)


def _images(name: str, split: str, per_class: int | None, size: int) -> tuple[Tensor, Tensor]:
    found: dict[str, list[tuple[str, bytes]]] = {}
    with tarfile.open(SHARED / f"{name}.tar.xz") as archive:
        for member in archive:
            parts = Path(member.name).parts
            if member.isfile() and len(parts) >= 4 and parts[1] == split:
                file = archive.extractfile(member)
                assert file is not None
                found.setdefault(parts[2], []).append((member.name, file.read()))
    images, labels = [], []
    for label, files in enumerate(found[name] for name in sorted(found)):
        for _, content in sorted(files)[:per_class]:
            picture = (
                Image.open(io.BytesIO(content)).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
            )
            images.append(numpy.asarray(picture))
            labels.append(label)
    return torch.tensor(numpy.stack(images)).movedim(-1, 1).contiguous(), torch.tensor(labels)
