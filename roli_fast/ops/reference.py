"""The ops in plain torch: their definition, and the backend that runs wherever torch does.

Every function gives the same bits as the native kernels. Arguments have been checked.
"""

import math

import torch
from torch import Tensor

from .checks import state_dtype


def _number(value: float, dtype: torch.dtype) -> float:
    """The number as the state's dtype can hold it: infinite beyond its range."""
    value, largest = float(value), torch.finfo(dtype).max
    return math.inf if value > largest else -math.inf if value < -largest else value


def _per_sample(value: float | Tensor, like: Tensor, dtype: torch.dtype) -> float | Tensor:
    """A size, shaped to broadcast over a batch; NaN and negative values in a tensor count as 0."""
    if not isinstance(value, Tensor):
        return _number(value, dtype)
    value = torch.where(value > 0, value, torch.zeros_like(value))
    return value.reshape(-1, *[1] * (like.dim() - 1)) if value.dim() else value


def _image(clean: Tensor, dtype: torch.dtype) -> Tensor:
    """clean as the state's dtype; uint8 is v / 255, divided by a tensor, since torch multiplies by the
    reciprocal of a number on some devices."""
    image = clean.to(dtype)
    return (
        image / torch.full((), 255, dtype=dtype, device=clean.device) if clean.dtype == torch.uint8 else image
    )


def _clamp(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Clamps; x at a bound keeps its bits (-0.0 in [0, 1]), a NaN x becomes a bound."""
    x = torch.where(x >= low, x, low)
    return torch.where(x <= high, x, high)


def _linf_clamp(
    x: Tensor, clean: Tensor, eps: float | Tensor, lo: float, hi: float, *sources: Tensor
) -> Tensor:
    """x clamped to the ball, then to the box; NaN exactly where a source is."""
    x = _clamp(_clamp(x, clean - eps, clean + eps), _number(lo, x.dtype), _number(hi, x.dtype))
    for source in sources:
        x = torch.where(source.isnan(), source, x)
    return x


@torch.no_grad()
def linf_step_(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    lo: float = 0.0,
    hi: float = 1.0,
    active: Tensor | None = None,
    out: Tensor | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> None:
    step_size, eps = _per_sample(step_size, adv, adv.dtype), _per_sample(eps, adv, adv.dtype)
    clean = _image(clean, adv.dtype)
    # No product with the sign: an infinite step times a sign of 0 would be NaN.
    moved = torch.where(grad > 0, adv + step_size, torch.where(grad < 0, adv - step_size, adv))
    moved = _linf_clamp(moved, clean, eps, lo, hi, adv, clean)
    if active is not None:
        moved = torch.where(active.reshape(-1, *[1] * (adv.dim() - 1)), moved, adv)
    adv.copy_(moved)
    if out is not None:
        out.copy_(_normalize(moved, mean, std))


@torch.no_grad()
def linf_project_(adv: Tensor, clean: Tensor, eps: float | Tensor, lo: float = 0.0, hi: float = 1.0) -> None:
    clean = _image(clean, adv.dtype)
    adv.copy_(_linf_clamp(adv, clean, _per_sample(eps, adv, adv.dtype), lo, hi, adv, clean))


@torch.no_grad()
def linf_start(
    clean: Tensor,
    eps: float | Tensor,
    seed: Tensor,
    lo: float = 0.0,
    hi: float = 1.0,
    *,
    index: Tensor | None = None,
) -> Tensor:
    start = torch.empty_like(clean, dtype=state_dtype(clean))
    eps = _per_sample(eps, clean, start.dtype)
    clean = _image(clean, start.dtype)
    if index is None:
        index = torch.arange(len(clean), device=clean.device)
    draws = symmetric_uniform(seed, index, clean[0].numel() if len(clean) else 0).to(start.dtype)
    drawn = _clamp(
        clean + eps * draws.reshape(clean.shape), _number(lo, start.dtype), _number(hi, start.dtype)
    )
    start.copy_(torch.where(clean.isnan(), clean, drawn))
    return start


@torch.no_grad()
def prepare(
    adv: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    out = torch.empty_like(adv, dtype=dtype, memory_format=memory_format)
    return out.copy_(_normalize(adv, mean, std))


def _normalize(adv: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
    if mean is None or std is None:
        return adv
    shape = (1, -1, *[1] * (adv.dim() - 2))
    return (adv - mean.reshape(shape)) / std.reshape(shape)


_WORD = 0xFFFFFFFF


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of the product of two uint32, in int64 without overflow."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    middle = (low >> 16) + (high & 0xFFFF)
    return (high >> 16) + (middle >> 16), (low & 0xFFFF) | ((middle & 0xFFFF) << 16)


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al., SC 2011) on uint32 words held in int64 tensors."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        (high0, low0), (high1, low1) = _multiply(0xD2511F53, c0), _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def symmetric_uniform(seed: Tensor, index: Tensor, count: int) -> Tensor:
    """The draws in (-1, 1) of elements 0 .. count - 1 of the samples: (N, count), float32.

    seed: (2,) int64, a key and a stream; index: (N,) int64.
    """
    zero = torch.zeros_like(seed[0])
    key, stream = ((x & _WORD, (x >> 32) & _WORD) for x in seed.unbind())
    mixed = philox((*stream, zero, zero), key)
    element = torch.arange(count, device=seed.device).expand(len(index), count)
    block, lane = element // 4, element % 4
    sample = index[:, None].expand_as(block)
    counter = (block & _WORD, block >> 32, sample & _WORD, (sample >> 32) & _WORD)
    words = philox(counter, (mixed[0], mixed[1]))
    bits = torch.stack(words, dim=-1).gather(-1, lane[..., None])[..., 0]
    odd = (bits >> 8) * 2 + 1 - 2**24
    return odd.to(torch.float32) * 2.0**-24
