"""The ops as float64 formulas, written from the contract and not from the code.

Each takes its op's tensors and sizes as exact float64 values and returns, for each of the op's results, the
ideal and a slack: how far from the rounded ideal the op may stay. No slack means that the op owes the
correctly rounded ideal. Where a formula jumps (an element that moves or not, a sample inside the ball or
outside), the slack is zero only as far from the jump as rounding cannot reach.
"""

import math

import numpy
import torch
from torch import Tensor


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbours in dtype at magnitude x, in float64."""
    info = torch.finfo(dtype)
    x = x.double().abs().clamp(info.smallest_normal, info.max)
    return torch.ldexp(torch.full_like(x, info.eps), torch.frexp(x).exponent - 1)


def largest(*tensors: Tensor) -> Tensor:
    """The largest magnitude, element by element."""
    return torch.stack([x.double().abs() for x in tensors]).amax(0)


# Bounds within which the results of two backends agree, where not on every bit.


def units(x, state):
    """As many as the order of a sum may cost: two, and where the sum is no wider than the state, such as a
    random walk of n roundings takes."""
    wandering = math.prod(x.shape[1:]) ** 0.5 if state == torch.float64 else 0
    return (2 + wandering) * ulp(x, state)


def near_pixels(result, *, clean, state, adv=None, previous=None, **_):
    """previous: APGD's, which its momentum adds."""
    summands = [clean, *(x for x in (adv, previous) if x is not None)]
    return units(largest(result, *summands), state)


def near_sample(result, *, clean, state, adv=None, **_):
    """The same, for a sum that moves a threshold of the whole sample."""
    magnitude = largest(result, clean, clean if adv is None else adv)
    whole = per_sample(top(magnitude), magnitude).expand(magnitude.shape)
    return 2 * ulp(magnitude, state) + units(whole, state) - 2 * ulp(whole, state)


def near_momentum(result, *, momentum, decay, state, **_):
    return units(result.double().abs() + (decay * momentum).abs(), state)


# Samples


def rows(x):
    return x.reshape(len(x), math.prod(x.shape[1:]))


def per_sample(values, like):
    """(N,) values, or one, shaped to broadcast over a batch."""
    return values.reshape(-1, *[1] * (like.dim() - 1)) if values.dim() else values


def top(x):
    """The largest magnitude of each sample, shaped to broadcast."""
    x = torch.cat([rows(x).abs(), x.new_zeros(len(x), 1)], 1)
    return x.amax(1).reshape(-1)


def norm(x, power=2):
    """Of each sample, whatever the scale."""
    scale = top(x)
    scale = per_sample(torch.where(scale > 0, scale, 1.0), x)
    return scale * per_sample((rows(x / scale).abs() ** power).sum(1) ** (1 / power), x)


def direction(grad, std=None, power=2):
    """grad over its norm; 0 for a zero gradient. NaN counts as 0, and beside infinite elements all else."""
    grad = torch.where(grad.isnan(), 0.0, grad.double())
    if std is not None:
        grad = grad / std.reshape(-1, *[1] * (grad.dim() - 2))
    scale = top(grad)
    grad = torch.where(per_sample(scale.isinf(), grad), torch.where(grad.isinf(), grad.sign(), 0.0), grad)
    scale = per_sample(torch.where((scale > 0) & scale.isfinite(), scale, 1.0), grad)
    grad = grad / scale
    length = norm(grad, power)
    return grad / torch.where(length > 0, length, 1.0)


# Linf


def linf_project(adv, clean, eps, lo, hi, *, state):
    return [(adv.maximum(clean - eps).minimum(clean + eps).clamp(lo, hi), 0.0)]


def linf_step(adv, grad, clean, step_size, eps, lo, hi, *, state):
    moved = torch.where(grad > 0, adv + step_size, torch.where(grad < 0, adv - step_size, adv))
    return linf_project(moved, clean, eps, lo, hi, state=state)


def linf_apgd_step(adv, previous, grad, clean, step_size, eps, momentum, lo, hi, *, state):
    [(z, _)] = linf_step(adv, grad, clean, step_size, eps, lo, hi, state=state)
    y = with_inertia(adv, z, previous, momentum, clean)
    [(x, _)] = linf_project(y, clean, eps, lo, hi, state=state)
    return [(x, 4 * ulp(largest(adv, previous, z, clean), state)), (adv, 0.0)]


def with_inertia(adv, z, previous, momentum, clean):
    y = adv + momentum * (z - adv) + (1 - momentum) * (adv - previous)
    return torch.where(y.isnan(), clean, y)  # of infinite points


def linf_start(clean, eps, seed, lo, hi, *, state, index=None):
    index = torch.arange(len(clean)) if index is None else index
    draws = symmetric_uniform(*seed.tolist(), index.numpy(), math.prod(clean.shape[1:]))
    moved = clean + eps * torch.from_numpy(draws).reshape(clean.shape)
    [(x, _)] = linf_project(moved, clean, eps, lo, hi, state=state)
    # The product and the sum round, each by half a unit of what is at most |clean| + eps.
    return [(x, ulp(clean.abs() + eps, state))]


# L2


def l2_step(adv, grad, clean, step_size, eps, lo, hi, *, state, std=None):
    towards = direction(grad, std)
    step_size = torch.where(norm(towards) > 0, step_size, 0.0)
    # An infinite step goes to the boundary; where the ball has none, to that of the box.
    to_boundary = step_size.isinf() & eps.isfinite()
    step_size = torch.where(to_boundary, 1.0, step_size)
    step = torch.where(towards == 0, 0.0, step_size * towards)
    before = torch.where(to_boundary, 0.0, adv - clean)
    distance = norm(before + step)
    outside = to_boundary | (distance > eps)
    x = torch.where(outside, clean + (before + step) * (eps / distance), adv + step)

    # What rounds before the norm is taken, and what is lost in it where the step leads back towards clean.
    parts = norm(before), step_size
    reach = (parts[0] + parts[1]) / distance
    lost = torch.finfo(state).eps * reach + 2.0**-49 * reach**2
    slack = 2 * units(largest(adv, clean, x), state) + lost.nan_to_num(0, 0) * (x - clean).abs().nan_to_num(
        0, 0, 0
    )
    inside = ~to_boundary & (distance + 1e-6 * sum(parts) <= eps)
    return [(x.clamp(lo, hi), torch.where(inside & (step == 0), 0.0, slack))]


def l2_project(adv, clean, eps, lo, hi, *, state):
    nothing = torch.zeros_like(adv), torch.zeros_like(eps)
    return l2_step(adv, nothing[0], clean, nothing[1], eps, lo, hi, state=state)


def l2_apgd_step(adv, previous, grad, clean, step_size, eps, momentum, lo, hi, *, state, std=None):
    [(z, slack_of_z)] = l2_step(adv, grad, clean, step_size, eps, lo, hi, state=state, std=std)
    y = with_inertia(adv, z, previous, momentum, clean)
    [(x, _)] = l2_project(y, clean, eps, lo, hi, state=state)
    unit = ulp(largest(adv, previous, z, clean, y), state)
    # Rounding of y moves all of a sample where it moves its norm.
    return [(x, slack_of_z + 6 * unit + per_sample(top(unit), unit)), (adv, 0.0)]


def l2_start(clean, eps, seed, lo, hi, *, state, index=None):
    return scaled_start(clean, eps, seed, lo, hi, state, index, normal, 2)


def scaled_start(clean, eps, seed, lo, hi, state, index, draws, power):
    index = (torch.arange(len(clean)) if index is None else index).numpy()
    count = math.prod(clean.shape[1:])
    z = torch.from_numpy(draws(*seed.tolist(), index, count)).reshape(clean.shape)
    radius = torch.from_numpy(unit_uniform(words(*seed.tolist(), index, [-1])[:, 0, 0]))
    radius = eps * per_sample(radius ** (1 / max(1, count)), clean)
    moved = torch.where(z == 0, 0.0, radius * z / norm(z, power))
    # Logarithm, sine and cosine are float32's.
    slack = 2 * ulp(largest(clean, clean + moved), state) + 2e-6 * moved.abs().nan_to_num(0, 0)
    return [((clean + moved).clamp(lo, hi), slack)]


# L1


def l1_step(adv, grad, clean, step_size, eps, sparsity, lo, hi, *, state, std=None):
    """Of two quotients by std that only rounding tells apart either may be taken for the larger: inputs are
    to stay clear of these. Ties of one divisor are exact."""
    grad = torch.where(grad.isnan(), 0.0, grad.double())
    if std is not None:
        grad = grad / std.reshape(-1, *[1] * (grad.dim() - 2))
    n = rows(grad).shape[1]
    if n == 0:
        return [(adv, 0.0)]
    count = (sparsity.reshape(-1).expand(len(adv)) * n + 0.5).floor().clamp(1, n).long()
    last = rows(grad.abs()).sort(1, descending=True)[0].gather(1, count[:, None] - 1)
    moves = (grad.abs() >= per_sample(last[:, 0], grad)) & (grad != 0)
    number = per_sample(rows(moves).sum(1), adv).clamp(min=1)
    # An infinite step is one so far that nothing but what moves is left in the ball.
    far = 8 * (eps + per_sample(top(adv - clean), adv)) + 1
    length = torch.where(step_size.isinf(), far, step_size / number)
    return l1_nearest(torch.where(moves, adv + length * grad.sign(), adv), adv, clean, eps, lo, hi, state)


def l1_project(adv, clean, eps, lo, hi, *, state):
    return l1_nearest(adv, adv, clean, eps, lo, hi, state)


def l1_nearest(x, adv, clean, eps, lo, hi, state):
    """The point of ball and box nearest to x: distances less a threshold, within the room that the box
    leaves. The threshold is found by halving, to the last bit of float64."""
    d = x - clean
    distance = d.abs().clamp(max=1e300)
    room = torch.where(d > 0, hi - clean, clean - lo).clamp(min=0)

    def kept(threshold):
        return torch.minimum((distance - threshold).clamp(min=0), room)

    def total(threshold):
        return per_sample(rows(kept(threshold)).sum(1), x)

    low = torch.zeros_like(total(0.0))
    high = per_sample(top(distance), x)
    for _ in range(200):
        middle = (low + high) / 2
        above = total(middle) > eps
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    outside = total(0.0) > eps
    nearest = torch.where(outside, clean + d.sign() * kept(high), x)

    # Rounding anywhere in the sample moves the threshold.
    greatest = per_sample(top(largest(x, clean, adv).clamp(max=1e300)), x).expand(x.shape)
    feasible = total(0.0) + max(1, rows(x).shape[1]) * ulp(greatest, state) <= eps
    slack = torch.where(feasible & (x == adv), 0.0, 2 * units(greatest, state))
    return [(nearest.clamp(lo, hi), slack)]


def l1_start(clean, eps, seed, lo, hi, *, state, index=None):
    return scaled_start(clean, eps, seed, lo, hi, state, index, laplace, 1)


# The rest


def momentum(momentum, grad, decay, *, state):
    kept = decay * momentum
    added = direction(grad, power=1) * math.prod(grad.shape[1:])
    return [(kept + added, 2 * units(largest(kept, added), state))]


def keep_best(best, best_value, adv, value, *, state):
    wins = value > best_value
    return [
        (torch.where(per_sample(wins, best), adv, best), 0.0),
        (torch.where(wins, value, best_value), 0.0),
    ]


def prepare(adv, mean, std, *, state, dtype=torch.float32, **_):
    if mean is None:
        return [(adv, 0.0)]
    shape = (-1, *[1] * (adv.dim() - 2))
    ideal = (adv - mean.reshape(shape)) / std.reshape(shape)
    # The difference rounds before the quotient does, and this before the cast.
    return [(ideal, ulp(ideal, state).maximum(ulp(ideal, dtype)))]


# Draws


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011) on arrays of uint64 that hold 32-bit words."""
    word, shift = numpy.uint64(0xFFFFFFFF), numpy.uint64(32)
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = c0 * numpy.uint64(0xD2511F53), c2 * numpy.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = p1 >> shift ^ c1 ^ k0, p1 & word, p0 >> shift ^ c3 ^ k1, p0 & word
        k0, k1 = k0 + numpy.uint64(0x9E3779B9) & word, k1 + numpy.uint64(0xBB67AE85) & word
    return c0, c1, c2, c3


def words(key: int, stream: int, index, blocks):
    """The random words of the samples index, four to a block: (len(index), len(blocks), 4).

    The stream is folded into the key; the counter is (block, sample).
    """

    def halves(x):
        bits = numpy.asarray(x, dtype=numpy.int64).astype(numpy.uint64)
        return bits & numpy.uint64(0xFFFFFFFF), bits >> numpy.uint64(32)

    zero = numpy.uint64(0)
    folded = philox((*halves(stream), zero, zero), halves(key))[:2]
    block, sample = numpy.meshgrid(blocks, index)
    return numpy.stack(philox((*halves(block), *halves(sample)), folded), axis=-1)


def of_elements(key: int, stream: int, index, count: int, draw):
    """The draws of elements 0 .. count - 1, of which each block has four."""
    drawn = draw(words(key, stream, index, numpy.arange((count + 3) // 4)))
    return drawn.reshape(len(index), math.prod(drawn.shape[1:]))[:, :count]


def symmetric_uniform(key: int, stream: int, index, count: int):
    """The upper 24 bits of a word are an odd multiple of 2^-24 in (-1, 1)."""

    def draw(bits):
        return (2 * (bits >> numpy.uint64(8)).astype(numpy.float64) + 1 - 2**24) / 2**24

    return of_elements(key, stream, index, count, draw)


def unit_uniform(bits):
    """The upper 24 bits of a word are a multiple of 2^-24 in (0, 1]."""
    return ((bits >> numpy.uint64(8)).astype(numpy.float64) + 1) / 2**24


def normal(key: int, stream: int, index, count: int):
    """Box and Muller's: of two words the first is the radius; of the second two bits are the quadrant, 24 the
    angle from its axis."""

    def draw(bits):
        radius = numpy.sqrt(-2 * numpy.log(unit_uniform(bits[..., 0::2])))
        quadrant = (bits[..., 1::2] >> numpy.uint64(30)).astype(numpy.float64)
        within = (bits[..., 1::2] >> numpy.uint64(6) & numpy.uint64(0xFFFFFF)).astype(numpy.float64)
        angle = numpy.pi / 2 * (quadrant + (within + 0.5) / 2**24 - 0.5)
        return radius[..., None] * numpy.stack([numpy.cos(angle), numpy.sin(angle)], -1)

    return of_elements(key, stream, index, count, draw)


def laplace(key: int, stream: int, index, count: int):
    """Exponential draws; the lowest bit of a word is the sign."""

    def draw(bits):
        return numpy.log(unit_uniform(bits)) * numpy.where(bits & numpy.uint64(1), 1.0, -1.0)

    return of_elements(key, stream, index, count, draw)
