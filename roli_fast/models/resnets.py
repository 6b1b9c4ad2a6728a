"""Residual networks for small images."""

from typing import Any, cast

from timm.models.resnet import BasicBlock, ResNet
from torch import nn


def small_resnet(
    num_classes: int,
    *,
    in_chans: int = 3,
    channels: tuple[int, int, int, int] = (32, 64, 128, 128),
    stem_stride: int = 1,
    **options: Any,
) -> ResNet:
    """timm's ResNet for images of 8 to 64 pixels a side. Each stage has one basic block, and the stem hardly
    shrinks the image: it is a 3x3 convolution, instead of 7x7 with stride 2, without pooling.

    in_chans: number of the images' channels.
    channels: numbers of channels of the four stages.
    stem_stride: stride of the 3x3 convolution.
    options: further arguments of timm's ``ResNet``, such as ``drop_path_rate``.
    """
    model = ResNet(
        cast(Any, BasicBlock),
        (1, 1, 1, 1),
        num_classes=num_classes,
        in_chans=in_chans,
        channels=channels,
        **options,
    )
    stem = nn.Conv2d(in_chans, 64, 3, stride=stem_stride, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.set_submodule("conv1", stem)
    model.set_submodule("maxpool", nn.Identity())
    return model


def resnet10_tin(num_classes: int, **options: Any) -> ResNet:
    """The :func:`small_resnet` that this project has trained on Tiny-ImageNet at 32x32 pixels
    (``docs/robust_checkpoints.md``). It has 1.2 M parameters besides its head."""
    return small_resnet(num_classes, channels=(32, 64, 128, 256), stem_stride=2, **options)
