"""What the ops are measured against: the same mathematics in the torch that people write.

Arguments are those of the op, already checked; ``mean`` and ``std`` are None or broadcast over adv. NAME is
the plain expression, NAME_ the same written into its first argument, for torch.compile. PEERS has the
expressions of torchattacks 3.5.1, foolbox 3.3.4, ART 1.20.1 and APGD's authors (autoattack), in our own
words: the same operations in the same order, without what stands around them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..shared import QUICK

Size = float | Tensor


def _pixels(clean: Tensor) -> Tensor:
    return clean / 255 if clean.dtype == torch.uint8 else clean


def _normalized(adv: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
    return adv if mean is None else (adv - mean) / std


def _input(adv: Tensor, out: Tensor | None, mean: Tensor | None, std: Tensor | None) -> Tensor | None:
    return None if out is None else _normalized(adv, mean, std).to(out.dtype)


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
    return moved, _input(moved, out, mean, std)


def linf_project(adv: Tensor, clean: Tensor, eps: Size, lo: float = 0.0, hi: float = 1.0) -> Tensor:
    clean = _pixels(clean)
    return adv.clamp(clean - eps, clean + eps).clamp(lo, hi)


def linf_start(clean: Tensor, eps: Size, seed: Tensor, lo: float = 0.0, hi: float = 1.0) -> Tensor:
    """From torch's generator: seed is not looked at."""
    clean = _pixels(clean)
    return (clean + eps * (2 * torch.rand_like(clean) - 1)).clamp(lo, hi)


def prepare(adv: Tensor, mean: Tensor | None, std: Tensor | None, *, dtype: torch.dtype) -> Tensor:
    return _normalized(adv, mean, std).to(dtype)


def _samples(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


def _norms(x: Tensor, power: int) -> Tensor:
    return _samples(torch.linalg.vector_norm(x.flatten(1), power, dim=1), x)


def l2_project(adv: Tensor, clean: Tensor, eps: Size, lo: float = 0.0, hi: float = 1.0) -> Tensor:
    clean = _pixels(clean)
    d = adv - clean
    return (clean + d * (eps / _norms(d, 2)).clamp(max=1)).clamp(lo, hi)


def l2_step(
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
    """grad is that at out, so that it is divided by std."""
    grad = grad.to(adv.dtype) if std is None else grad / std
    moved = l2_project(adv + step_size * grad / _norms(grad, 2).clamp(min=1e-12), clean, eps, lo, hi)
    return moved, _input(moved, out, mean, std)


def linf_apgd_step(
    adv: Tensor,
    previous: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: Size,
    eps: Size,
    lo: float = 0.0,
    hi: float = 1.0,
) -> Tensor:
    z, _ = linf_step(adv, grad, clean, step_size, eps, lo, hi)
    return linf_project(adv + 0.75 * (z - adv) + 0.25 * (adv - previous), clean, eps, lo, hi)


def l2_apgd_step(
    adv: Tensor,
    previous: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: Size,
    eps: Size,
    lo: float = 0.0,
    hi: float = 1.0,
) -> Tensor:
    z, _ = l2_step(adv, grad, clean, step_size, eps, lo, hi)
    return l2_project(adv + 0.75 * (z - adv) + 0.25 * (adv - previous), clean, eps, lo, hi)


def l1_project(adv: Tensor, clean: Tensor, eps: Size, lo: float = 0.0, hi: float = 1.0) -> Tensor:
    """By sorting the kinks of the piecewise linear sum."""
    clean = _pixels(clean)
    d = adv - clean
    v = d.abs().flatten(1)
    u = torch.where(d > 0, hi - clean, clean - lo).flatten(1)
    kinks, order = torch.cat([(v - u).clamp(min=0), v], 1).sort(1)
    # Left of all kinks each element of the sum is at its room; a v - u begins a fall, a v ends it.
    falls = torch.cat([torch.ones_like(v), -torch.ones_like(v)], 1).gather(1, order).cumsum(1)
    total = torch.minimum(v, u).sum(1, keepdim=True)
    drops = (falls[:, :-1] * kinks.diff(dim=1)).cumsum(1)
    totals = torch.cat([total, total - drops], 1)
    at = (totals > eps).sum(1, keepdim=True).clamp(min=1) - 1
    threshold = kinks.gather(1, at) + (totals.gather(1, at) - eps) / falls.gather(1, at).clamp(min=1)
    threshold = torch.where(total > eps, threshold, 0.0)
    kept = torch.minimum((v - threshold).clamp(min=0), u).view_as(d)
    return (clean + kept * d.sign()).clamp(lo, hi)


def l1_step(
    adv: Tensor, grad: Tensor, clean: Tensor, step_size: Size, eps: Size, lo: float = 0.0, hi: float = 1.0
) -> Tensor:
    magnitude = grad.abs().flatten(1)
    smallest = magnitude.topk(round(0.05 * magnitude.shape[1]), dim=1)[0][:, -1]
    signs = grad.sign() * (grad.abs() >= _samples(smallest, grad))
    count = _samples(signs.abs().flatten(1).sum(1), grad).clamp(min=1)
    return l1_project(adv + step_size * signs / count, clean, eps, lo, hi)


def l2_start(clean: Tensor, eps: Size, seed: Tensor, lo: float = 0.0, hi: float = 1.0) -> Tensor:
    """From torch's generator: seed is not looked at."""
    clean = _pixels(clean)
    z = torch.randn_like(clean)
    radius = torch.rand(len(clean), device=clean.device) ** (1 / clean[0].numel())
    return (clean + eps * _samples(radius, clean) * z / _norms(z, 2)).clamp(lo, hi)


def l1_start(clean: Tensor, eps: Size, seed: Tensor, lo: float = 0.0, hi: float = 1.0) -> Tensor:
    """From torch's generator: seed is not looked at."""
    clean = _pixels(clean)
    z = torch.empty_like(clean).exponential_() * torch.empty_like(clean).bernoulli_().mul(2).sub(1)
    radius = torch.rand(len(clean), device=clean.device) ** (1 / clean[0].numel())
    return (clean + eps * _samples(radius, clean) * z / _norms(z, 1)).clamp(lo, hi)


def momentum(momentum: Tensor, grad: Tensor, decay: float = 1.0) -> Tensor:
    return decay * momentum + grad / _samples(grad.abs().flatten(1).mean(1), grad)


def keep_best(best: Tensor, best_value: Tensor, adv: Tensor, value: Tensor) -> Tensor:
    return torch.where(_samples(value > best_value, best), adv, best)


def _written(function: Callable[..., Tensor]) -> Callable[..., None]:
    def write(first: Tensor, *arguments: Any) -> None:
        first.copy_(function(first, *arguments))

    return write


def _written_with_input(
    function: Callable[..., tuple[Tensor, Tensor | None]],
) -> Callable[..., None]:
    def write(adv: Tensor, *arguments: Any, out: Tensor | None = None, **by: Any) -> None:
        moved, model_input = function(adv, *arguments, out=out, **by)
        adv.copy_(moved)
        if out is not None:
            out.copy_(model_input)

    return write


def _advanced(function: Callable[..., Tensor]) -> Callable[..., None]:
    def write(adv: Tensor, previous: Tensor, *arguments: Any) -> None:
        moved = function(adv, previous, *arguments)
        previous.copy_(adv)
        adv.copy_(moved)

    return write


def keep_best_(best: Tensor, best_value: Tensor, adv: Tensor, value: Tensor) -> None:
    best.copy_(keep_best(best, best_value, adv, value))
    best_value.copy_(torch.maximum(best_value, value))


linf_step_, l2_step_ = map(_written_with_input, (linf_step, l2_step))
linf_project_, l2_project_, l1_project_ = map(_written, (linf_project, l2_project, l1_project))
linf_apgd_step_, l2_apgd_step_ = map(_advanced, (linf_apgd_step, l2_apgd_step))
l1_step_, momentum_ = map(_written, (l1_step, momentum))


# The peers' own


def torchattacks_linf_step(adv: Tensor, grad: Tensor, clean: Tensor, alpha: Size, eps: Size) -> Tensor:
    adv = adv.detach() + alpha * grad.sign()
    delta = torch.clamp(adv - clean, min=-eps, max=eps)
    return torch.clamp(clean + delta, min=0, max=1).detach()


def foolbox_linf_step(adv: Tensor, grad: Tensor, clean: Tensor, step_size: Size, eps: Size) -> Tensor:
    x = adv + step_size * grad.sign()
    x = clean + torch.clamp(x - clean, -eps, eps)
    return torch.clamp(x, 0, 1)


def _art_linf(adv: Tensor, grad: Tensor, clean: Tensor, step_size: Size, eps: Size) -> Tensor:
    grad = torch.where(grad.isnan(), 0.0, grad)
    x = adv + step_size * grad.sign()
    x = torch.max(torch.min(x, torch.tensor(1.0, device=x.device)), torch.tensor(0.0, device=x.device))
    values = (x - clean).reshape(len(x), -1)
    values = values.sign() * torch.min(values.abs(), torch.tensor([eps], device=x.device))
    return values.reshape(x.shape) + clean


def _torchattacks_l2(adv: Tensor, grad: Tensor, clean: Tensor, alpha: Size, eps: Size) -> Tensor:
    norms = torch.norm(grad.view(len(grad), -1), p=2, dim=1) + 1e-10
    grad = grad / norms.view(-1, 1, 1, 1)
    adv = adv.detach() + alpha * grad
    delta = adv - clean
    norms = torch.norm(delta.view(len(delta), -1), p=2, dim=1)
    factor = torch.min(eps / norms, torch.ones_like(norms))
    delta = delta * factor.view(-1, 1, 1, 1)
    return torch.clamp(clean + delta, min=0, max=1).detach()


def _foolbox_l2(adv: Tensor, grad: Tensor, clean: Tensor, step_size: Size, eps: Size) -> Tensor:
    norms = torch.norm(grad.flatten(1), p=2, dim=-1).clamp(min=1e-12)
    x = adv + step_size * (grad * (1 / norms).view(-1, 1, 1, 1))
    d = x - clean
    norms = torch.norm(d.flatten(1), p=2, dim=-1).clamp(min=1e-12)
    x = clean + d * torch.clamp(eps / norms, max=1).view(-1, 1, 1, 1)
    return torch.clamp(x, 0, 1)


def _art_l2(adv: Tensor, grad: Tensor, clean: Tensor, step_size: Size, eps: Size) -> Tensor:
    grad = torch.where(grad.isnan(), 0.0, grad)
    grad = grad / (torch.sqrt(torch.sum(grad * grad, (1, 2, 3), keepdim=True)) + 1e-6)
    x = adv + step_size * grad
    x = torch.max(torch.min(x, torch.tensor(1.0, device=x.device)), torch.tensor(0.0, device=x.device))
    values = (x - clean).reshape(len(x), -1)
    norms = torch.norm(values, p=2, dim=1) + 1e-6
    values = values * torch.min(torch.ones_like(norms), eps / norms).unsqueeze(-1)
    return values.reshape(x.shape) + clean


def _autoattack_linf(
    adv: Tensor, previous: Tensor, grad: Tensor, clean: Tensor, step_size: Size, eps: Size
) -> Tensor:
    inertia = adv - previous
    z = adv + step_size * grad.sign()
    z = torch.clamp(torch.min(torch.max(z, clean - eps), clean + eps), 0.0, 1.0)
    z = torch.min(torch.max(adv + (z - adv) * 0.75 + inertia * 0.25, clean - eps), clean + eps)
    return torch.clamp(z, 0.0, 1.0)


def _autoattack_norm(x: Tensor) -> Tensor:
    return (x**2).view(len(x), -1).sum(-1).sqrt().view(-1, 1, 1, 1)


def _autoattack_l2(
    adv: Tensor, previous: Tensor, grad: Tensor, clean: Tensor, step_size: Size, eps: Size
) -> Tensor:
    def project(x: Tensor) -> Tensor:
        d = x - clean
        shortened = torch.min(eps * torch.ones_like(clean), _autoattack_norm(d))
        return torch.clamp(clean + d / (_autoattack_norm(d) + 1e-12) * shortened, 0.0, 1.0)

    inertia = adv - previous
    z = project(adv + step_size * grad / (_autoattack_norm(grad) + 1e-12))
    return project(adv + (z - adv) * 0.75 + inertia * 0.25)


def _autoattack_l1(adv: Tensor, grad: Tensor, clean: Tensor, step_size: Size, eps: Size) -> Tensor:
    magnitude = grad.abs().view(len(grad), -1).sort(-1)[0]
    smallest = magnitude[:, int(0.95 * magnitude.shape[1])].view(-1, 1, 1, 1)
    sparse = grad * (grad.abs() >= smallest).to(grad.dtype)
    signs = sparse.sign()
    count = signs.abs().view(len(grad), -1).sum(-1).view(-1, 1, 1, 1) + 1e-10
    return l1_project(adv + step_size * signs / count, clean, eps)  # theirs sorts the same kinks


def _torchattacks_momentum(momentum: Tensor, grad: Tensor, decay: float) -> Tensor:
    grad = grad / torch.mean(torch.abs(grad), dim=(1, 2, 3), keepdim=True)
    return grad + momentum * decay


# By op: a peer's function of the op's tensors and sizes, in the box [0, 1].
PEERS: dict[str, dict[str, Callable[..., Tensor]]] = {
    "linf_step_": {"torchattacks": torchattacks_linf_step, "foolbox": foolbox_linf_step, "art": _art_linf},
    "l2_step_": {"torchattacks": _torchattacks_l2, "foolbox": _foolbox_l2, "art": _art_l2},
    "linf_apgd_step_": {"autoattack": _autoattack_linf},
    "l2_apgd_step_": {"autoattack": _autoattack_l2},
    "l1_step_": {"autoattack": _autoattack_l1},
    "momentum_": {"torchattacks": _torchattacks_momentum},
}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as torch.compile makes it for the shapes, dtypes and numbers it is called with."""
    torch.compiler.reset()  # forgets earlier cases, whose number is above the limit on recompilations
    backend = "aot_eager" if QUICK else "inductor"  # which takes seconds for each case
    compile_ = partial(torch.compile, fullgraph=True, dynamic=False, backend=backend)
    if function is l2_apgd_step_:  # that torch 2.15's compiler fails on for CPUs: the copies stand outside
        return _advanced(compile_(l2_apgd_step))
    return compile_(function)


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
