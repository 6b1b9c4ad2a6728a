"""Values that a run keeps for each of its samples, and the best point that it has seen of each."""

import dataclasses
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import ops

Some = TypeVar("Some", bound="Samples")


class Samples:
    """Base of dataclasses whose tensors have one row for each sample. A number, a tensor () or None stands
    for all samples."""

    def take(self: Some, stays: Tensor) -> Some:
        """The same for those samples only that stay. stays: (N,) bool, or (n,) int64, their places."""
        fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(self)  # type: ignore[arg-type]
        kept = {field.name: taken(getattr(self, field.name), stays) for field in fields}
        return type(self)(**kept)


def taken(value: Any, rows: Tensor) -> Any:
    """value[rows], in value's memory layout. A value that stands for all samples is returned as it is."""
    if isinstance(value, Samples):
        return value.take(rows)
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
        return value[rows].contiguous(memory_format=torch.channels_last)
    return value[rows]


def some_of(chosen: Tensor, count: int) -> Tensor:
    """(count,) int64, in ascending order: the places where chosen (N,) is True, filled up with others."""
    return chosen.byte().argsort(descending=True, stable=True)[:count].sort().values


def beats(fooled: Tensor, loss: Tensor, best_fooled: Tensor, best_loss: Tensor) -> Tensor:
    """(N,) bool, where the first is better than the best so far: it fools the model and the best does not, or
    they are alike in that and its loss is higher."""
    return (fooled & ~best_fooled) | ((fooled == best_fooled) & (loss > best_loss))


def keep(kept: Tensor, better: Tensor, new: Tensor) -> None:
    """Overwrites kept (N, ...) with new (N, ...) where better (N,) is True; other samples are not touched."""
    wins = better.to(new.dtype)
    ops.keep_best_(kept, torch.zeros_like(wins), new, wins)


def lowest(state: Tensor, samples: int) -> Tensor:
    """Losses (N,) that any other beats, in the state's dtype."""
    return torch.full((samples,), -torch.inf, dtype=state.dtype, device=state.device)


@dataclasses.dataclass
class Best(Samples):
    """The best point of each sample so far, as the attack's copy of the model sees it."""

    adv: Tensor
    fooled: Tensor
    loss: Tensor

    @classmethod
    def none_yet(cls, adv: Tensor) -> "Best":
        fooled = torch.zeros(len(adv), dtype=torch.bool, device=adv.device)
        return cls(adv.clone(), fooled, lowest(adv, len(adv)))

    def offer(self, adv: Tensor, fooled: Tensor, loss: Tensor) -> Tensor:
        """Keeps the points that are better than the best so far. Returns (N,) bool: which are."""
        better = beats(fooled, loss, self.fooled, self.loss)
        keep(self.adv, better, adv)
        self.fooled = torch.where(better, fooled, self.fooled)
        self.loss = torch.where(better, loss.to(self.loss), self.loss)
        return better
