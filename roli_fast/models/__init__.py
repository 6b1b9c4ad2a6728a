"""Models that take pixels: backbones with linear heads, finetuning methods, and checkpoints."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .architecture import Architecture
    from .checkpoints import Loaded, load_backbone, load_model, read_metadata, save_model
    from .classifier import Classifier, find_classifier, separate, split
    from .create import create_model
    from .finetuning import METHODS, finetune
    from .hybrid import hybrid_vit
    from .normalized import Normalized
    from .resized import Resized
    from .resnets import resnet10_tin, small_resnet

# Imported at first use: attacks need only Normalized, and importing timm takes seconds.
_FROM = {
    "METHODS": "finetuning",
    "Architecture": "architecture",
    "Classifier": "classifier",
    "Loaded": "checkpoints",
    "Normalized": "normalized",
    "Resized": "resized",
    "create_model": "create",
    "find_classifier": "classifier",
    "finetune": "finetuning",
    "hybrid_vit": "hybrid",
    "load_backbone": "checkpoints",
    "load_model": "checkpoints",
    "read_metadata": "checkpoints",
    "resnet10_tin": "resnets",
    "save_model": "checkpoints",
    "separate": "classifier",
    "small_resnet": "resnets",
    "split": "classifier",
}

__all__ = [
    "METHODS",
    "Architecture",
    "Classifier",
    "Loaded",
    "Normalized",
    "Resized",
    "create_model",
    "find_classifier",
    "finetune",
    "hybrid_vit",
    "load_backbone",
    "load_model",
    "read_metadata",
    "resnet10_tin",
    "save_model",
    "separate",
    "small_resnet",
    "split",
]


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FROM[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
