"""How an op comes into being: its schema stands once, in the file of its family, and :func:`define`
makes of it a torch op with a fake, a check and one implementation per backend.

``torch.ops.roli_fast.NAME`` is the default choice of each device. ``torch.ops.roli_fast_native.NAME``
are the compiled kernels, whatever the default is. Both have an overload ``tensor`` where sizes (step
size, eps) are tensors instead of numbers.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .choice import chosen, default_of

_DEFAULT = torch.library.Library("roli_fast", "DEF")
_NATIVE = torch.library.Library("roli_fast_native", "DEF")

Function = Callable[..., Any]

_FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclasses.dataclass(frozen=True)
class Op:
    """An op's overloads: sizes as numbers, or as tensors."""

    number: Function
    tensor: Function


def _overload(check: Function, implementations: dict[str, Function]) -> Function:
    """Runs the implementation of the backend that is chosen for the first argument's device."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return implementations[chosen(args[0])](*args, **kwargs)
        except Exception:
            # The native guard has refused, with nothing written. The check says it in full.
            check(*args, **kwargs)
            raise

    return call


def define(schema: str, *, check: Function, fake: Function, reference: Function) -> Op:
    """Registers an op with all its overloads and backends.

    schema: a torch schema without the name space; ``Size`` stands for a number or a tensor.
    check: takes the op's arguments and raises for those that the contract does not accept.
    fake: the op on metadata alone; returns None for an op that only writes to its arguments.
    reference: the op in plain torch; its formula is the op's definition.
    """
    name = schema[: schema.index("(")]

    def checked_fake(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return fake(*args, **kwargs)

    def checked_reference(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return reference(*args, **kwargs)

    def overload(full_name: str, size: str) -> Function:
        for library in (_DEFAULT, _NATIVE):
            library.define(full_name + schema[len(name) :].replace("Size", size))
            torch.library.register_fake(f"{library.ns}::{full_name}", checked_fake, lib=library)
            # No autograd node, not even one that warns: results never require a gradient.
            library.impl(full_name, torch.library.fallthrough_kernel, "Autograd")
        _DEFAULT.impl(full_name, checked_reference, "CompositeExplicitAutograd")
        if default_of("cpu") == "reference":  # in place of the native kernel, where there is one
            _DEFAULT.impl(full_name, checked_reference, "CPU")
        native = getattr(torch.ops.roli_fast_native, name)
        native = native.tensor if size == "Tensor" else native.default
        return _overload(check, {"cpu": native, "reference": checked_reference})

    # The tensor overload first: torch tries them in this order, and would turn a tensor of shape () into
    # a number.
    tensor = overload(f"{name}.tensor", "Tensor") if "Size" in schema else None
    number = overload(name, "float")
    return Op(number, tensor or number)


def sizes_as_tensors(like: Tensor, *sizes: float | Tensor) -> tuple[float | Tensor, ...]:
    """Sizes for the ``tensor`` overload: numbers become tensors of shape (), on like's device.

    What is no size is left as it is, for the op to refuse: in a tensor it would count as 0.
    """
    return tuple(_as_tensor(like, size) for size in sizes)


def _as_tensor(like: Tensor, size: float | Tensor) -> float | Tensor:
    if isinstance(size, Tensor) or not isinstance(like, Tensor):
        return size
    # In this order: the abstract class takes longer to ask than the tensor to make.
    if not isinstance(size, (float, int)) and not isinstance(size, numbers.Real):
        return size
    if not size >= 0:
        return size
    # new_full raises for a number beyond the dtype's range, which is infinite to an attack.
    beyond = size > _FLOAT32_MAX and size > torch.finfo(like.dtype).max
    return like.new_full((), math.inf if beyond else float(size))
