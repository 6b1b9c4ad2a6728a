"""The Linf step and projection on numpy arrays, in place, computed by the native CPU kernels and without
torch.

These functions do the same as those of the same names in :mod:`roli_fast.ops`, with the same rules for
arguments and the same bits. Nothing is copied, whatever the strides, even negative ones. They compute on the
calling thread and release the interpreter's lock meanwhile. To use more cores, call them on slices of the
batch from several threads.
"""

import numpy

try:
    import roli_fast._C as _C
except ModuleNotFoundError as error:
    raise ImportError(
        "roli_fast.numpy needs the native kernels, which are not built: "
        "the package was installed with ROLI_FAST_NATIVE=0"
    ) from error

__all__ = ["linf_project_", "linf_step_"]


def linf_step_(
    adv: numpy.ndarray,
    grad: numpy.ndarray,
    clean: numpy.ndarray,
    step_size: float | numpy.ndarray,
    eps: float | numpy.ndarray,
    lo: float = 0.0,
    hi: float = 1.0,
    *,
    active: numpy.ndarray | None = None,
    out: numpy.ndarray | None = None,
    mean: numpy.ndarray | None = None,
    std: numpy.ndarray | None = None,
) -> None:
    """One Linf PGD step, in place and in one pass (Madry et al. 2018, eq. 2).

    Equivalent to ``adv[...] = (adv + step_size * sign(grad)).clip(clean - eps, clean + eps).clip(lo, hi)``.

    adv: (N, ...) float32 or float64, written. Must not overlap itself, grad or clean.
    grad: (N, ...) float16, float32 or float64, or ml_dtypes' bfloat16; NaN counts as 0.
    clean: (N, ...) of these dtypes, or uint8, whose values v mean v / 255.
    step_size, eps: in pixel units: numbers, or arrays of shape () or (N,) of adv's dtype, in which a negative
        or NaN value counts as 0.
    lo, hi: the box. If clean lies outside the box, the box wins: the result is inside the box, even where
        that is outside the ball.
    active: (N,) bool; all other samples stay as they are, bit for bit.
    out: (N, ...) of the dtypes that grad may have, in any layout. Receives the next model input, also for
        samples that are not active: adv, or (adv - mean) / std if mean and std, (C,) of adv's dtype, are
        given.

    Raises ValueError or TypeError for arguments that do not fit. In that case nothing has been written.
    """
    _C.linf_step_(adv, grad, clean, step_size, eps, lo, hi, active, out, mean, std)


def linf_project_(
    adv: numpy.ndarray,
    clean: numpy.ndarray,
    eps: float | numpy.ndarray,
    lo: float = 0.0,
    hi: float = 1.0,
) -> None:
    """Projects adv onto the Linf ball around clean and then onto the box, in place.

    Equivalent to ``adv[...] = adv.clip(clean - eps, clean + eps).clip(lo, hi)``. The arguments are as in
    :func:`linf_step_`.
    """
    _C.linf_project_(adv, clean, eps, lo, hi)
