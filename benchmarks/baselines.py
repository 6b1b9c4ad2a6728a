"""What the ops are measured against: the same mathematics in the torch that people write.

Arguments are those of the op, already checked; ``mean`` and ``std`` are None or broadcast over adv.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Size = float | Tensor


def _pixels(clean: Tensor) -> Tensor:
    return clean / 255 if clean.dtype == torch.uint8 else clean


def _normalized(adv: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
    return adv if mean is None else (adv - mean) / std


def linf_step(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: Size,
    eps: Size,
    lo: float = 0.0,
    hi: float = 1.0,
    *,
    out: Tensor | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The plain expression. Returns the new adv, and the model's input where out says of what dtype."""
    clean = _pixels(clean)
    # The sign leaves half precision before it is scaled: a step size rounded to bf16 is another step.
    moved = adv + step_size * grad.sign().to(adv.dtype)
    moved = moved.clamp(clean - eps, clean + eps).clamp(lo, hi)
    return moved, None if out is None else _normalized(moved, mean, std).to(out.dtype)


def linf_step_(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: Size,
    eps: Size,
    lo: float = 0.0,
    hi: float = 1.0,
    *,
    out: Tensor | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> None:
    """The expression written into adv and out."""
    moved, model_input = linf_step(adv, grad, clean, step_size, eps, lo, hi, out=out, mean=mean, std=std)
    adv.copy_(moved)
    if out is not None:
        out.copy_(model_input)


def linf_project(adv: Tensor, clean: Tensor, eps: Size, lo: float = 0.0, hi: float = 1.0) -> Tensor:
    clean = _pixels(clean)
    return adv.clamp(clean - eps, clean + eps).clamp(lo, hi)


def linf_project_(adv: Tensor, clean: Tensor, eps: Size, lo: float = 0.0, hi: float = 1.0) -> None:
    adv.copy_(linf_project(adv, clean, eps, lo, hi))


def linf_start(clean: Tensor, eps: Size, seed: Tensor, lo: float = 0.0, hi: float = 1.0) -> Tensor:
    """From torch's generator: seed is not looked at."""
    clean = _pixels(clean)
    return (clean + eps * (2 * torch.rand_like(clean) - 1)).clamp(lo, hi)


def prepare(adv: Tensor, mean: Tensor | None, std: Tensor | None, *, dtype: torch.dtype) -> Tensor:
    return _normalized(adv, mean, std).to(dtype)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as torch.compile makes it for the shapes, dtypes and numbers it is called with."""
    torch.compiler.reset()  # forgets earlier cases, whose number is above the limit on recompilations
    return torch.compile(function, fullgraph=True, dynamic=False)


class PreallocatedLinfStep:
    """The expression without a temporary: every operation writes to adv, out or a buffer made once."""

    def __init__(self, adv: Tensor, grad: Tensor, clean: Tensor):
        """The tensors say of what shape, dtype and layout later arguments are."""
        self._sign = torch.empty_like(grad)
        self._low, self._high = torch.empty_like(adv), torch.empty_like(adv)
        self._pixels = torch.empty_like(adv) if clean.dtype == torch.uint8 else None

    def __call__(
        self,
        adv: Tensor,
        grad: Tensor,
        clean: Tensor,
        step_size: Size,
        eps: Size,
        lo: float = 0.0,
        hi: float = 1.0,
        *,
        out: Tensor | None = None,
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ) -> None:
        torch.sign(grad, out=self._sign)
        if isinstance(step_size, Tensor):
            adv.addcmul_(self._sign, step_size)
        else:
            adv.add_(self._sign, alpha=step_size)
        if self._pixels is not None:
            clean = torch.div(clean, 255, out=self._pixels)
        torch.sub(clean, eps, out=self._low)
        torch.add(clean, eps, out=self._high)
        adv.clamp_(self._low, self._high).clamp_(lo, hi)
        if out is None:
            return
        if mean is None:
            out.copy_(adv)
        else:
            out.copy_(torch.sub(adv, mean, out=self._low).div_(std))  # low has done its work
