"""Turns a gradient into a direction, whatever its scale: a tiny gradient gives the same step as a huge one.

Multiplying by a power of two, which is exact, brings the gradient's norm near 1. What is left of the scale is
a weight per sample, computed in float64 and rounded to the state's dtype.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .shared import over_batch, per_channel, sums

# Sums are taken at the first of these scales at which they stay clear of float64's limits.
_SCALES = (0, -700, 700)  # exponents of 2
_CLEAR = 2.0**800


def finite_part(grad: Tensor, infinite: Tensor) -> Tensor:
    """The gradient without NaN, which counts as 0. If a sample has infinite elements, these become +-1 and
    the finite ones 0."""
    grad = torch.where(grad.isnan(), torch.zeros_like(grad), grad)
    return torch.where(infinite, torch.where(grad.isinf(), grad.sign(), 0.0), grad)


def has_infinite(grad: Tensor) -> Tensor:
    return over_batch(grad.isinf().reshape(len(grad), math.prod(grad.shape[1:])).any(1), grad)


@dataclass
class Direction:
    """unit: (N, ...) in the state's dtype, the gradient times a power of two.
    norm: the norm of unit, per sample, in float64; 0 if there is no direction.
    along: the inner product of the direction, of norm 1, with d.
    """

    unit: Tensor
    norm: Tensor
    along: Tensor

    def times(self, length: Tensor) -> Tensor:
        """A step of this length (float64, per sample). An element of 0 stays 0, however long the step is."""
        there = self.norm > 0
        weight = torch.where(there, length / torch.where(there, self.norm, 1.0), 0.0).to(self.unit.dtype)
        return torch.where(self.unit == 0, self.unit, self.unit * weight)


def direction_of(
    grad: Tensor, std: Tensor | None, state: torch.dtype, d: Tensor | None = None, *, power: int = 2
) -> Direction:
    """The direction, with respect to pixels, of a gradient at the model's input.

    std: what the model's input was divided by, and so the gradient is, too.
    d: (N, ...) offsets, float64.
    power: 2 for the L2 norm, 1 for the sum of absolute values.
    """
    infinite = has_infinite(grad)
    finite = finite_part(grad, infinite)

    def scaled(exponent: Tensor) -> Tensor:
        x = finite.double() * 2.0 ** exponent.double()  # before the division, which would overflow
        return x if std is None else torch.where(infinite, x, x / per_channel(std.double(), grad))

    tried = [
        sums(scaled(torch.full_like(infinite, exponent, dtype=torch.int64)).abs() ** power)
        for exponent in _SCALES
    ]
    big, small = ~(tried[0] <= _CLEAR), tried[0] < 1 / _CLEAR
    exponent = torch.where(big, _SCALES[1], torch.where(small, _SCALES[2], _SCALES[0]))
    norm = torch.where(big, tried[1], torch.where(small, tried[2], tried[0])) ** (1 / power)
    along = torch.zeros_like(norm)
    if d is not None:
        along = sums(scaled(exponent) * d) / torch.where(norm > 0, norm, 1.0)

    # The norm times 2^shift lies in [0.5, 1), as far as numbers allow.
    limit = 1022 if torch.float64 in (grad.dtype, state) else 126
    _, top = torch.frexp(norm)
    shift = (exponent - top).clamp(-limit, limit)
    shift = torch.where(infinite, 0, shift)
    wide = torch.float64 if limit == 1022 else torch.float32
    unit = (finite.to(wide) * (2.0 ** shift.double()).to(wide)).to(state)
    if std is not None:
        unit = torch.where(infinite, unit, unit / per_channel(std, grad))
    return Direction(unit, norm * 2.0 ** (shift - exponent).double(), along)
