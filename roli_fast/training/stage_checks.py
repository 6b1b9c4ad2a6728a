"""What a stage of training refuses, before anything begins."""

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..attacks.inputs import to_state
from ..checks import refuse
from ..data import ImageSet, ImageStream, Splits
from ..distributed import world_size
from ..engine import own_output
from ..engine.modes import device_of, eval_mode
from ..files import check_name
from ..models.checkpoints import built_as
from .learner import make_optimizer
from .recipe import Recipe
from .records import OF_MODEL


def check_place(folder: str | Path | None, resume: bool) -> None:
    """Raises ValueError for resume without a folder, and for a folder that cannot be made."""
    if folder is None:
        if resume:
            refuse("resume", "True without a folder", "the folder of the run that goes on")
        return
    check_name("folder", folder)
    path = Path(folder)
    there = next((p for p in (path, *path.parents) if p.exists()), None)
    if there is not None and not there.is_dir():
        refuse("folder", f"{folder}, where {there} is a file", "a folder, or the name of a new one")


def check_stage(model: nn.Module, splits: Splits, recipe: Recipe, sync_bn: bool) -> None:
    """Arguments of :func:`train`. Raises ValueError for what does not fit together; changes nothing."""
    check_splits(splits, "train", "val")
    if recipe.batch_size % world_size():
        refuse("batch_size", recipe.batch_size, f"a multiple of {world_size()} processes")
    if not any(p.requires_grad for p in model.parameters()):
        refuse("model", "one without a parameter that requires a gradient", "one that trains")
    check_fits(model, next(iter(splits.val))[0], len(splits.classes))
    alone = min(recipe.batch_size, len(splits.train)) // world_size() == 1
    if alone and not (sync_bn and world_size() > 1) and _normalizes_batches(model):
        few = "" if recipe.batch_size == world_size() else f", with {len(splits.train)} training images"
        refuse(
            "batch_size", f"{recipe.batch_size}{few}", "2 or more images a process, over which to normalise"
        )
    make_optimizer(model, recipe)


def check_splits(splits: Splits, *used: str) -> None:
    """Raises TypeError for anything but Splits of this package's data sets, and ValueError for an empty one.
    used: the names of the splits that are needed."""
    if not isinstance(splits, Splits):
        accepted = "Splits(train, val, test), as roli_fast.data.load returns"
        refuse("splits", f"a {type(splits).__name__}", accepted, TypeError)
    for name in used:
        images = getattr(splits, name)
        if not isinstance(images, (ImageSet, ImageStream)):
            accepted = "a set of roli_fast.data, such as StoredImages(images, labels)"
            refuse(f"splits.{name}", f"a {type(images).__name__}", accepted, TypeError)
        if len(images) == 0:
            refuse(f"splits.{name}", "no images", "at least one")


def check_fits(model: nn.Module, image: Tensor, classes: int) -> None:
    """Raises ValueError where a model does not map such an image (C, H, W) to logits for so many classes."""
    if classes < 2:
        refuse("splits", f"{classes} class", "2 or more")
    image = image[None].to(device_of(model))
    try:
        shape = own_output(model, to_state(image)).shape[1:]
    except (RuntimeError, AssertionError) as error:  # as torch and timm say it
        got = f"one that cannot take images of {' x '.join(map(str, image.shape[1:]))} ({error})"
        refuse("model", got, "one that can, or resizes them")
    if shape != (classes,):
        got = f"outputs of shape (N, {', '.join(map(str, shape))})"
        refuse("model", got, f"(N, {classes}), a logit for each class")


def _normalizes_batches(model: nn.Module) -> bool:
    """Whether a BatchNorm of the model is in train mode when the model is."""
    with eval_mode(model):  # which puts all modes back
        return any(isinstance(m, _BatchNorm) and m.training for m in model.train().modules())


def bound_settings(model: nn.Module, recipe: Recipe, splits: Splits) -> dict[str, Any]:
    """The settings that have to be the same when a run is resumed. Raises as :func:`model_settings`."""
    return dataclasses.asdict(recipe) | model_settings(model) | {"data": splits.fingerprint()}


def model_settings(model: nn.Module) -> dict[str, Any]:
    """The settings that say how the model was built, such as LoRA's alpha, which the weights do not show.
    Raises ValueError or TypeError for a model that cannot be saved."""
    return {f"{OF_MODEL}{name}": value for name, value in built_as(model).items()}
