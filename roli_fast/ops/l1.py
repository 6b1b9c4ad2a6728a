"""The L1 family.

The projection is that onto the intersection of ball and box, and exact: the threshold is the root of a
piecewise linear function, found to float64's precision. Backends agree within two units in the last place of
the largest of ``|adv|``, ``|clean|`` and the result; of a float64 state, within sqrt(n) units of the
sample's largest more, for samples of n elements.
"""

from torch import Tensor

from . import checks
from .family import define_project, define_start, define_step, on_a_copy

_STEP = define_step("l1", share="Size sparsity=0.05", check=checks.l1_step)
_PROJECT = define_project("l1")
_START = define_start("l1")


def l1_step_(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    lo: float = 0.0,
    hi: float = 1.0,
    *,
    sparsity: float | Tensor = 0.05,
    active: Tensor | None = None,
    out: Tensor | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> None:
    """One step of sparse steepest ascent in the L1 ball, in place (Tramer and Boneh 2019, section 4.2; Croce
    and Hein 2021, section 3).

    The elements whose gradient is largest by magnitude move by ``step_size / count`` each, in the direction
    of its sign; the result is projected exactly onto the intersection of ball and box.

    In float32 an element has to move 16 bytes. What moves depends on how long the threshold is sought: a
    sample is read once for each of about ten guesses, and for the magnitude from which elements move, on a
    GPU once for each four bits of it. On a CPU a thread does that in scratch memory of 20 bytes for each
    element of a sample (32 in float64), which should stay in its cache.

    step_size, eps: sums of absolute values over a sample's pixels; numbers, or tensors of shape () or (N,) of
        adv's dtype, in which a negative or NaN value counts as 0.
    sparsity: the share of a sample's elements that move, from 0 to 1; rounded, at least one of them, and with
        the last those that equal it. Elements without a gradient never move. A number, or a tensor as
        step_size.
    out: as in :func:`linf_step_`. With mean and std, grad is the gradient at out and is divided by std.
    The rest as in :func:`linf_step_`.
    """
    op, step_size, eps, sparsity = _STEP.of_sizes(adv, step_size, eps, sparsity)
    op(adv, grad, clean, step_size, eps, lo, hi, sparsity, active, out, mean, std)


def l1_step(
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    lo: float = 0.0,
    hi: float = 1.0,
    *,
    sparsity: float | Tensor = 0.05,
    active: Tensor | None = None,
) -> Tensor:
    """:func:`l1_step_` on a copy of adv, which is returned; adv may require a gradient."""
    return on_a_copy(l1_step_, adv, grad, clean, step_size, eps, lo, hi, sparsity=sparsity, active=active)


def l1_project_(adv: Tensor, clean: Tensor, eps: float | Tensor, lo: float = 0.0, hi: float = 1.0) -> None:
    """Moves adv to the nearest point of the intersection of the L1 ball around clean and the box, in place
    (Croce and Hein 2021, proposition 2.1). Where clean lies outside the box, the box wins.

    In float32 an element has to move 12 bytes; what moves, as in :func:`l1_step_`.

    Arguments as in :func:`l1_step_`.
    """
    op = _PROJECT.tensor if isinstance(eps, Tensor) else _PROJECT.number
    op(adv, clean, eps, lo, hi)


def l1_start(
    clean: Tensor,
    eps: float | Tensor,
    seed: Tensor,
    lo: float = 0.0,
    hi: float = 1.0,
    *,
    index: Tensor | None = None,
) -> Tensor:
    """A uniformly random point of the L1 ball around clean, clamped to the box.

    Equivalent to ``(clean + eps * u ** (1 / n) * z / z.abs().sum()).clamp(lo, hi)`` for samples of n
    elements, with z of n exponential draws of random sign and u uniform in (0, 1]. In float32 an element has
    to move 8 bytes and moves 16. Arguments and result as in :func:`linf_start`.
    """
    op = _START.tensor if isinstance(eps, Tensor) else _START.number
    return op(clean, eps, seed, lo, hi, index=index)
