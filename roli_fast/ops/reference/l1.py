"""The L1 family."""

import math

import torch
from torch import Tensor

from . import draws
from .l2 import scaled_start
from .shared import (
    in_box,
    number,
    over_batch,
    per_channel,
    pixels,
    size,
    sums,
    write,
    write_input,
)


def _steepest(grad: Tensor, std: Tensor | None, sparsity: Tensor, state: torch.dtype) -> Tensor:
    """The signs of the elements that move, and 0 elsewhere. As many elements move as sparsity says, those
    largest in magnitude, and with them all that equal the last of these."""
    wide = torch.float64 if torch.float64 in (grad.dtype, state) else torch.float32
    grad = torch.where(grad.isnan(), torch.zeros_like(grad), grad).to(wide)
    key = grad.abs() if std is None else grad.abs() / per_channel(std, grad).to(wide)
    rows = key.reshape(len(key), math.prod(key.shape[1:]))
    n = rows.shape[1]
    if n == 0:
        return grad.to(state)
    count = (sparsity.reshape(-1).double().expand(len(key)) * n + 0.5).floor().clamp(1, n).long()
    last = rows.sort(1, descending=True)[0].gather(1, count[:, None] - 1)[:, 0]
    return torch.where(key >= over_batch(last, key), grad.sign(), 0.0).to(state)


def _threshold(v: Tensor, u: Tensor, eps: Tensor) -> Tensor:
    """Per sample, the t >= 0 at which sum(min(max(v - t, 0), u)) is eps, or 0 if the sum is below eps at t =
    0.

    v: (N, n) distances, float64. u: (N, n) room within the box, float64. eps: (N,).

    The result is exact, because the sum is linear between neighbours of the sorted v and v - u.
    """

    def total(t: Tensor) -> Tensor:
        return torch.minimum((v - t[:, None]).clamp(min=0), u).sum(1)

    zero = v.new_zeros(len(v), 1)
    kinks = torch.cat([zero, v, (v - u).clamp(min=0)], 1).sort(1)[0]
    low, high = (torch.full((len(v),), x, device=v.device) for x in (0, kinks.shape[1] - 1))
    steps = 0  # counted by the shape: nothing synchronises, and a graph has no loop over values
    while 1 << steps < kinks.shape[1]:
        steps += 1
    for _ in range(steps):  # total(kinks[low]) > eps >= total(kinks[high]), or low is 0
        middle = (low + high) // 2
        above = total(kinks.gather(1, middle[:, None])[:, 0]) > eps
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    left, right = (kinks.gather(1, x[:, None])[:, 0] for x in (low, high))
    f_left, f_right = total(left), total(right)
    falls = f_left > f_right
    share = torch.where(falls, (f_left - eps) / torch.where(falls, f_left - f_right, 1.0), 0.0)
    t = left + share * (right - left)
    # Of points very far away float64 has no t so near: the next one is in the ball, as the kink is.
    for larger in (torch.nextafter(t, right), right):
        t = torch.where(total(t) > eps * (1 + 2.0**-40), larger, t)
    return torch.where(total(zero[:, 0]) > eps, t, 0.0)


def _largest(state: torch.dtype) -> float:
    """The largest distance that may occur, so that sums of distances stay finite."""
    return torch.finfo(state).max if state == torch.float32 else 2.0**1000


def _projected(x: Tensor, adv: Tensor, clean: Tensor, eps: Tensor, lo: float, hi: float) -> Tensor:
    """x, moved to the nearest point of both the L1 ball around clean and the box (Croce and Hein, Mind the
    box: l1-APGD for sparse adversarial attacks on image classifiers, ICML 2021, proposition 2.1)."""
    state = x.dtype
    d = x - clean
    v = torch.where(d.isnan(), torch.zeros_like(d), d.abs()).clamp(max=_largest(state))
    u = torch.where(d > 0, number(hi, state) - clean, clean - number(lo, state))
    u = torch.where(u > 0, u, torch.zeros_like(u))
    shape = (len(x), math.prod(x.shape[1:]))
    radius = eps.double().reshape(-1).expand(len(x))
    t = _threshold(v.double().reshape(shape), u.double().reshape(shape), radius)
    t = over_batch(t, x)
    delta = torch.minimum((v.double() - t).clamp(min=0), u.double()).to(state)
    moved = torch.where(d > 0, clean + delta, clean - delta)
    x = torch.where(t > 0, moved, x)
    return in_box(x, adv, clean, lo, hi)


@torch.no_grad()
def l1_step_(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    lo: float,
    hi: float,
    sparsity: float | Tensor,
    active: Tensor | None,
    out: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
) -> None:
    state = adv.dtype
    step_size, eps = size(step_size, adv, state), size(eps, adv, state)
    clean = pixels(clean, state)
    signs = _steepest(grad, std, size(sparsity, adv, state), state)
    count = sums(signs.abs())
    length = step_size.double() / torch.where(count > 0, count, 1.0)
    # Beyond `far`, nothing but what moves is left in the ball: an infinite step is that far.
    d = (adv - clean).nan_to_num(nan=0.0)
    farthest = d.abs().clamp(max=_largest(state)).double().reshape(len(adv), math.prod(adv.shape[1:]))
    farthest = farthest.amax(1) if farthest.shape[1] else farthest.sum(1)
    far = 2 * (eps.double() + over_batch(farthest, adv))
    length = torch.where(length < far, length, far).to(state)
    moved = torch.where(signs > 0, adv + length, torch.where(signs < 0, adv - length, adv))
    projected = _projected(moved, adv, clean, eps, lo, hi)
    write_input(out, write(adv, projected, active), mean, std)


@torch.no_grad()
def l1_project_(adv: Tensor, clean: Tensor, eps: float | Tensor, lo: float, hi: float) -> None:
    clean = pixels(clean, adv.dtype)
    adv.copy_(_projected(adv, adv, clean, size(eps, adv, adv.dtype), lo, hi))


@torch.no_grad()
def l1_start(
    clean: Tensor,
    eps: float | Tensor,
    seed: Tensor,
    lo: float,
    hi: float,
    index: Tensor | None,
) -> Tensor:
    z = draws.laplace(seed, index, clean)
    return scaled_start(clean, eps, z, sums(z.double().abs()), seed, index, lo, hi)
