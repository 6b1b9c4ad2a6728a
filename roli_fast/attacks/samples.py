"""What a run knows of each of its samples, and the best that it has seen of them."""

import dataclasses
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import ops

Some = TypeVar("Some", bound="Samples")


class Samples:
    """Of a dataclass whose tensors have one row per sample; numbers, () and None stand for all of them."""

    def take(self: Some, stays: Tensor) -> Some:
        """Those of the samples that stay: (N,) bool."""
        fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(self)  # type: ignore[arg-type]
        kept = {field.name: taken(getattr(self, field.name), stays) for field in fields}
        return type(self)(**kept)


def taken(value: Any, rows: Tensor) -> Any:
    """value[rows], laid out as images are; what is no value per sample stays as it is."""
    if isinstance(value, Samples):
        return value.take(rows)
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
        return value[rows].contiguous(memory_format=torch.channels_last)
    return value[rows]


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """values (N,), to be broadcast over like (N, ...)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def beats(fooled: Tensor, loss: Tensor, best_fooled: Tensor, best_loss: Tensor) -> Tensor:
    """Fooled first, then the higher loss: (N,) bool."""
    return (fooled & ~best_fooled) | ((fooled == best_fooled) & (loss > best_loss))


def keep(kept: Tensor, better: Tensor, new: Tensor) -> None:
    """Puts the samples (N, ...) that are better, (N,) bool, in place of the kept ones, and moves these
    alone."""
    wins = better.to(new.dtype)
    ops.keep_best_(kept, torch.zeros_like(wins), new, wins)


def lowest(state: Tensor, samples: int) -> Tensor:
    """A loss (N,) that any other beats, as exact as the state."""
    return torch.full((samples,), -torch.inf, dtype=state.dtype, device=state.device)


@dataclasses.dataclass
class Best(Samples):
    """The best iterate of each sample, by what the view says of it."""

    adv: Tensor
    fooled: Tensor
    loss: Tensor

    @classmethod
    def none_yet(cls, adv: Tensor) -> "Best":
        fooled = torch.zeros(len(adv), dtype=torch.bool, device=adv.device)
        return cls(adv.clone(), fooled, lowest(adv, len(adv)))

    def offer(self, adv: Tensor, fooled: Tensor, loss: Tensor) -> Tensor:
        """Keeps what is better, and says which samples that is of: (N,) bool."""
        better = beats(fooled, loss, self.fooled, self.loss)
        keep(self.adv, better, adv)
        self.fooled = torch.where(better, fooled, self.fooled)
        self.loss = torch.where(better, loss.to(self.loss), self.loss)
        return better
