"""The L2 family.

Norms are sums in float64, whatever the dtypes. They neither overflow nor underflow, so that a gradient of
1e-30 moves a sample as far as one of 1. If a sample's gradient has infinite elements, these count as +-1 and
the finite ones as 0. NaN counts as 0.

Backends agree within two units in the last place of the largest of ``|adv|``, ``|clean|`` and the result.
Their sums differ in the last bits of float64, which rarely changes a float32 state. It does change a float64
state: there they agree within sqrt(n) units more, for samples of n elements.
"""

from torch import Tensor

from .family import define_apgd_step, define_project, define_start, define_step, on_a_copy

_STEP = define_step("l2")
_APGD_STEP = define_apgd_step("l2")
_PROJECT = define_project("l2")
_START = define_start("l2")


def l2_step_(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    lo: float = 0.0,
    hi: float = 1.0,
    *,
    active: Tensor | None = None,
    out: Tensor | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> None:
    """One L2 PGD step, in place (Madry et al. 2018, section 2.1, with the L2 ball).

    Equivalent, per sample, to ``d = adv - clean + step_size * grad / grad.norm()``,
    ``d *= min(1, eps / d.norm())``, ``adv.copy_((clean + d).clamp(lo, hi))``. It takes two passes: the sums
    that determine the factors, and then the step. In float32 at least 16 bytes per element have to be moved:
    adv, grad and clean are read, and adv is written. This op moves 28, since 12 of them are read a second
    time, from the cache if a sample fits into it.

    step_size, eps: Euclidean lengths over a sample's pixels: numbers, or tensors of shape () or (N,) of adv's
        dtype, in which a negative or NaN value counts as 0.
    out: as in :func:`linf_step_`. With mean and std, grad is the gradient at out, and is divided by std.
    All other arguments are as in :func:`linf_step_`.
    """
    op, step_size, eps = _STEP.of_sizes(adv, step_size, eps)
    op(adv, grad, clean, step_size, eps, lo, hi, active, out, mean, std)


def l2_step(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    lo: float = 0.0,
    hi: float = 1.0,
    *,
    active: Tensor | None = None,
) -> Tensor:
    """Like :func:`l2_step_`, but on a copy of adv, which is returned; adv may require a gradient."""
    return on_a_copy(l2_step_, adv, grad, clean, step_size, eps, lo, hi, active=active)


def l2_apgd_step_(
    adv: Tensor,
    previous: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    lo: float = 0.0,
    hi: float = 1.0,
    *,
    momentum: float | Tensor = 0.75,
    active: Tensor | None = None,
    out: Tensor | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> None:
    """One step of Auto-PGD with its momentum term (Croce and Hein 2020, algorithm 1) in the L2 ball.

    With z = ``l2_step(adv, ...)``, adv becomes the projection of
    ``adv + momentum * (z - adv) + (1 - momentum) * (adv - previous)``, and previous becomes the old adv. It
    takes three passes: the sums for z, the distance of that point, and the step. The distance needs a pass of
    its own, because z is clamped and so the sums of the first pass do not determine it. In float32 at least
    24 bytes per element have to be moved; this op moves 52.

    The arguments are as in :func:`l2_step_` and :func:`linf_apgd_step_`.
    """
    op, step_size, eps, momentum = _APGD_STEP.of_sizes(adv, step_size, eps, momentum)
    op(adv, previous, grad, clean, step_size, eps, lo, hi, momentum, active, out, mean, std)


def l2_project_(adv: Tensor, clean: Tensor, eps: float | Tensor, lo: float = 0.0, hi: float = 1.0) -> None:
    """Projects adv onto the L2 ball around clean, then clamps it to the box, in place.

    Equivalent to ``d = adv - clean``, ``d *= min(1, eps / d.norm())``,
    ``adv.copy_((clean + d).clamp(lo, hi))``. In float32 at least 12 bytes per element have to be moved; this
    op moves 20. The arguments are as in :func:`l2_step_`.
    """
    op = _PROJECT.tensor if isinstance(eps, Tensor) else _PROJECT.number
    op(adv, clean, eps, lo, hi)


def l2_start(
    clean: Tensor,
    eps: float | Tensor,
    seed: Tensor,
    lo: float = 0.0,
    hi: float = 1.0,
    *,
    index: Tensor | None = None,
) -> Tensor:
    """A uniformly random point of the L2 ball around clean, clamped to the box.

    Equivalent to ``(clean + eps * u ** (1 / n) * z / z.norm()).clamp(lo, hi)`` for samples of n elements,
    where z has n standard normal draws and u is uniform in (0, 1]. In float32 at least 8 bytes per element
    have to be moved; this op moves 16, because the draws are stored where the result will be. Arguments and
    result are as in :func:`linf_start`.
    """
    op = _START.tensor if isinstance(eps, Tensor) else _START.number
    return op(clean, eps, seed, lo, hi, index=index)
