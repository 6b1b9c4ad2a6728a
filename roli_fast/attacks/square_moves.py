"""Where the Square Attack starts, and what it tries next.

All randomness comes from outside, as draws (N, ...) that are uniform in (0, 1). Each sample has its own
squares, which may lie anywhere in the image, its edges included.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from ..ops.reference.shared import over_batch
from .norms import NORMS


def signs(draws: Tensor) -> Tensor:
    """-1 or 1."""
    return (draws > 0.5).to(draws.dtype) * 2 - 1


class Stripes:
    """In Linf: starts with vertical stripes; a move paints a square in one colour. Every element that was
    changed is as far from the clean image as the ball allows."""

    def __init__(self, bounds: tuple[float, float]):
        self._bounds = bounds

    @staticmethod
    def start_draws(shape: torch.Size) -> int:
        return shape[1] * shape[3]

    @staticmethod
    def draws(shape: torch.Size) -> int:
        """How many draws a move needs: for the square's place, and for its colour."""
        return 2 + shape[1]

    @staticmethod
    def side(share: float, height: int, width: int) -> int:
        """The side of a square with this share of the pixels."""
        return min(max(round((share * height * width) ** 0.5), 1), height, width)

    def start(self, clean: Tensor, eps: float | Tensor, draws: Tensor) -> Tensor:
        colours = signs(draws).reshape(len(clean), clean.shape[1], 1, clean.shape[3])
        return self._inside(clean + colours * _radius(eps, clean), clean, eps)

    def move(self, best: Tensor, clean: Tensor, eps: float | Tensor, side: int, draws: Tensor) -> Tensor:
        inside = _square(draws[:, :2], side, clean)
        colours = signs(draws[:, 2:])[:, :, None, None]
        return self._inside(torch.where(inside, clean + colours * _radius(eps, clean), best), clean, eps)

    def _inside(self, adv: Tensor, clean: Tensor, eps: float | Tensor) -> Tensor:
        NORMS["linf"].project_(adv, clean, eps, *self._bounds)
        return adv


class Mass:
    """In L2 and L1: starts with tiles of a fixed pattern. A move empties one square and adds the pattern to
    another, which gets the norm ("mass") of what both had, and what the ball still allows."""

    def __init__(self, norm: str, bounds: tuple[float, float]):
        self._norm, self._order, self._bounds = norm, NORMS[norm].order, bounds

    @staticmethod
    def start_draws(shape: torch.Size) -> int:
        """How many draws the start needs: for each tile, its colour and the pattern's orientation."""
        return len(_tiles(shape)) * (shape[1] + 1)

    @staticmethod
    def draws(shape: torch.Size) -> int:
        """How many draws a move needs: for two squares' places, the pattern's orientation, and its colour."""
        return 5 + shape[1]

    @staticmethod
    def side(share: float, height: int, width: int) -> int:
        """The side of a square with this share of the pixels: odd and at least 3, unless the image is smaller
        than that."""
        return min(max(round((share * height * width) ** 0.5), 3) | 1, height, width)

    def start(self, clean: Tensor, eps: float | Tensor, draws: Tensor) -> Tensor:
        change, side = torch.zeros_like(clean), max(1, clean.shape[2] // 5)
        for tile, (top, left) in enumerate(_tiles(clean.shape)):
            of_tile = draws[:, tile * (clean.shape[1] + 1) :][:, : clean.shape[1] + 1]
            change[:, :, top : top + side, left : left + side] = self._pattern(of_tile, side, clean)
        return self._on_the_ball(change, clean, eps)

    def move(self, best: Tensor, clean: Tensor, eps: float | Tensor, side: int, draws: Tensor) -> Tensor:
        change, channels = best - clean, clean.shape[1]
        to, taken = _square(draws[:, :2], side, clean), _square(draws[:, 2:4], side, clean)
        every, rows, columns = _indices(draws[:, :2], side, clean)
        there = change[every, :, rows, columns].permute(0, 3, 1, 2)
        new = self._pattern(draws[:, 4:], side, clean) + there / (self._mass(there) + 1e-12)
        left = self._budget(eps, clean, change) / channels
        budget = left + self._power(change * (to | taken)).sum(dim=(2, 3), keepdim=True)
        new = new / (self._mass(new) + 1e-12) * self._root(budget)
        if self._order == 1:
            new = new * channels
        change = torch.where(taken, torch.zeros_like(change), change)
        change[every, :, rows, columns] = new.permute(0, 2, 3, 1)
        return self._on_the_ball(change, clean, eps)

    def _budget(self, eps: float | Tensor, clean: Tensor, change: Tensor) -> Tensor:
        """How much of the ball the change leaves, in squares (L2) or absolute values (L1), which add up."""
        spent = self._power(change).sum(dim=(1, 2, 3), keepdim=True)
        return (_radius(eps, clean) ** self._order - spent).clamp(min=0)

    def _power(self, change: Tensor) -> Tensor:
        return change.square() if self._order == 2 else change.abs()

    def _root(self, power: Tensor) -> Tensor:
        return power.sqrt() if self._order == 2 else power

    def _mass(self, change: Tensor) -> Tensor:
        """The norm of each channel, (N, C, 1, 1)."""
        return self._root(self._power(change).sum(dim=(2, 3), keepdim=True))

    def _pattern(self, draws: Tensor, side: int, clean: Tensor) -> Tensor:
        """The pattern (N, C, side, side). draws: (N, 1 + C), its orientation and its colour."""
        upright = pattern(self._order, side, clean.dtype, clean.device)
        lying = over_batch(draws[:, :1].flatten() > 0.5, clean)
        return torch.where(lying, upright.mT, upright) * signs(draws[:, 1:])[:, :, None, None]

    def _on_the_ball(self, change: Tensor, clean: Tensor, eps: float | Tensor) -> Tensor:
        if self._order == 2:
            length = self._power(change).sum(dim=(1, 2, 3), keepdim=True).sqrt()
            change = change * (_radius(eps, clean) / (length + 1e-12))
        adv = clean + change
        NORMS[self._norm].project_(adv, clean, eps, *self._bounds)
        return adv


@functools.lru_cache(maxsize=256)
def pattern(
    order: float,
    side: int,
    dtype: torch.dtype = torch.float64,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Tensor:
    """The pattern of a square, (side, side), of norm 1: two halves of opposite sign, each with a peak in its
    middle, which is sharper in L1 than in L2."""
    half = side // 2
    found = torch.cat([_peak(order, half, side), -_peak(order, side - half, side)])
    return (found / (found.abs() ** order).sum() ** (1 / order)).to(device, dtype)


def _peak(order: float, height: int, width: int) -> Tensor:
    """Nested rectangles around the middle, the k-th from within of weight k ** -2 in L2 and k ** -4 in L1,
    added up (Square Attack, section 4.2, and the code of Mind the Box)."""
    found = torch.zeros(height, width, dtype=torch.float64)
    top, left = height // 2, width // 2
    for k in range(max(height // 2, width // 2) + 1):
        rows = slice(max(top - k, 0), max(top + k + 1, 0))
        columns = slice(max(left - k, 0), max(left + k + 1, 0))
        found[rows, columns] += (k + 1.0) ** (-2 if order == 2 else -4)
    return found / max((found.abs() ** order).sum().item() ** (1 / order), 1e-12)


def _tiles(shape: torch.Size) -> list[tuple[int, int]]:
    """Top and left of squares, five of them in the image's height."""
    side = max(1, shape[2] // 5)
    first = (shape[2] - 5 * side) // 2 if shape[2] >= 5 else 0
    tops = range(first, shape[2] - side + 1, side)
    lefts = range(first, shape[3] - side + 1, side)
    return [(top, left) for top in tops for left in lefts]


def _radius(eps: float | Tensor, clean: Tensor) -> Any:
    return over_batch(eps, clean) if isinstance(eps, Tensor) else eps


def _first(draw: Tensor, length: int, side: int) -> Tensor:
    """(N,) int64, the first of the places of a square along one dimension."""
    return (draw * (length - side + 1)).long().clamp(max=length - side)


def _square(draws: Tensor, side: int, clean: Tensor) -> Tensor:
    """(N, 1, H, W) bool, the pixels in a square that two draws place."""
    spans = []
    for draw, length in zip(draws.unbind(dim=1), clean.shape[2:], strict=True):
        first, places = _first(draw, length, side)[:, None], torch.arange(length, device=clean.device)
        spans.append((places >= first) & (places < first + side))
    return spans[0][:, None, :, None] & spans[1][:, None, None, :]


def _indices(draws: Tensor, side: int, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sample, row and column of the pixels of such a square, to be broadcast to (N, side, side)."""
    within = torch.arange(side, device=clean.device)
    rows, columns = (
        _first(draw, length, side)[:, None] + within
        for draw, length in zip(draws.unbind(dim=1), clean.shape[2:], strict=True)
    )
    every = torch.arange(len(clean), device=clean.device)
    return every[:, None, None], rows[:, :, None], columns[:, None, :]
