"""Random numbers that depend only on seed, sample index and logical element, with the same bits on all
backends.

seed: (2,) int64, a key and the number of a stream.
index: (N,) int64, the number of each sample; None for 0 .. N - 1.
like: (N, ...), a tensor whose elements get one draw each.
"""

import math

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of the product of two uint32, in int64 without overflow."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    middle = (low >> 16) + (high & 0xFFFF)
    return (high >> 16) + (middle >> 16), (low & 0xFFFF) | ((middle & 0xFFFF) << 16)


def philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al., SC 2011) on uint32 words held in int64 tensors."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        (high0, low0), (high1, low1) = _multiply(0xD2511F53, c0), _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def _blocks(seed: Tensor, index: Tensor | None, like: Tensor, numbers: Tensor) -> Tensor:
    """The blocks with these numbers (int64), of four words each, for every sample: (N, len(numbers), 4)."""
    index = torch.arange(len(like), device=like.device) if index is None else index
    zero = torch.zeros_like(seed[0])
    key, stream = ((x & _WORD, (x >> 32) & _WORD) for x in seed.unbind())
    mixed = philox((*stream, zero, zero), key)
    block = numbers.expand(len(index), len(numbers))
    sample = index[:, None].expand_as(block)
    counter = (block & _WORD, (block >> 32) & _WORD, sample & _WORD, (sample >> 32) & _WORD)
    return torch.stack(philox(counter, (mixed[0], mixed[1])), dim=-1)


def _count(like: Tensor) -> int:
    """How many elements a sample has."""
    return math.prod(like.shape[1:])


def _words(seed: Tensor, index: Tensor | None, like: Tensor) -> Tensor:
    """One word for each element of a sample: (N, blocks, 4). The last block may have some words too many."""
    return _blocks(seed, index, like, torch.arange(-(-_count(like) // 4), device=seed.device))


def _elements(values: Tensor, like: Tensor) -> Tensor:
    """What was made of the words, in the shape of like. This does not slice: in a graph for any shape, the
    layout of a slice would depend on the remainder by 4."""
    elements = torch.arange(_count(like), device=values.device)
    return values.flatten(1).index_select(1, elements).reshape(like.shape)


def symmetric_uniform(seed: Tensor, index: Tensor | None, like: Tensor) -> Tensor:
    """Uniform draws in (-1, 1): like's shape, float32."""
    odd = (_words(seed, index, like) >> 8) * 2 + 1 - 2**24
    return _elements(odd.to(torch.float32) * 2.0**-24, like)


def _unit(words: Tensor) -> Tensor:
    """Multiples of 2^-24 in (0, 1], float32."""
    return ((words >> 8) + 1).to(torch.float32) * 2.0**-24


def log_unit(x: Tensor) -> Tensor:
    """The natural logarithm of a float32 in (0, 1], by the polynomial of Cephes' logf (Moshier). No library's
    own logarithm is used, because libraries differ in the last bit."""
    bits = x.view(torch.int32)
    exponent = (bits >> 23) - 126
    fraction = ((bits & 0x7FFFFF) | 0x3F000000).view(torch.float32)
    small = fraction < 0.70710677
    exponent = torch.where(small, exponent - 1, exponent).to(torch.float32)
    z = torch.where(small, fraction + fraction, fraction) - 1
    square = z * z
    y = torch.full_like(z, 7.0376836292e-2)
    for coefficient in (
        -1.1514610310e-1,
        1.1676998740e-1,
        -1.2420140846e-1,
        1.4249322787e-1,
        -1.6668057665e-1,
        2.0000714765e-1,
        -2.4999993993e-1,
        3.3333331174e-1,
    ):
        y = y * z + torch.full_like(z, coefficient)
    y = y * z * square
    y = y + exponent * -2.12194440e-4
    y = y - square * 0.5
    return (z + y) + exponent * 0.693359375


def _cos_and_sin(words: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of a uniform angle. Two bits choose the quadrant, and 24 bits an offset within 45
    degrees of its axis. The polynomials are those of Cephes' sinf and cosf (Moshier)."""
    quadrant = words >> 30
    centred = ((words >> 6) & 0xFFFFFF) * 2 + 1 - 2**24
    x = centred.to(torch.float32) * (math.pi / 4 * 2.0**-24)
    z = x * x
    sin = ((z * -1.9515295891e-4 + 8.3321608736e-3) * z + -1.6666654611e-1) * z * x + x
    cos = ((z * 2.443315711809948e-5 + -1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z
    cos = (cos - z * 0.5) + 1
    odd = (quadrant & 1) == 1
    c, s = torch.where(odd, sin, cos), torch.where(odd, cos, sin)
    return torch.where((quadrant == 1) | (quadrant == 2), -c, c), torch.where(quadrant >= 2, -s, s)


def normal(seed: Tensor, index: Tensor | None, like: Tensor) -> Tensor:
    """Standard normal draws (Box and Muller 1958), two from each pair of words: like's shape,
    float32."""
    words = _words(seed, index, like)
    pairs = []
    for first, second in ((words[..., 0], words[..., 1]), (words[..., 2], words[..., 3])):
        # By float64, and so correctly rounded: torch's own root of float32 is not, on some CPUs.
        radius = (log_unit(_unit(first)) * -2.0).double().sqrt().to(torch.float32)
        cos, sin = _cos_and_sin(second)
        pairs += [radius * cos, radius * sin]
    return _elements(torch.stack(pairs, -1), like)


def laplace(seed: Tensor, index: Tensor | None, like: Tensor) -> Tensor:
    """Exponential draws of random sign (the lowest bit): like's shape, float32."""
    words = _words(seed, index, like)
    size = -log_unit(_unit(words))
    return _elements(torch.where((words & 1) == 1, -size, size), like)


def root(seed: Tensor, index: Tensor | None, like: Tensor) -> Tensor:
    """The n-th root of a uniform draw in (0, 1] for each sample of n elements, from a block that no element
    uses: (N,), float64."""
    last = torch.full((1,), -1, device=seed.device)
    log = log_unit(_unit(_blocks(seed, index, like, last)[:, 0, 0]))
    return (log.double() / max(1, _count(like))).exp()
