"""What the families share: numbers, images, boxes, and sums over a sample."""

import math

import torch
from torch import Tensor


def number(value: float, dtype: torch.dtype) -> float:
    """The number as the state's dtype can hold it: infinite if it is beyond the dtype's range."""
    value, largest = float(value), torch.finfo(dtype).max
    return math.inf if value > largest else -math.inf if value < -largest else value


def over_batch(values: Tensor, like: Tensor) -> Tensor:
    """(N,) values, or one of shape (), shaped to broadcast over a batch."""
    return values.reshape(-1, *[1] * (like.dim() - 1)) if values.dim() else values


def size(value: float | Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A size in the state's dtype, broadcast over a batch; NaN and negative values in a tensor count as 0."""
    if not isinstance(value, Tensor):
        return torch.full((), number(value, dtype), dtype=dtype, device=like.device)
    return over_batch(torch.where(value > 0, value, torch.zeros_like(value)), like)


def per_channel(value: Tensor, like: Tensor) -> Tensor:
    """(C,) values, shaped to broadcast over a batch."""
    return value.reshape(1, -1, *[1] * (like.dim() - 2))


def pixels(clean: Tensor, dtype: torch.dtype) -> Tensor:
    """clean in the state's dtype. uint8 values are divided by 255, which is a tensor here, since on some
    devices torch replaces division by a number with multiplication by its reciprocal."""
    image = clean.to(dtype)
    if clean.dtype != torch.uint8:
        return image
    return image / torch.full((), 255, dtype=dtype, device=clean.device)


def clamp(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Clamps x. If x is at a bound it keeps its bits (-0.0 in [0, 1]); if it is NaN, it becomes a bound."""
    x = torch.where(x >= low, x, low)
    return torch.where(x <= high, x, high)


def clamp_to_box(x: Tensor, lo: float, hi: float) -> Tensor:
    return clamp(x, number(lo, x.dtype), number(hi, x.dtype))


def nan_where(x: Tensor, *sources: Tensor) -> Tensor:
    """x, and NaN exactly where a source is."""
    for source in sources:
        x = torch.where(source.isnan(), source, x)
    return x


def in_box(x: Tensor, adv: Tensor, clean: Tensor, lo: float, hi: float) -> Tensor:
    """x clamped to the box, or clean where x is NaN. The result is NaN exactly where adv or clean is."""
    x = torch.where(x.isnan(), clean, x)
    return nan_where(clamp_to_box(x, lo, hi), adv, clean)


def with_inertia(z: Tensor, adv: Tensor, previous: Tensor, clean: Tensor, momentum: Tensor) -> Tensor:
    """APGD's next point before its projection. z: the point that the step alone would reach."""
    y = (adv + (z - adv) * momentum) + (adv - previous) * (1 - momentum)
    return torch.where(y.isnan(), clean, y)


def write(adv: Tensor, moved: Tensor, active: Tensor | None) -> Tensor:
    """Writes the active samples of moved to adv. Returns all of adv after that."""
    if active is not None:
        moved = torch.where(over_batch(active, adv), moved, adv)
    adv.copy_(moved)
    return moved


def advance(adv: Tensor, previous: Tensor, moved: Tensor, active: Tensor | None) -> Tensor:
    """Does what :func:`write` does, and copies to previous, for active samples, what adv was before."""
    before = adv.clone()
    now = write(adv, moved, active)
    write(previous, before, active)
    return now


def write_input(out: Tensor | None, adv: Tensor, mean: Tensor | None, std: Tensor | None) -> None:
    """Writes the next model input, for all samples."""
    if out is not None:
        out.copy_(normalized(adv, mean, std))


def normalized(adv: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
    if mean is None or std is None:
        return adv
    return (adv - per_channel(mean, adv)) / per_channel(std, adv)


def sums(x: Tensor) -> Tensor:
    """Sums over each sample, in float64, shaped to broadcast over the batch."""
    rows = x.double().reshape(len(x), math.prod(x.shape[1:]))
    return over_batch(rows.sum(1), x)
