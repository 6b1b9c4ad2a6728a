"""How this package refuses what it is given."""

from typing import NoReturn


def refuse(argument: str, got: object, accepted: str, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"{argument}: got {got}, accepted: {accepted}")
