"""How an op comes into being: its schema stands once, in the file of its family, and :func:`define`
makes of it a torch op with a fake, a check and one implementation per backend.

``torch.ops.roli_fast.NAME`` is the default choice of each device. ``torch.ops.roli_fast_native.NAME``
are the compiled kernels, ``torch.ops.roli_fast_triton.NAME`` Triton's, whatever the default is. All have an
overload ``tensor`` where sizes (step size, eps) are tensors instead of numbers.
"""

import dataclasses
import importlib
import math
import numbers
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .choice import backends, chosen, default_of

_DEFAULT = torch.library.Library("roli_fast", "DEF")
_NATIVE = torch.library.Library("roli_fast_native", "DEF")
_TRITON = torch.library.Library("roli_fast_triton", "DEF")

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


def _with_sizes(schema: str, size: str) -> str:
    if size == "Tensor":
        schema = re.sub(r"Size (\w+)=[\d.]+", r"Tensor? \1=None", schema)
    return schema.replace("Size", size)


def define(family: str, schema: str, *, check: Function, fake: Function, reference: Function) -> Op:
    """Registers an op with all its overloads and backends.

    family: the file of ``kernels`` in which Triton's implementation has the op's name.
    schema: a torch schema without the name space; ``Size`` stands for a number or a tensor. One with a
        default is optional as a tensor.
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

    def checked_triton(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        # When first called: importing Triton takes longer than importing the rest.
        return getattr(importlib.import_module(f"roli_fast.kernels.{family}"), name)(*args, **kwargs)

    in_python = {"triton": checked_triton, "reference": checked_reference}

    def overload(full_name: str, size: str) -> Function:
        for library in (_DEFAULT, _NATIVE, _TRITON):
            library.define(full_name + _with_sizes(schema[len(name) :], size))
            torch.library.register_fake(f"{library.ns}::{full_name}", checked_fake, lib=library)
            # No autograd node, not even one that warns: results never require a gradient.
            library.impl(full_name, torch.library.fallthrough_kernel, "Autograd")
        for device in backends()["triton"].devices:
            _TRITON.impl(full_name, checked_triton, device.upper())
        _DEFAULT.impl(full_name, checked_reference, "CompositeExplicitAutograd")
        for device in ("cpu", "cuda"):
            if (
                default := default_of(device)
            ) in in_python:  # in place of native kernels, where there are any
                _DEFAULT.impl(full_name, in_python[default], device.upper())
        which = "tensor" if size == "Tensor" else "default"
        native, triton = (
            getattr(getattr(getattr(torch.ops, library.ns), name), which) for library in (_NATIVE, _TRITON)
        )
        return _overload(
            check, {"cpu": native, "cuda": native, "triton": triton, "reference": checked_reference}
        )

    # The tensor overload first: torch tries them in this order, and would turn a tensor of shape () into
    # a number.
    tensor = overload(f"{name}.tensor", "Tensor") if "Size" in schema else None
    number = overload(name, "float")
    return Op(number, tensor or number)


def sizes_as_tensors(
    like: Tensor, *sizes: float | Tensor, share: float | Tensor | None = None
) -> tuple[float | Tensor, ...]:
    """Sizes, and a share that ends at 1, for the ``tensor`` overload: numbers become tensors of shape (), on
    like's device.

    What is no size is left as it is, for the op to refuse: in a tensor it would count as 0, or pass.
    """
    tensors = tuple(_as_tensor(like, size) for size in sizes)
    return tensors if share is None else (*tensors, _as_tensor(like, share, most=1))


def _as_tensor(like: Tensor, size: float | Tensor, most: float = math.inf) -> float | Tensor:
    if isinstance(size, Tensor) or not isinstance(like, Tensor):
        return size
    # In this order: the abstract class takes longer to ask than the tensor to make.
    if not isinstance(size, (float, int)) and not isinstance(size, numbers.Real):
        return size
    if not 0 <= size <= most:
        return size
    # new_full raises for a number beyond the dtype's range, which is infinite to an attack.
    beyond = size > _FLOAT32_MAX and size > torch.finfo(like.dtype).max
    return like.new_full((), math.inf if beyond else float(size))
