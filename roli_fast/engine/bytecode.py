"""What compiled functions do to what they name, as far as their bytecode tells."""

import dis
import functools
import types
from collections.abc import Iterator
from pathlib import Path

import torch

# Methods that change a container. Those of tensors end in _.
_CHANGING = frozenset({
    "add", "append", "appendleft", "clear", "difference_update", "discard", "extend", "extendleft", "fill",
    "insert", "intersection_update", "pop", "popitem", "popleft", "remove", "reverse", "rotate", "setdefault",
    "sort", "subtract", "symmetric_difference_update", "update",
})  # fmt: skip

_REMEMBERED = 4096  # code objects, of which the names are found

_TORCH = str(Path(torch.__file__).parent)


def within(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code, and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from within(constant)


def instructions(code: types.CodeType) -> Iterator[dis.Instruction]:
    """Those of code, and of the functions inside it."""
    for part in within(code):
        yield from dis.get_instructions(part)


@functools.lru_cache(_REMEMBERED)
def names(code: types.CodeType) -> frozenset[str]:
    """With its strings, by which it may look methods up."""
    found = (name for part in within(code) for name in (*part.co_names, *part.co_consts))
    return frozenset(name for name in found if isinstance(name, str))


@functools.lru_cache(_REMEMBERED)
def looks_up(code: types.CodeType) -> bool:
    """Whether the code calls getattr with another name than a string in it, so that any method may be called;
    torch's containers look their parts up so."""
    if code.co_filename.startswith(_TORCH):
        return False
    for part in within(code):
        steps = [i for i in dis.get_instructions(part) if i.opname not in ("PRECALL", "CACHE")]
        for at, step in enumerate(steps):
            if step.opname == "LOAD_GLOBAL" and step.argval == "getattr":
                calls = (n for n in range(at, len(steps)) if steps[n].opname in ("CALL", "CALL_FUNCTION"))
                end = next(calls, at)
                # Where the name stands: last, or last but one before a default.
                named = steps[end - {3: 2}.get(steps[end].arg or 0, 1)]
                if named.opname != "LOAD_CONST" or not isinstance(named.argval, str):
                    return True
    return False


@functools.lru_cache(_REMEMBERED)
def names_with(code: types.CodeType, instruction: str) -> frozenset[str]:
    """The names with which the code has this instruction."""
    return frozenset(step.argval for step in instructions(code) if step.opname == instruction)


@functools.lru_cache(_REMEMBERED)
def changes_of(code: types.CodeType) -> frozenset[str]:
    """The names of the variables and attributes in which the code changes something in place: by an index, or
    by a method of containers or tensors."""
    found = set()
    for part in within(code):
        steps = list(dis.get_instructions(part))
        for at, step in enumerate(steps):
            if step.opname in ("LOAD_METHOD", "LOAD_ATTR") and _changes(step.argval):
                found |= _names_before(steps, at - 1)
            elif step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR"):
                found |= _names_before(steps, _before_value(steps, _before_index(steps, at)))
            elif step.opname == "STORE_SLICE":  # of Python 3.12 and later: between two indices
                upper = _before_index(steps, at)
                found |= _names_before(steps, _before_value(steps, _before_value(steps, upper)))
    return frozenset(found)


def _changes(method: str) -> bool:
    of_tensors = method.endswith("_") and not method.endswith("__") and method != "requires_grad_"
    return method in _CHANGING or of_tensors


def _before_index(steps: list[dis.Instruction], at: int) -> int:
    """Where the index ends with which the instruction there stores: in x[i] += 1, before both are copied."""
    at -= 1
    if steps[at].opname in ("SWAP", "ROT_THREE"):
        while at > 0 and steps[at].opname not in ("COPY", "DUP_TOP_TWO"):
            at -= 1
        while at > 0 and steps[at].opname in ("COPY", "DUP_TOP_TWO"):
            at -= 1
    return at


def _before_value(steps: list[dis.Instruction], end: int) -> int:
    """Where what is before a value ends, whose last instruction is given."""
    height = 0
    while end >= 0 and height < 1:
        height += dis.stack_effect(steps[end].opcode, steps[end].arg, jump=False)
        end -= 1
    return end


def _names_before(steps: list[dis.Instruction], end: int) -> set[str]:
    """The name of the variable or attribute, of which the last instruction is given; of what is in it too."""
    while end >= 0:
        step = steps[end]
        if step.opname in ("LOAD_GLOBAL", "LOAD_DEREF", "LOAD_ATTR"):
            return {step.argval}
        if step.opname != "BINARY_SUBSCR" and step.argrepr != "[]":
            return set()
        end = _before_value(steps, end - 1)
    return set()
