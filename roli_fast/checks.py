"""How this package refuses what it is given, and names what has failed."""

import math
import numbers
from typing import NoReturn


def refuse(argument: str, got: object, accepted: str, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"{argument}: got {got}, accepted: {accepted}")


def check_choice(argument: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        refuse(argument, repr(value), ", ".join(accepted))


def check_count(argument: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        refuse(argument, repr(value), "an integer >= 1")


def check_number(argument: str, value: object, least: float, most: float = math.inf) -> None:
    accepted = f"a number >= {least}" if most == math.inf else f"a number from {least} to {most}"
    if not isinstance(value, numbers.Real):
        refuse(argument, f"a {type(value).__name__}", accepted, TypeError)
    elif not least <= float(value) <= most or not math.isfinite(float(value)):
        refuse(argument, value, accepted)


def check_fraction(argument: str, value: object, accepted: str = "a number above 0 and up to 1") -> None:
    if not isinstance(value, numbers.Real):
        refuse(argument, f"a {type(value).__name__}", accepted, TypeError)
    elif not 0 < float(value) <= 1:
        refuse(argument, value, accepted)


def first_line(error: Exception) -> str:
    """What an error says, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def brief(error: Exception) -> str:
    """An error's kind and what it says, on one line."""
    kind, said = type(error).__name__, first_line(error)
    return kind if said == kind else f"{kind}: {said}"
