"""What the engine's tests share."""

import torch
from torch import nn

from roli_fast.engine import eval_mode


def logits(model, images):
    """The model's own, in eval mode."""
    with torch.no_grad(), eval_mode(model):
        return model(images)


def through(view, images):
    """The view's."""
    with torch.no_grad():
        return view(view.prepare(images))


def assert_same_logits(view, model, images):
    """Within rounding, relative to the largest."""
    expected = logits(model, images)
    scale = expected.abs().max().item()
    torch.testing.assert_close(through(view, images), expected, rtol=0, atol=2e-5 * scale)


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
