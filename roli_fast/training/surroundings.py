"""What all stages of training begin with: a folder, randomness, batches, a precision."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data import ImageSet, ImageStream, Loader
from ..data.batch import generator
from ..distributed import world_size
from ..engine.modes import device_of
from .attack import chosen_precision
from .processes import agree
from .recipe import Recipe
from .records import Records
from .stage_checks import check_resume


@contextlib.contextmanager
def surroundings(
    model: nn.Module, recipe: Recipe, folder: str | Path | None, resume: bool
) -> Iterator[Records | None]:
    """Of a stage: inside, what is drawn comes from the recipe's seed, and no other run has the folder. What
    fails before anything is saved leaves the folder to the next."""
    check_resume(folder, resume)
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
    """What is drawn inside comes from the seed, and leaves the caller's random state alone."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def settled_precision(model: nn.Module, loader: Loader, recipe: Recipe, records: Records | None) -> str:
    """Of attacks: what the recipe or an interrupted run says, else what the first batch shows to be fastest.
    The same in all processes, and noted at once, so that a run goes on as it began."""
    noted = None if records is None else agree(records.precision)
    if noted is not None:
        return noted
    images, labels, _ = next(loader.epoch(0))
    batch = to_device(images, labels, device_of(model), recipe.channels_last)
    precision = agree(chosen_precision(model, *batch, recipe))
    if records is not None:
        records.note_precision(precision)
    return precision


def for_evaluation(images: ImageSet | ImageStream, recipe: Recipe, workers: int | None) -> Loader:
    """In batches as large as a process trains on; all processes get all, which evaluate() shares out."""
    batch_size = max(1, recipe.batch_size // world_size())
    return Loader(images, batch_size, workers=workers, rank=0, world_size=1)


def to_device(
    images: Tensor, labels: Tensor, device: torch.device, channels_last: bool
) -> tuple[Tensor, Tensor]:
    """To the device, without waiting for it."""
    layout = torch.channels_last if channels_last and images.dim() == 4 else torch.preserve_format
    images = images.to(device, non_blocking=True, memory_format=layout)
    return images, labels.to(device, non_blocking=True)


def derived_seed(*parts: int) -> int:
    """A seed that an int64 holds; neighbouring parts have nothing in common."""
    return generator(*parts).initial_seed() >> 1
