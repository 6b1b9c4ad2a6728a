"""The Linf family."""

from torch import Tensor

from .family import define_apgd_step, define_project, define_start, define_step, on_a_copy

_STEP = define_step("linf")
_APGD_STEP = define_apgd_step("linf")
_PROJECT = define_project("linf")
_START = define_start("linf")


def linf_step_(
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
    """One Linf PGD step, in place and in one pass (Madry et al. 2018, eq. 2).

    Equivalent to
    ``adv.copy_((adv + step_size * grad.sign()).clamp(clean - eps, clean + eps).clamp(lo, hi))``. In float32
    at least 16 bytes per element have to be moved, and this op moves no more; out adds its own bytes.

    adv: (N, ...) float32 or float64, written. Must not overlap itself, grad or clean.
    grad: (N, ...) any float dtype; NaN counts as 0.
    clean: (N, ...) any float dtype, or uint8, whose values v mean v / 255.
    step_size, eps: in pixel units: numbers, or tensors of shape () or (N,) of adv's dtype, in which a
        negative or NaN value counts as 0.
    lo, hi: the box. If clean lies outside the box, the box wins: the result is inside the box, even where
        that is outside the ball.
    active: (N,) bool; all other samples stay as they are, bit for bit.
    out: (N, ...) any float dtype and layout. Receives the next model input, also for samples that are not
        active: adv, or (adv - mean) / std if mean and std, (C,) of adv's dtype, are given.

    Raises ValueError, TypeError or RuntimeError for arguments that do not fit. In that case nothing has been
    written.
    """
    op = _STEP.number
    if isinstance(step_size, Tensor) or isinstance(eps, Tensor):
        op, step_size, eps = _STEP.of_sizes(adv, step_size, eps)
    if active is None and out is None and mean is None and std is None:  # each argument costs time
        op(adv, grad, clean, step_size, eps, lo, hi)
    else:  # by position: torch 2.10's compiler refuses a keyword `out` that is not contiguous
        op(adv, grad, clean, step_size, eps, lo, hi, active, out, mean, std)


def linf_step(
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
    """Like :func:`linf_step_`, but on a copy of adv, which is returned; adv may require a gradient."""
    return on_a_copy(linf_step_, adv, grad, clean, step_size, eps, lo, hi, active=active)


def linf_apgd_step_(
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
    """One step of Auto-PGD with its momentum term, in one pass (Croce and Hein 2020, algorithm 1).

    With z = ``linf_step(adv, ...)``, adv becomes the projection of
    ``adv + momentum * (z - adv) + (1 - momentum) * (adv - previous)``, and previous becomes the old adv. In
    float32 at least 24 bytes per element have to be moved, and this op moves no more: it reads adv, previous,
    grad and clean, and writes adv and previous.

    previous: (N, ...) of adv's dtype, written. Must not overlap another argument.
    momentum: from 0 to 1: a number, or a tensor of shape () or (N,) of adv's dtype. 1 leaves out the inertia,
        as APGD's first step does.
    active: (N,) bool; in all other samples, adv and previous stay as they are, bit for bit.
    All other arguments are as in :func:`linf_step_`.
    """
    op, step_size, eps, momentum = _APGD_STEP.of_sizes(adv, step_size, eps, momentum)
    op(adv, previous, grad, clean, step_size, eps, lo, hi, momentum, active, out, mean, std)


def linf_project_(adv: Tensor, clean: Tensor, eps: float | Tensor, lo: float = 0.0, hi: float = 1.0) -> None:
    """Projects adv onto the Linf ball around clean and then onto the box, in place.

    Equivalent to ``adv.copy_(adv.clamp(clean - eps, clean + eps).clamp(lo, hi))``. In float32 at least 12
    bytes per element have to be moved, and this op moves no more. The arguments are as in :func:`linf_step_`.
    """
    op = _PROJECT.tensor if isinstance(eps, Tensor) else _PROJECT.number
    op(adv, clean, eps, lo, hi)


def linf_start(
    clean: Tensor,
    eps: float | Tensor,
    seed: Tensor,
    lo: float = 0.0,
    hi: float = 1.0,
    *,
    index: Tensor | None = None,
) -> Tensor:
    """A uniformly random point of the Linf ball around clean, clamped to the box.

    Equivalent to ``(clean + eps * u).clamp(lo, hi)`` with u uniform in (-1, 1). u depends only on seed,
    sample index and logical element, whatever the batch, the layout and the backend. In float32 at least 8
    bytes per element have to be moved, and this op moves no more.

    clean: (N, ...) any float dtype, or uint8, whose values v mean v / 255.
    eps, lo, hi: as in :func:`linf_step_`.
    seed: (2,) int64 on clean's device: a key, and the number of a stream, so that one key can give several
        different draws.
    index: (N,) int64 on clean's device: the number of each sample; by default 0 .. N - 1.

    Returns a tensor of clean's shape and layout, in float64 if clean is float64, otherwise in float32.
    """
    op = _START.tensor if isinstance(eps, Tensor) else _START.number
    return op(clean, eps, seed, lo, hi, index=index)
