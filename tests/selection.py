"""A few in `make test`, all in `make test-all`: values and rows for pytest.mark.parametrize.

Where each value needs a test of its own, all run. Where a few prove the same, the others are marked slow:
those that `slow` is given, or what `few` leaves out of a product.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def slow(*values: Any) -> list[Any]:
    """Values that only `make test-all` runs."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def few(*axes: Iterable[Any], together: int = 1) -> list[Any]:
    """The rows of the axes' product, all but a few of them slow.

    together: of how many axes every combination of values is among the few: with 1 each value, with 2 each
    pair.
    """
    values = [list(axis) for axis in axes]
    rows = [*itertools.product(*map(range, map(len, values)))]

    def met(row: tuple[int, ...]) -> set[Any]:
        return {*itertools.combinations(enumerate(row), together)}

    missing, chosen = set().union(*map(met, rows)), set()
    while missing:
        best = max(rows, key=lambda row: len(met(row) & missing))  # the first of those that bring most
        chosen.add(best)
        missing -= met(best)

    def param(row: tuple[int, ...]) -> Any:
        marks = () if row in chosen else pytest.mark.slow
        return pytest.param(*(axis[i] for axis, i in zip(values, row, strict=True)), marks=marks)

    return [*map(param, rows)]
