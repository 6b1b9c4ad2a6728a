"""What every stage of training needs around it: a folder, randomness, batches, a precision."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data import ImageSet, ImageStream, Loader
from ..data.batch import generator
from ..distributed import world_size
from ..engine.modes import device_of
from .attack import fastest_precision
from .processes import agree
from .recipe import AUTO, Recipe
from .records import Records
from .stage_checks import check_place


@contextlib.contextmanager
def surroundings(
    model: nn.Module, recipe: Recipe, folder: str | Path | None, resume: bool
) -> Iterator[Records | None]:
    """Around a stage: random numbers come from the recipe's seed, and no other run can use the folder. Yields
    the folder's records, or None without a folder. If the stage fails before it has saved anything, the
    folder is free again."""
    check_place(folder, resume)
    with own_randomness(recipe.seed, device_of(model)):
        records = None if folder is None else Records(Path(folder), model)
        with contextlib.closing(records) if records else contextlib.nullcontext():
            try:
                yield records
            except Exception:
                if records is not None:
                    records.forget_what_never_began()
                raise


@contextlib.contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's random numbers come from the seed; afterwards the caller's random state is restored."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def settled_precision(model: nn.Module, loader: Loader, recipe: Recipe, records: Records | None) -> str:
    """The precision of the attacks: the recipe's, or the fastest for the first batch. What is measured is the
    same in all processes, and recorded at once for when the run is resumed."""
    if recipe.precision != AUTO:
        return recipe.precision
    if recipe.attack_mode == "train" or recipe.attack == "none":
        return "fp32"
    noted = None if records is None else agree(records.precision)
    if noted is not None:
        return noted
    images, labels, _ = next(loader.epoch(0))
    batch = to_device(images, labels, device_of(model), recipe.channels_last)
    precision = agree(fastest_precision(model, *batch, recipe))
    if records is not None:
        records.note_precision(precision)
    return precision


def for_evaluation(images: ImageSet | ImageStream, recipe: Recipe, workers: int | None) -> Loader:
    """A loader with the batch size that a process trains with. Every process gets all batches, and evaluate()
    shares them out."""
    batch_size = max(1, recipe.batch_size // world_size())
    return Loader(images, batch_size, workers=workers, rank=0, world_size=1)


def trains_in_channels_last(model: nn.Module) -> bool:
    """Whether torch's gradients of this model's weights can be relied on in channels-last.

    On CPUs, oneDNN (3.12; its issue 6035) overruns its memory in the weights' gradient of strided 1x1
    convolutions that read fewer channels than it takes at once, 8 or 16: it returns wrong numbers, or the
    process dies.
    """
    return device_of(model).type != "cpu" or not any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups < 16
        and layer.weight.requires_grad
        for layer in model.modules()
    )


def to_device(
    images: Tensor, labels: Tensor, device: torch.device, channels_last: bool
) -> tuple[Tensor, Tensor]:
    """Moves a batch to the device, without waiting for it, and lays its images out, whatever layout a data
    set has them in: a network's convolutions follow them."""
    layout = torch.channels_last if channels_last and images.dim() == 4 else torch.contiguous_format
    images = images.to(device, non_blocking=True, memory_format=layout)
    return images, labels.to(device, non_blocking=True)


def derived_seed(*parts: int) -> int:
    """A seed, not negative, that mixes the parts: similar parts give unrelated seeds."""
    return generator(*parts).initial_seed() >> 1
