"""The L1 family.

The projection goes onto the intersection of ball and box, and it is exact: its threshold is the root of a
piecewise linear function, found to float64's precision. Backends agree within two units in the last place of
the largest of ``|adv|``, ``|clean|`` and the result; for a float64 state, within sqrt(n) units of the
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

    The elements whose gradient is largest in magnitude move by ``step_size / count`` each, in the direction
    of the gradient's sign. The result is projected exactly onto the intersection of ball and box.

    In float32 at least 16 bytes per element have to be moved. How many are moved depends on how long the
    search for the threshold takes: a sample is read once for each of about ten guesses. To find the magnitude
    from which on elements move, a GPU also reads the sample once for each four bits of that magnitude. On a
    CPU, a thread does this in scratch memory of 20 bytes for each element of a sample (32 in float64), which
    should fit into its cache.

    step_size, eps: sums of absolute values over a sample's pixels: numbers, or tensors of shape () or (N,) of
        adv's dtype, in which a negative or NaN value counts as 0.
    sparsity: the share of a sample's elements that move, from 0 to 1. It is rounded to a number of elements,
        at least one. Elements that equal the last of these in magnitude move too; elements without a gradient
        never move. A number, or a tensor like step_size.
    out: as in :func:`linf_step_`. With mean and std, grad is the gradient at out, and is divided by std.
    All other arguments are as in :func:`linf_step_`.
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
    """Like :func:`l1_step_`, but on a copy of adv, which is returned; adv may require a gradient."""
    return on_a_copy(l1_step_, adv, grad, clean, step_size, eps, lo, hi, sparsity=sparsity, active=active)


def l1_project_(adv: Tensor, clean: Tensor, eps: float | Tensor, lo: float = 0.0, hi: float = 1.0) -> None:
    """Moves adv to the nearest point of the intersection of the L1 ball around clean and the box, in place
    (Croce and Hein 2021, proposition 2.1). If clean lies outside the box, the box wins: the result is inside
    the box, even where that is outside the ball.

    In float32 at least 12 bytes per element have to be moved; how many are moved is as for :func:`l1_step_`.

    The arguments are as in :func:`l1_step_`.
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
    elements, where z has n exponential draws of random sign and u is uniform in (0, 1]. In float32 at least 8
    bytes per element have to be moved; this op moves 16. Arguments and result are as in :func:`linf_start`.
    """
    op = _START.tensor if isinstance(eps, Tensor) else _START.number
    return op(clean, eps, seed, lo, hi, index=index)
