"""The ops as float64 formulas, written from the contract and not from the code.

Each takes its op's tensors and sizes as exact float64 values and returns the ideal result with a slack: how
far from the rounded ideal the op may stay. No slack means that the op owes the correctly rounded ideal.
"""

import numpy
import torch
from torch import Tensor


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbours in dtype at magnitude x, in float64."""
    info = torch.finfo(dtype)
    x = x.double().abs().clamp(info.smallest_normal, info.max)
    return torch.ldexp(torch.full_like(x, info.eps), torch.frexp(x).exponent - 1)


def linf_project(adv, clean, eps, lo, hi, *, state):
    return adv.maximum(clean - eps).minimum(clean + eps).clamp(lo, hi), 0.0


def linf_step(adv, grad, clean, step_size, eps, lo, hi, *, state):
    moved = torch.where(grad > 0, adv + step_size, torch.where(grad < 0, adv - step_size, adv))
    return linf_project(moved, clean, eps, lo, hi, state=state)


def linf_start(clean, eps, seed, lo, hi, *, state, index=None):
    index = torch.arange(len(clean)) if index is None else index
    draws = symmetric_uniform(*seed.tolist(), index.numpy(), clean[0].numel() if len(clean) else 0)
    moved = clean + eps * torch.from_numpy(draws).reshape(clean.shape)
    # The product and the sum round, each by half a unit of what is at most |clean| + eps.
    return linf_project(moved, clean, eps, lo, hi, state=state)[0], ulp(clean.abs() + eps, state)


def prepare(adv, mean, std, *, state, **_):
    if mean is None:
        return adv, 0.0
    shape = (-1, *[1] * (adv.dim() - 2))
    ideal = (adv - mean.reshape(shape)) / std.reshape(shape)
    return ideal, ulp(ideal, state)  # the difference rounds before the quotient does


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011) on arrays of uint64 that hold 32-bit words."""
    word, shift = numpy.uint64(0xFFFFFFFF), numpy.uint64(32)
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = c0 * numpy.uint64(0xD2511F53), c2 * numpy.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = p1 >> shift ^ c1 ^ k0, p1 & word, p0 >> shift ^ c3 ^ k1, p0 & word
        k0, k1 = k0 + numpy.uint64(0x9E3779B9) & word, k1 + numpy.uint64(0xBB67AE85) & word
    return c0, c1, c2, c3


def symmetric_uniform(key: int, stream: int, index, count: int):
    """The draws of elements 0 .. count - 1 of the samples index, (len(index), count).

    The stream is folded into the key; the counter is (block of four elements, sample); the upper 24 bits of a
    word are an odd multiple of 2^-24 in (-1, 1).
    """

    def words(x):
        bits = numpy.asarray(x, dtype=numpy.int64).astype(numpy.uint64)
        return bits & numpy.uint64(0xFFFFFFFF), bits >> numpy.uint64(32)

    zero = numpy.uint64(0)
    folded = philox((*words(stream), zero, zero), words(key))[:2]
    block, sample = numpy.meshgrid(numpy.arange((count + 3) // 4), index)
    bits = numpy.stack(philox((*words(block), *words(sample)), folded), axis=-1)
    bits = bits.reshape(len(index), -1)[:, :count] >> numpy.uint64(8)
    return (2 * bits.astype(numpy.float64) + 1 - 2**24) / 2**24
