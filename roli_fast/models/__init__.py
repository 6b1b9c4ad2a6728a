"""Models whose input are pixels: backbones and heads, what of them trains, and their checkpoints."""

from .architecture import Architecture
from .checkpoints import Loaded, load_backbone, load_model, read_metadata, save_model
from .classifier import Classifier, find_classifier, separate, split
from .create import create_model
from .finetuning import METHODS, finetune
from .normalized import Normalized
from .resized import Resized
from .small_resnet import resnet10_tin, small_resnet

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
    "load_backbone",
    "load_model",
    "read_metadata",
    "resnet10_tin",
    "save_model",
    "separate",
    "small_resnet",
    "split",
]
