"""What attacks are measured on: a model that takes pixels, and images for it."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks import predict
from ..checks import refuse
from ..models import Normalized, create_model, load_backbone

Batches = Sequence[tuple[Tensor, Tensor]]


def timm_model(
    name: str, shape: Sequence[int], *, num_classes: int = 10, checkpoint: Path | None = None
) -> Normalized:
    """timm's model of that name, in eval mode, for images of that shape.

    shape: (C, H, W) of an image.
    checkpoint: a file of weights, including the head's. By default, random weights with which no block is the
        identity.

    Raises ValueError for an unknown name, and for a checkpoint that does not fit.
    """
    channels, height, width = shape
    model = create_model(name, num_classes, in_chans=channels, img_size=(height, width))
    if checkpoint is None:
        _wake_norms(model)
    elif not load_backbone(model, checkpoint).head:
        refuse("num_classes", num_classes, f"as many as {checkpoint} has")
    return model.eval()


@torch.no_grad()
def _wake_norms(model: nn.Module) -> None:
    """Sets to one the scales that are initialised to zero, with which a block starts as the identity. A model
    with blocks that contribute nothing does not stand for a trained one."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if "norm" in type(module).__name__.lower() and isinstance(weight, Tensor) and not weight.any():
            weight.fill_(1)


def random_images(count: int, shape: Sequence[int]) -> Tensor:
    """Smooth random images (count, C, H, W) in [0, 1], with some noise. They are more like photographs than
    noise alone is, whose images all look the same to a network."""
    channels, *size = shape
    coarse = torch.rand(count, channels, 4, 4)
    smooth = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return (smooth + 0.1 * torch.randn(count, channels, *size)).clamp(0, 1)


@torch.no_grad()
def settle(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Computes BatchNorm's statistics from these batches. The statistics that a new model has fit no data,
    and its outputs after many layers then have no sensible size in any precision."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for images in batches:
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def labelled(model: nn.Module, batches: Sequence[Tensor]) -> Batches:
    """The batches, with the model's own predictions as labels. Clean accuracy is then 1, so that robust
    accuracy says what an attack reached, whatever the weights."""
    return [(images, predict(model, images).argmax(dim=1)) for images in batches]
