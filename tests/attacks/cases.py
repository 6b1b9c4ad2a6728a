"""All attacks, and what they are by their papers' formulas in plain torch."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from roli_fast.attacks import (
    APGD,
    APGDT,
    FAB,
    FABT,
    FGSM,
    MIFGSM,
    NFGSM,
    PGD,
    TPGD,
    Attack,
    AttackResult,
    AutoAttack,
    FeaturePGD,
    Square,
)

from ..selection import few

# eps and step size for a few hundred pixels.
SIZES = {"linf": (8 / 255, 2 / 255), "l2": (0.5, 0.1), "l1": (5.0, 1.0)}
KINDS = {
    "FGSM": FGSM,
    "PGD": PGD,
    "MIFGSM": MIFGSM,
    "TPGD": TPGD,
    "FeaturePGD": FeaturePGD,
    "NFGSM": NFGSM,
}
ONE_STEP = ("FGSM", "NFGSM")
ATTACKS = [f"{kind}-{norm}" for kind in KINDS for norm in SIZES]
STRONGER = {
    "APGD": APGD,
    "APGDT": APGDT,
    "FAB": FAB,
    "FABT": FABT,
    "Square": Square,
    "AutoAttack": AutoAttack,
}

ALL = [*KINDS, *STRONGER]


def each(kinds: Iterable[str], **axes: Iterable[Any]) -> Any:
    """Parametrizes over attacks in all norms, and over the axes: of their product, `make test` runs a few."""

    def named(kind: str, norm: str, *rest: Any, marks: Any) -> Any:
        return pytest.param(f"{kind}-{norm}", *rest, marks=marks)

    rows = few(kinds, SIZES, *axes.values())
    return pytest.mark.parametrize(("name", *axes), [named(*row.values, marks=row.marks) for row in rows])


each_descent = each(KINDS)  # those that take PGD's options
each_attack = each(ALL)


def make(name: str, **options: Any) -> Attack:
    """The attack of this name, of three steps, or five queries, towards two targets."""
    kind, norm = name.split("-")
    eps, step_size = SIZES[norm]
    if kind in STRONGER:
        steps = {} if kind == "Square" else {"steps": 3}
        steps |= {"targets": 2} if kind in ("APGDT", "FABT") else {}
        queries = {"queries": 5} if kind in ("Square", "AutoAttack") else {}
        options = {name: value for name, value in options.items() if name != "step_size"}
        return STRONGER[kind](**{"norm": norm, "eps": eps, **steps, **queries, **options})
    given = {"norm": norm, "eps": eps, "step_size": step_size, "steps": 3, **options}
    if kind in ONE_STEP:
        del given["step_size"], given["steps"]
    if kind == "NFGSM":  # half of the ball for the noise, half for the step
        given |= {"eps": given["eps"] / 2, "noise": 1.0}
    return KINDS[kind](**given)


def images_taken(name: str, model: Any, images: Tensor, labels: Tensor, **options: Any) -> Tensor:
    return make(name, **options)(model, images, labels)


def places(attack: Attack, model: Any, images: Tensor, labels: Tensor) -> tuple[AttackResult, Tensor]:
    """What the attack reached, and where it asked for a gradient: (N, gradients, ...)."""
    asked = []

    def noted(x: Tensor) -> Tensor:
        if x.requires_grad:
            asked.append(x.detach().clone())
        return model(x)

    return attack.run(noted, images, labels), torch.stack(asked, dim=1)


# --- the formulas, for (N, ...) float64 ------------------------------------------------------------------


def sizes(eps: float | Tensor, x: Tensor) -> Tensor:
    return torch.as_tensor(eps, dtype=x.dtype).expand(len(x)).reshape(-1, *[1] * (x.dim() - 1))


def norm_of(x: Tensor, order: float) -> Tensor:
    return x.flatten(1).norm(order, dim=1).reshape(-1, *[1] * (x.dim() - 1))


def ascent(norm: str, g: Tensor, step: Tensor, sparsity: float) -> Tensor:
    if norm == "linf":
        return step * g.sign()
    if norm == "l2":
        return step * g / norm_of(g, 2)
    flat = g.flatten(1)
    count = max(1, int(sparsity * flat.shape[1] + 0.5))
    last = flat.abs().topk(count, dim=1).values[:, -1:]
    chosen = flat.abs() >= last
    return step * (chosen * flat.sign() / chosen.sum(1, keepdim=True)).reshape(g.shape)


def projection(norm: str, x: Tensor, clean: Tensor, eps: Tensor, lo: float, hi: float) -> Tensor:
    d = x - clean
    if norm == "linf":
        return torch.maximum(torch.minimum(x, clean + eps), clean - eps).clamp(lo, hi)
    if norm == "l2":
        return (clean + d * (eps / norm_of(d, 2)).clamp(max=1)).clamp(lo, hi)

    # Soft thresholds, clipped to the box; the threshold is found by halving an interval.
    def shrunk(threshold: Tensor) -> Tensor:
        return (clean + d.sign() * (d.abs() - threshold).clamp(min=0)).clamp(lo, hi)

    low, high = torch.zeros_like(eps), d.abs().flatten(1).amax(1).reshape(eps.shape)
    inside = norm_of(shrunk(low) - clean, 1) <= eps
    for _ in range(80):
        middle = (low + high) / 2
        far = norm_of(shrunk(middle) - clean, 1) > eps
        low, high = torch.where(far, middle, low), torch.where(far, high, middle)
    return torch.where(inside, shrunk(torch.zeros_like(eps)), shrunk(high))


def reference(
    model: Callable[[Tensor], Tensor],
    clean: Tensor,
    labels: Tensor,
    starts: list[Tensor],
    *,
    norm: str,
    eps: float | Tensor,
    step_size: float | Tensor,
    steps: int,
    loss: Callable[[Tensor], Tensor],
    targeted: bool = False,
    decay: float | None = None,
    best: bool = False,
    early_stop: bool = False,
    eot: int = 1,
    lo: float = 0.0,
    hi: float = 1.0,
    sparsity: float = 0.05,
) -> Tensor:
    """The attack, one sample after another where samples differ; loss: logits to (N,), to be increased."""
    eps, step = sizes(eps, clean), sizes(step_size, clean)
    kept = clean.clone()
    kept_fooled = torch.zeros(len(clean), dtype=torch.bool)
    kept_loss = torch.full((len(clean),), -torch.inf, dtype=clean.dtype)

    def looked_at(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        outputs = [model(leaf) for _ in range(eot)]
        losses = torch.stack([loss(o) for o in outputs]).mean(0)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        fooled = (torch.stack(outputs).mean(0).argmax(1) == labels) == targeted
        return gradient, losses.detach(), fooled

    def keep(x: Tensor, losses: Tensor, fooled: Tensor) -> None:
        nonlocal kept, kept_fooled, kept_loss
        better = (fooled & ~kept_fooled) | ((fooled == kept_fooled) & (losses > kept_loss))
        if early_stop:
            better = better & ~kept_fooled
        shape = (-1, *[1] * (x.dim() - 1))
        kept = torch.where(better.reshape(shape), x, kept)
        kept_loss = torch.where(better, losses, kept_loss)
        kept_fooled = torch.where(better, fooled, kept_fooled)

    for start in starts:
        x, momentum = start.clone(), torch.zeros_like(start)
        for _ in range(steps):
            gradient, losses, fooled = looked_at(x)
            if best:
                keep(x, losses, fooled)
            if decay is not None:
                mean = gradient.abs().flatten(1).mean(1).reshape(-1, *[1] * (x.dim() - 1))
                momentum = decay * momentum + gradient / mean
                gradient = momentum
            if norm == "l1":  # pixels that are at the wall already take no part
                gradient = gradient * ~(((x >= hi) & (gradient > 0)) | ((x <= lo) & (gradient < 0)))
            x = projection(norm, x + ascent(norm, gradient, step, sparsity), clean, eps, lo, hi)
        _, losses, fooled = looked_at(x)
        keep(x, losses, fooled)
    return kept


def cross_entropy(labels: Tensor, targeted: bool = False) -> Callable[[Tensor], Tensor]:
    sign = -1 if targeted else 1
    return lambda z: sign * (z.logsumexp(1) - z.gather(1, labels[:, None])[:, 0])


def divergence(clean_logits: Tensor) -> Callable[[Tensor], Tensor]:
    p = clean_logits.detach().softmax(1)
    return lambda z: (p * (p.log() - F.log_softmax(z, 1))).sum(1)
