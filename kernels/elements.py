"""What the kernels of all families share, one element at a time: the Triton twin of ``csrc/common``.

Exact: comparisons and selects instead of min and max (NaN, -0.0), ``div_rn`` instead of ``/``, which divides
float32 approximately on a GPU, and rounding to bfloat16 by hand, which the interpreter truncates. A branch on
a compile-time constant has an else even after a return, since Triton would type what follows it as well.
"""

import triton
import triton.language as tl


@triton.jit
def clamp(x, low, high):
    """A NaN x becomes a bound; x at a bound keeps its bits."""
    x = tl.where(x >= low, x, low)
    return tl.where(x <= high, x, high)


@triton.jit
def in_box(x, a, c, lo, hi, state: tl.constexpr):
    """x clamped to the box, c where it is NaN; NaN exactly where a or c is."""
    x = tl.where(x == x, x, c)
    x = clamp(x, tl.full((), lo, state), tl.full((), hi, state))
    return tl.where((a != a) | (c != c), float("nan"), x)


@triton.jit
def with_inertia(z, a, p, c, m):
    """APGD's next point before its projection. z: the point that the step alone would reach, p: the previous
    a."""
    y = (a + (z - a) * m) + (a - p) * (1 - m)
    return tl.where(y == y, y, c)


@triton.jit
def size(given, sample, state: tl.constexpr):
    """A step size or eps, given as (number, tensor, stride), of an int64 sample. NaN and negative ones in a
    tensor count as 0."""
    number, values, stride = given
    if values is None:
        return tl.full((), number, state)
    else:
        value = tl.load(values + sample * stride)
        return tl.where(value > 0, value, 0.0)


@triton.jit
def divide(x, y):
    """x / y, correctly rounded."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def widened(x):
    """Half precision as float32; bfloat16 by hand, of which the interpreter gets the subnormals wrong."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif x.dtype == tl.float16:
        return x.to(tl.float32)
    else:
        return x


@triton.jit
def image(x, state: tl.constexpr):
    """A stored image as the state's dtype; uint8 is v / 255."""
    if x.dtype == tl.uint8:
        return divide(x.to(state), tl.full(x.shape, 255.0, state))
    else:
        return widened(x).to(state)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """To the nearest value of dtype, ties to even; float64 reaches half precision through float32."""
    if dtype == tl.bfloat16:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        half = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        half = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, half)
        return half.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    elif dtype == tl.float16:
        return x.to(tl.float32).to(tl.float16)
    else:
        return x.to(dtype)


@triton.jit
def word(x, shift: tl.constexpr):
    """32 bits of an int64."""
    return ((x >> shift) & 0xFFFFFFFF).to(tl.uint32)


@triton.jit
def philox_key(seed, seed_stride):
    """The key of a draw: the stream, folded into the seed's key."""
    key, stream = tl.load(seed), tl.load(seed + seed_stride)
    zero = tl.zeros((), tl.uint32)
    k0, k1, _, _ = tl.philox_impl(
        word(stream, 0), word(stream, 32), zero, zero, word(key, 0), word(key, 32), n_rounds=10
    )
    return k0, k1


@triton.jit
def philox(block, sample, key):
    """Four words of 32 bits, which make one block of a sample's draws."""
    return tl.philox_impl(
        word(block, 0), word(block, 32), word(sample, 0), word(sample, 32), key[0], key[1], n_rounds=10
    )


@triton.jit
def symmetric_uniform(bits, state: tl.constexpr):
    """Uniform in (-1, 1): 24 of the bits, as an odd multiple of 2^-24."""
    odd = ((bits >> 8) * 2 + 1).to(tl.int32) - 16777216
    return odd.to(state) * 5.9604644775390625e-08


@triton.jit
def first_place(WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The place of the program's first element, in 64 bits where 32 are too few."""
    if WIDE:
        return tl.program_id(0).to(tl.int64) * BLOCK
    else:
        return tl.program_id(0) * BLOCK


@triton.jit
def sample_and_part(parts):
    """The sample, and the part of it, that this program works on. parts: of each sample."""
    return (tl.program_id(0) // parts).to(tl.int64), tl.program_id(0) % parts


@triton.jit
def first_of(n, elements, WHOLE: tl.constexpr):
    """The place of a sample's first element. WHOLE: its elements are a multiple of 16, so that accesses can
    be vectorised."""
    if WHOLE:
        return tl.multiple_of(n * elements, 16)
    else:
        return n * elements


@triton.jit
def block_of(number, elements, WHOLE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The places of a block within a sample, and which of them exist."""
    if WIDE:
        number = tl.cast(number, tl.int64)  # an int in the interpreter
    place = number * BLOCK + tl.arange(0, BLOCK)
    mask = place < elements
    if WHOLE:
        mask = tl.max_constancy(mask, 16)
    return place, mask


@triton.jit
def is_active(active, n):
    """Whether a sample is active. active: (mask, stride)."""
    if active[0] is None:
        return True
    else:
        return tl.load(active[0] + n * active[1]) != 0
