"""The Linf step and projection on numpy arrays, in place, by the native CPU kernels and without torch.

What the functions of the same names in :mod:`roli_fast.ops` do, they do here: the same contract, the same
bits. Nothing is copied, whatever the strides, negative ones included. They compute on the calling thread and
release the interpreter's lock meanwhile: to use more cores, step slices of the batch from several threads.
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
    grad: (N, ...) float16, float32 or float64, or bfloat16 of ml_dtypes; NaN counts as 0.
    clean: (N, ...) of these dtypes, or uint8 for v / 255.
    step_size, eps: in pixel units; numbers, or arrays of shape () or (N,) of adv's dtype, in which a
        negative or NaN value counts as 0.
    lo, hi: the box. Where clean lies outside, the box wins.
    active: (N,) bool; the other samples keep their bits.
    out: (N, ...) of grad's dtypes, any layout; receives the next model input, for inactive samples too:
        adv, or (adv - mean) / std where mean and std, (C,) of adv's dtype, are given.

    Raises ValueError or TypeError, with nothing written, for arguments that do not fit.
    """
    _C.linf_step_(adv, grad, clean, step_size, eps, lo, hi, active, out, mean, std)


def linf_project_(
    adv: numpy.ndarray,
    clean: numpy.ndarray,
    eps: float | numpy.ndarray,
    lo: float = 0.0,
    hi: float = 1.0,
) -> None:
    """Projects adv onto the Linf ball around clean and onto the box, in place.

    Equivalent to ``adv[...] = adv.clip(clean - eps, clean + eps).clip(lo, hi)``. Arguments as in
    :func:`linf_step_`.
    """
    _C.linf_project_(adv, clean, eps, lo, hi)
