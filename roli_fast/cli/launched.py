"""A subcommand that torchrun may start several times over."""

import contextlib
from collections.abc import Iterator

import torch

from ..training.processes import join, leave
from .options import chosen_device, users_mistakes


@contextlib.contextmanager
def own_device(name: str | None) -> Iterator[torch.device]:
    """The device of this process, by --device; under torchrun, inside, it is one of a group."""
    with users_mistakes():
        device = join(name) or chosen_device(name)
    try:
        yield device
    finally:
        leave()
