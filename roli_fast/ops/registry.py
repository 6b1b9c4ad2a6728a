"""How an op comes into being: its schema stands once, in the file of its family, and :func:`define`
makes of it a torch op with a fake, a check and one implementation per backend.

``torch.ops.roli_fast.NAME`` is the default choice of each device. ``torch.ops.roli_fast_native.NAME``
are the compiled kernels, whatever the default is. Both have an overload ``tensor`` where sizes (step
size, eps) are tensors instead of numbers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .choice import chosen, default_of

_DEFAULT = torch.library.Library("roli_fast", "DEF")
_NATIVE = torch.library.Library("roli_fast_native", "DEF")

Function = Callable[..., Any]


class Overload:
    """A callable that runs the chosen backend's implementation on the first argument's device."""

    def __init__(self, check: Function, implementations: dict[str, Function]):
        self._check = check
        self._implementations = implementations

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._implementations[chosen(args[0])](*args, **kwargs)
        except Exception:
            # The native guard has refused, with nothing written. The check says it in full.
            self._check(*args, **kwargs)
            raise


@dataclasses.dataclass(frozen=True)
class Op:
    """An op's overloads: sizes as numbers, or as tensors."""

    number: Overload
    tensor: Overload


def define(schema: str, *, check: Function, fake: Function, reference: Function) -> Op:
    """Registers an op with all its overloads and backends.

    schema: a torch schema without the name space; ``Size`` stands for a number or a tensor.
    check: takes the op's arguments and raises for those that the contract does not accept.
    fake: the op on metadata alone; None for ops that only write to their arguments.
    reference: the op in plain torch; its formula is the op's definition.
    """
    name = schema[: schema.index("(")]

    def checked_fake(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return fake(*args, **kwargs)

    def checked_reference(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return reference(*args, **kwargs)

    def overload(full_name: str, size: str) -> Overload:
        for library in (_DEFAULT, _NATIVE):
            library.define(full_name + schema[len(name) :].replace("Size", size))
            torch.library.register_fake(f"{library.ns}::{full_name}", checked_fake, lib=library)
        _DEFAULT.impl(full_name, checked_reference, "CompositeExplicitAutograd")
        if default_of("cpu") == "reference":
            _DEFAULT.impl(
                full_name, checked_reference, "CPU"
            )  # replaces the native kernel where there is one
        native = getattr(
            getattr(torch.ops.roli_fast_native, name), "tensor" if size == "Tensor" else "default"
        )
        return Overload(check, {"cpu": native, "reference": checked_reference})

    number = overload(name, "float")
    return Op(number, overload(f"{name}.tensor", "Tensor") if "Size" in schema else number)


def sizes_as_tensors(like: Tensor, *sizes: float | Tensor) -> tuple[Tensor, ...]:
    """Sizes for the ``tensor`` overload: numbers become tensors of shape (), on like's device."""
    return tuple(size if isinstance(size, Tensor) else like.new_full((), size) for size in sizes)
