"""Subcommands that torchrun may start in several processes."""

import contextlib
from collections.abc import Iterator

import torch

from ..training.processes import join, leave
from .options import chosen_device, users_mistakes


@contextlib.contextmanager
def own_device(name: str | None) -> Iterator[torch.device]:
    """The device of this process, by --device. Under torchrun, the process is in a process group inside."""
    with users_mistakes():
        device = join(name) or chosen_device(name)
    try:
        yield device
    finally:
        leave()
