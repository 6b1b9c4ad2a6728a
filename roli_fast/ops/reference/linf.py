"""The Linf family."""

import torch
from torch import Tensor

from ..checks import state_dtype
from . import draws
from .shared import advance, clamp, clamp_to_box, nan_where, pixels, size, with_inertia, write, write_input


def _linf_clamp(x: Tensor, clean: Tensor, eps: Tensor, lo: float, hi: float, *sources: Tensor) -> Tensor:
    """x clamped to the ball, then to the box. The result is NaN exactly where one of the sources is."""
    return nan_where(clamp_to_box(clamp(x, clean - eps, clean + eps), lo, hi), *sources)


def _moved(adv: Tensor, grad: Tensor, step_size: Tensor) -> Tensor:
    """adv after a step. The step is not multiplied by the sign, since an infinite step times a sign of 0
    would be NaN."""
    return torch.where(grad > 0, adv + step_size, torch.where(grad < 0, adv - step_size, adv))


@torch.no_grad()
def linf_step_(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    lo: float,
    hi: float,
    active: Tensor | None,
    out: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
) -> None:
    step_size, eps = size(step_size, adv, adv.dtype), size(eps, adv, adv.dtype)
    clean = pixels(clean, adv.dtype)
    moved = _linf_clamp(_moved(adv, grad, step_size), clean, eps, lo, hi, adv, clean)
    write_input(out, write(adv, moved, active), mean, std)


@torch.no_grad()
def linf_apgd_step_(
    adv: Tensor,
    previous: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    lo: float,
    hi: float,
    momentum: float | Tensor,
    active: Tensor | None,
    out: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
) -> None:
    step_size, eps = size(step_size, adv, adv.dtype), size(eps, adv, adv.dtype)
    clean = pixels(clean, adv.dtype)
    z = _linf_clamp(_moved(adv, grad, step_size), clean, eps, lo, hi)
    y = with_inertia(z, adv, previous, clean, size(momentum, adv, adv.dtype))
    x = _linf_clamp(y, clean, eps, lo, hi, adv, clean)
    write_input(out, advance(adv, previous, x, active), mean, std)


@torch.no_grad()
def linf_project_(adv: Tensor, clean: Tensor, eps: float | Tensor, lo: float, hi: float) -> None:
    clean = pixels(clean, adv.dtype)
    adv.copy_(_linf_clamp(adv, clean, size(eps, adv, adv.dtype), lo, hi, adv, clean))


@torch.no_grad()
def linf_start(
    clean: Tensor,
    eps: float | Tensor,
    seed: Tensor,
    lo: float,
    hi: float,
    index: Tensor | None,
) -> Tensor:
    start = torch.empty_like(clean, dtype=state_dtype(clean))
    eps = size(eps, clean, start.dtype)
    clean = pixels(clean, start.dtype)
    u = draws.symmetric_uniform(seed, index, clean).to(start.dtype)
    x = clamp_to_box(clean + eps * u, lo, hi)
    start.copy_(nan_where(x, clean))
    return start
