"""What attacks are measured on: a timm model that takes pixels, and images for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks import predict
from ..models import Normalized

Batches = Sequence[tuple[Tensor, Tensor]]


def timm_model(
    name: str, shape: Sequence[int], *, num_classes: int = 10, checkpoint: Path | None = None
) -> Normalized:
    """A model of timm's by name, in eval mode, normalised inside by timm's mean and std.

    shape: (C, H, W) of an image.
    checkpoint: timm's or a plain state dict, as safetensors or pickled weights; default random weights.

    Raises ValueError for a name that timm does not know, RuntimeError for a checkpoint that does not fit.
    """
    if not timm.is_model(name):
        raise ValueError(f"model: got {name!r}, accepted: a name of timm.list_models()")
    channels, height, width = shape
    config = timm.models.get_pretrained_cfg(name)
    sized: dict[str, Any] = {"img_size": (height, width)} if config and config.fixed_input_size else {}
    model = timm.create_model(name, num_classes=num_classes, in_chans=channels, **sized)
    if checkpoint is not None:
        model.load_state_dict(timm.models.load_state_dict(str(checkpoint), weights_only=True))
    else:
        _wake_norms(model)
    if config and len(config.mean) == channels:
        mean, std = config.mean, config.std
    else:
        mean = std = (0.5,) * channels
    return Normalized(model, mean, std).eval()


@torch.no_grad()
def _wake_norms(model: nn.Module) -> None:
    """Scales that are initialised to zero, so that a block starts as the identity, get ones: a block that
    contributes nothing is no model of one that was trained."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if "norm" in type(module).__name__.lower() and isinstance(weight, Tensor) and not weight.any():
            weight.fill_(1)


def random_images(count: int, shape: Sequence[int]) -> Tensor:
    """Smooth random images (count, C, H, W) in [0, 1], with some noise: more like photographs than noise
    alone, which looks the same to a network, image for image."""
    channels, *size = shape
    coarse = torch.rand(count, channels, 4, 4)
    smooth = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return (smooth + 0.1 * torch.randn(count, channels, *size)).clamp(0, 1)


@torch.no_grad()
def settle(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """BatchNorm statistics from these batches: those of a constructor fit no data, and what comes out of
    many layers then has no sensible size in any precision."""
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
    """The batches with the model's own predictions as labels: clean accuracy is 1, so that robust accuracy
    says what an attack reached, whatever the weights."""
    return [(images, predict(model, images).argmax(dim=1)) for images in batches]
