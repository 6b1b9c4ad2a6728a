"""How an op is defined. Its schema is written once, in the file of its family, or in ``family.py`` for the
ops that all families have. From it, :func:`define` makes a torch op with a fake, a check and one
implementation per backend.

``torch.ops.roli_fast.NAME`` runs the default backend of each device. Whatever the default is,
``torch.ops.roli_fast_native.NAME`` runs the compiled kernels and ``torch.ops.roli_fast_triton.NAME``
Triton's. All of them have an overload ``tensor``, in which sizes (step size, eps) are tensors instead of
numbers.
"""

import dataclasses
import importlib
import math
import numbers
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import reference
from .checks import has_memory
from .choice import backends, chosen, default_of

_DEFAULT = torch.library.Library("roli_fast", "DEF")
_NATIVE = torch.library.Library("roli_fast_native", "DEF")
_TRITON = torch.library.Library("roli_fast_triton", "DEF")

Function = Callable[..., Any]

_FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclasses.dataclass(frozen=True)
class Op:
    """An op's two overloads: one takes sizes as numbers, the other as tensors.

    most: the largest number that each size may be.
    """

    number: Function
    tensor: Function
    most: tuple[float, ...]

    def of_sizes(self, like: Tensor, *sizes: float | Tensor) -> tuple[Any, ...]:
        """Returns the overload for these sizes, followed by the sizes in the form that it takes.

        If any of them is a tensor, numbers become tensors of shape (), on like's device. A value that is no
        valid size is passed on unchanged, so that the op refuses it: as a tensor it would count as 0, or be
        accepted. The same holds for None, which in the overload for tensors stands for a default.
        """
        tensors = none = False
        for size in sizes:  # any() takes twice as long, which shows in a call of three microseconds
            tensors |= isinstance(size, Tensor)
            none |= size is None
        if none or not tensors:
            return self.number, *sizes
        by_most = zip(sizes, self.most, strict=True)
        return self.tensor, *(_as_tensor(like, size, most) for size, most in by_most)


def _as_tensor(like: Tensor, size: float | Tensor, most: float) -> float | Tensor:
    if isinstance(size, Tensor) or not isinstance(like, Tensor) or not like.is_floating_point():
        return size
    # In this order: the abstract class takes longer to ask than the tensor to make.
    if not isinstance(size, (float, int)) and not isinstance(size, numbers.Real):
        return size
    if not 0 <= size <= most:
        return size
    # new_full raises for a number beyond the dtype's range, which is infinite to an attack.
    beyond = size > _FLOAT32_MAX and size > torch.finfo(like.dtype).max
    return like.new_full((), math.inf if beyond else float(size))


def _overload(check: Function, implementations: dict[str, Function], written: tuple[int, ...]) -> Function:
    """Makes a function that runs the op on the backend chosen for the first argument's device.

    written: the positions of the arguments that the op writes to.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            # The native kernels tell autograd when they run, which is too late for what is traced: it would
            # take the new values for those that it saved.
            for i in written:
                if i < len(args) and args[i] is not None:
                    torch.autograd.graph.increment_version(args[i])
        elif _is_transformed():
            check(*args, **kwargs)  # the kernels do not see that a gradient or a tangent is asked for
        try:
            return implementations[chosen(args[0])](*args, **kwargs)
        except Exception as error:
            # The native guard has refused, with nothing written. The check says it in full.
            check(*args, **kwargs)
            if _lacks_memory(error, args[0].device):
                raise torch.OutOfMemoryError("no memory for an op's result") from error
            raise

    return call


def _tells_autograd(name: str, which: str, written: list[str], names: list[str]) -> Function:
    """A kernel that comes before all others of ``torch.ops.roli_fast``, for those who call these themselves:
    as in :func:`_overload`, autograd has to learn of what is written while it is traced."""

    def call(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        for argument in written:
            tensor = given.get(argument)
            if isinstance(tensor, Tensor) and not has_memory(tensor):
                torch.autograd.graph.increment_version(tensor)
        overload = getattr(getattr(torch.ops.roli_fast, name), which)
        return overload.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args, **kwargs)

    return call


def _is_transformed() -> bool:
    """Whether a transform of torch.func, or forward-mode differentiation, is under way."""
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return transformed or torch.autograd.forward_ad._current_level >= 0


def _lacks_memory(error: Exception, device: torch.device) -> bool:
    """Whether a native op has failed because memory ran out. All that the stable ABI says of that is that
    nothing was allocated."""
    if not any(said in str(error) for said in ("aten::empty_like failed", "roli_fast: no memory for")):
        return False
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return False  # it may be the capture that forbids it
        torch.cuda.synchronize(device)  # raises what has failed before, such as an assertion of the model's
    return True


def _no_result(**_: Any) -> None:
    """The fake of an op that only writes to its arguments."""


def _with_sizes(schema: str, size: str) -> str:
    if size == "Tensor":
        schema = re.sub(r"Size (\w+)=[\d.]+", r"Tensor? \1=None", schema)
    return schema.replace("Size", size)


def _default(argument: Any) -> Any:
    """The default of an argument. A schema gives dtypes as numbers, and the only default that an op has for a
    dtype is float."""
    return torch.float32 if argument.name == "dtype" else argument.default_value


def define(family: str, schema: str, *, check: Function, fake: Function = _no_result) -> Op:
    """Registers an op with all its overloads and backends. Its reference implementation is the function of
    the same name in ``reference``, and its Triton implementation is the one in ``kernels/FAMILY.py``.

    schema: a torch schema without the name space, in which ``Size`` stands for a number or a tensor. A size
        with a default is a share, which is at most 1, and which is optional as a tensor.
    check: called with the op's name and then its arguments; raises for arguments that are not accepted.
    fake: the op on metadata alone.

    The functions in Python are given all of the op's arguments, by name. Only the schema has their defaults.
    """
    name = schema[: schema.index("(")]
    parsed = torch._C.parse_schema(_with_sizes(schema, "float")).arguments
    names = [argument.name for argument in parsed]
    defaults = {argument.name: _default(argument) for argument in parsed if argument.has_default_value()}
    written = tuple(i for i, a in enumerate(parsed) if a.alias_info is not None and a.alias_info.is_write)
    sizes = re.findall(r"Size (\w+)(=?)", schema)
    shares = [size for size, optional in sizes if optional]

    def triton(**given: Any) -> Any:
        # When first called: importing Triton takes longer than importing the rest.
        return getattr(importlib.import_module(f"roli_fast.kernels.{family}"), name)(**given)

    def overload(full_name: str, size: str) -> Function:
        none_is_default = shares if size == "Tensor" else []

        def complete(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
            given = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
            for share in none_is_default:
                if given[share] is None:
                    given[share] = defaults[share]
            return given

        def checked(implementation: Function) -> Function:
            def call(*args: Any, **kwargs: Any) -> Any:
                given = complete(args, kwargs)
                check(name, **given)
                return implementation(**given)

            return call

        in_python = {"triton": checked(triton), "reference": checked(getattr(reference, name))}
        for library in (_DEFAULT, _NATIVE, _TRITON):
            library.define(full_name + _with_sizes(schema[len(name) :], size))
            torch.library.register_fake(f"{library.ns}::{full_name}", checked(fake), lib=library)
            # No autograd node, not even one that warns: results never require a gradient.
            library.impl(full_name, torch.library.fallthrough_kernel, "Autograd")
        for device in backends()["triton"].devices:
            _TRITON.impl(full_name, in_python["triton"], device.upper())
        _DEFAULT.impl(full_name, in_python["reference"], "CompositeExplicitAutograd")
        for device in ("cpu", "cuda"):
            default = default_of(device)
            if default in in_python:  # in place of native kernels, if any, of which torch warns
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
                    _DEFAULT.impl(full_name, in_python[default], device.upper())

        which = "tensor" if size == "Tensor" else "default"
        if written:
            overwrites = _tells_autograd(name, which, [names[i] for i in written], names)
            _DEFAULT.impl(full_name, overwrites, "ADInplaceOrView", with_keyset=True)
        native, by_triton = (
            getattr(getattr(getattr(torch.ops, library.ns), name), which) for library in (_NATIVE, _TRITON)
        )
        by_backend = {"cpu": native, "cuda": native, "triton": by_triton, "reference": in_python["reference"]}
        return _overload(checked(_no_result), by_backend, written)

    # The tensor overload first: torch tries them in this order, and would turn a tensor of shape () into
    # a number.
    tensor = overload(f"{name}.tensor", "Tensor") if sizes else None
    number = overload(name, "float")
    return Op(number, tensor or number, tuple(1.0 if optional else math.inf for _, optional in sizes))
