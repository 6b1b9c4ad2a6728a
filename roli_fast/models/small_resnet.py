"""A residual network for images of a few pixels."""

from typing import Any, cast

from timm.models.resnet import BasicBlock, ResNet
from torch import nn


def small_resnet(
    num_classes: int, *, in_chans: int = 3, channels: tuple[int, int, int, int] = (32, 64, 128, 128)
) -> nn.Module:
    """timm's ResNet with one basic block per stage and a stem that does not shrink the image: a 3x3
    convolution instead of 7x7 with stride 2, and no pooling. For 8 to 32 pixels a side."""
    model = ResNet(
        cast(Any, BasicBlock), (1, 1, 1, 1), num_classes=num_classes, in_chans=in_chans, channels=channels
    )
    stem = nn.Conv2d(in_chans, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.set_submodule("conv1", stem)
    model.set_submodule("maxpool", nn.Identity())
    return model
