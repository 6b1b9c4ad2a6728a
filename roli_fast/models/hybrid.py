"""A vision transformer on the first stages of a small residual network."""

import functools
from typing import Any, cast

from timm.layers import HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from .resnets import resnet10_tin


class _Stages(nn.Module):
    """The layers of resnet10_tin before its last stage, under the same names. Maps (N, C, H, W) to
    (N, 128, H / 8, W / 8)."""

    def __init__(self, in_chans: int):
        super().__init__()
        whole = resnet10_tin(0, in_chans=in_chans)
        for name in ("conv1", "bn1", "act1", "layer1", "layer2", "layer3"):
            self.add_module(name, whole.get_submodule(name))

    def forward(self, images: Tensor) -> Tensor:
        for stage in self.children():
            images = stage(images)
        return images


def hybrid_vit(
    num_classes: int,
    *,
    in_chans: int = 3,
    img_size: int | tuple[int, int] = 64,
    embed_dim: int = 192,
    depth: int = 6,
    num_heads: int = 3,
    **options: Any,
) -> VisionTransformer:
    """timm's vision transformer on convolutional features: each token is what the first three stages of
    :func:`resnet10_tin` compute for 8x8 pixels. Dosovitskiy et al. 2021 (section 4.2) call this a hybrid. It
    has 3 M parameters and learns from thousands of images, where a transformer on raw patches needs a
    million.

    img_size: size of the images in pixels, a number or (H, W); multiples of 8.
    options: further arguments of timm's ``VisionTransformer``, such as ``drop_path_rate``.
    """
    patches = functools.partial(HybridEmbed, backbone=_Stages(in_chans))
    return VisionTransformer(
        img_size=img_size,
        patch_size=1,  # in the stages' output
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        embed_layer=cast(Any, patches),
        **options,
    )
