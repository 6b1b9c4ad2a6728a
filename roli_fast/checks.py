"""How this package refuses arguments, warns, and describes errors."""

import math
import numbers
import sys
import warnings
from typing import Any, NoReturn

import numpy


def refuse(argument: str, got: object, accepted: str, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"{argument}: got {got}, accepted: {accepted}")


_NOT_THE_USERS = f"{__name__.partition('.')[0]}.", "torch."


def warn(text: str) -> None:
    """Warns at the user's line that called this package. Python shows the warning once for each line."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_NOT_THE_USERS):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"roli_fast: {text}", stacklevel=level)


def check_choice(argument: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        refuse(argument, repr(value), ", ".join(accepted))


def check_flag(argument: str, value: object) -> None:
    if not isinstance(value, (bool, numpy.bool_)):
        refuse(argument, repr(value), "True, False")


def check_count(argument: str, value: object, least: int = 1, most: float = math.inf) -> None:
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (is_integer and least <= value <= most):  # type: ignore[operator]
        refuse(argument, repr(value), f"an integer {_limits(least, most)}")


def check_number(
    argument: str,
    value: object,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Checks for a finite number from least to most, both included, and between above and below, both
    excluded."""
    accepted = f"a number {_limits(least, most, above, below)}"
    if not isinstance(value, numbers.Real):
        refuse(argument, f"a {type(value).__name__}", accepted, TypeError)
    number = float(value)
    if not (least <= number <= most and above < number < below):
        refuse(argument, value, accepted)


def plain(value: Any) -> Any:
    """A number or a flag, such as numpy's, as Python's own type, which JSON and checkpoints can hold."""
    if isinstance(value, (bool, numpy.bool_)):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _limits(least: float, most: float, above: float = -math.inf, below: float = math.inf) -> str:
    named = ((">=", least), ("above", above), ("up to", most), ("below", below))
    return " and ".join(f"{name} {limit}" for name, limit in named if math.isfinite(limit))


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the error's class if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def brief(error: Exception) -> str:
    """An error's class and the first line of its message, on one line."""
    kind, said = type(error).__name__, first_line(error)
    return kind if said == kind else f"{kind}: {said}"
