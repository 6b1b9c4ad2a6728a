"""The instructions of compiled functions."""

import dis
import types
from collections.abc import Iterator


def instructions(code: types.CodeType) -> Iterator[dis.Instruction]:
    """Those of code, and of the functions inside it."""
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from instructions(constant)
