"""Small models of every kind."""

import torch

from roli_fast.models import create_model, find_classifier

TINY = {
    "vit": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    ),
    # 16 x 16 tokens in windows of 4 x 4; the second block shifts them.
    "swin": (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": (2, 1),
            "num_heads": (2, 4),
            "window_size": 4,
        },
    ),
    "resnet": ("test_resnet", {}),
    "convnext": ("test_convnext", {}),
    "small_resnet": ("small_resnet", {}),
    "hybrid": ("hybrid_vit", {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}),
}
IMAGES = (3, 3, 32, 32)


def tiny(kind, num_classes=5, **options):
    """In train mode, as models are created."""
    name, own = TINY[kind]
    return create_model(name, num_classes, **own, **options)


def backbone(model):
    return find_classifier(model).backbone


@torch.no_grad()
def stir(model):
    """Moves every parameter away from where it was initialised, zeros too."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return model
