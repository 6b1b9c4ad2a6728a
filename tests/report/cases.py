"""Models whose accuracy under attack is known, and runs in folders."""

import json
import sys

import torch
from torch import nn

from roli_fast.data import Splits, StoredImages, load
from roli_fast.models import create_model, find_classifier, separate
from roli_fast.training import Recipe, roli

EPS = 0.08
CLASSES = ("dark", "light")
PIXELS = 64
NAMES = ("RoLI <full> & more", "ranli", "linear")  # of runs


def weights() -> torch.Tensor:
    return torch.linspace(0.5, 1.5, PIXELS) * (-1.0) ** torch.arange(PIXELS)


def images(count=40) -> tuple[torch.Tensor, torch.Tensor]:
    """In [0.3, 0.7], so that 2.5 EPS stays in the box; a linear model breaks them one after another."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 2
    side = (2.0 * labels - 1)[:, None]
    far = torch.linspace(0.005, 0.19, count)[:, None]
    noise = 0.01 * torch.rand(count, PIXELS, generator=generator)
    return (0.5 + side * far * weights().sign() + noise).reshape(count, 1, 8, 8), labels


def linear() -> nn.Module:
    """The margin of "light" is the weighted sum of how far pixels are from grey."""
    layer = nn.Linear(PIXELS, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([-weights() / 2, weights() / 2]))
        layer.bias.copy_(torch.tensor([1.0, -1.0]) * weights().sum() / 4)
    return separate(nn.Sequential(nn.Flatten(), layer), "1").eval()


def margins(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """By how much the right logit is above the other."""
    logits = model(x).detach().double()
    return (logits[:, 1] - logits[:, 0]) * (2 * labels - 1)


class Quantised(nn.Module):
    """Sees levels of grey, and has no gradient."""

    def __init__(self, levels: int):
        super().__init__()
        self.inner, self.levels = linear(), levels

    def forward(self, x):
        return self.inner((x * self.levels).round() / self.levels)


class NarrowBand(nn.Module):
    """Right but for images whose mean is between 0.04 and 0.05 above grey, with a gradient that leads past
    them: large steps jump over."""

    def forward(self, x):
        away = x.flatten(1).mean(dim=1) - 0.5
        wrong = (away > 0.04) & (away < 0.05)
        margin = torch.where(wrong, away - 1, 1 - away)
        return torch.stack([margin, -margin], dim=1)


class NaNGradient(nn.Module):
    """Its value is that of a linear model; its gradient is 0 times infinity."""

    def __init__(self):
        super().__init__()
        self.inner = linear()

    def forward(self, x):
        return self.inner(torch.where(x > 2, (x - x.detach()).sqrt(), x))


class Detached(nn.Module):
    """Has parameters with a gradient, and none by the images."""

    def __init__(self):
        super().__init__()
        self.inner = linear()

    def forward(self, x):
        return self.inner(x.detach())


def shorten(patch) -> None:
    """Shorter attacks and smaller pictures, for what is not about them."""
    module = sys.modules["roli_fast.report.measure"]
    for name, value in {"STEPS": 3, "QUERIES": 5, "ENSEMBLE_STEPS": 3, "STARTS": 2}.items():
        patch.setattr(module, name, value)
    patch.setattr(sys.modules["roli_fast.report.pictures"], "_DPI", 80)


# --- runs ----------------------------------------------------------------------------------------------


def blobs(count: int) -> StoredImages:
    """Images of 8x8 bytes whose brightest corner is their class."""
    generator = torch.Generator().manual_seed(count)
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 120, (count, 1, 8, 8), generator=generator)
    for c, (top, left) in enumerate([(0, 0), (0, 4), (4, 0)]):
        pixels[labels == c, :, top : top + 4, left : left + 4] += 90
    return StoredImages(pixels.to(torch.uint8), labels, ["a", "b", "<c>"])


def save_images(folder) -> dict:
    """Class folders of blobs, and the options that load them."""
    from PIL import Image

    for split, count in (("train", 48), ("val", 24), ("test", 30)):
        stored = blobs(count)
        for row, (image, label) in enumerate(stored):
            place = folder / split / f"class{label}\udce9"  # of bytes that are not UTF-8
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(place / f"{row}.png")
    return {"dataset": "folder", "data_dir": str(folder), "input_img_mode": "L"}


def load_images(options: dict) -> Splits:
    return load(options["dataset"], options["data_dir"], input_img_mode=options["input_img_mode"])


def make_run(folder, splits, options=None, probed=True, method="full", classes=3, **settings) -> None:
    """Of one epoch a stage, as the Python API leaves it; with options also what the command line adds."""
    torch.manual_seed(0)
    model = create_model("small_resnet", classes, in_chans=1, mean=(0.3,), std=(0.3,), channels=(8, 8, 8, 8))
    quick = {"epochs": 2, "lr": 1e-2, "batch_size": 16, "eps": 0.1, "steps": 1, "val_steps": 1}
    recipe = Recipe(**(quick | {"precision": "fp32"} | settings))
    find_classifier(model).reset_head(classes)
    roli(model, splits, recipe, probing=recipe if probed else None, method=method, folder=folder)
    if options is not None:
        about = {"arguments": options | {"init": "roli" if probed else "random", "model": "small_resnet"}}
        # One of them as outside of git.
        commit = {"id": "abc", "dirty": True} if probed else {"id": None, "dirty": None}
        (folder / "args.json").write_text(json.dumps(about | {"commit": commit}))
