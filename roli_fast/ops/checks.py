"""Checks of the ops' arguments, the same for all backends. They look at metadata and numbers, never at a
tensor's values.

An error names the op and the argument, what was given and what is accepted. The native guard
(``csrc/torch_tensors.h``) refuses the same calls; these functions then say why. They take the op's name
first, and all of its arguments by name.
"""

import numbers
from typing import Any, NoReturn

import numpy
import torch
from torch import Tensor

STATE_DTYPES = (torch.float32, torch.float64)
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
IMAGE_DTYPES = (*FLOAT_DTYPES, torch.uint8)

# Steps after which the search for a shared element gives up and says that there is one.
_OVERLAP_SEARCH: Any = 10_000


def _refuse(
    op: str, argument: str, got: object, accepted: str, error: type[Exception] = ValueError
) -> NoReturn:
    raise error(f"{op}: {argument}: got {got}, accepted: {accepted}")


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _tensor(op: str, argument: str, value: object, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(value, Tensor):
        _refuse(op, argument, f"a {type(value).__name__}", f"a tensor of dtype {_names(dtypes)}", TypeError)
    if value.dtype not in dtypes:
        _refuse(op, argument, f"dtype {_names((value.dtype,))}", _names(dtypes))
    if value.layout != torch.strided:
        _refuse(op, argument, f"layout {value.layout}", "torch.strided")
    if torch._C._functorch.is_batchedtensor(value):
        accepted = "a call outside of it: an op takes all samples at once"
        _refuse(op, argument, "a tensor inside torch.func.vmap", accepted, RuntimeError)
    if has_memory(value) and value.is_neg():
        _refuse(op, argument, "a negated view", f"{argument}.resolve_neg()")
    size = value.element_size()
    if has_memory(value) and value.numel() > 0 and value.data_ptr() == 0:
        _refuse(op, argument, "a tensor whose memory was freed", "one that has its memory")
    if has_memory(value) and value.data_ptr() % size:
        _refuse(op, argument, f"elements that are not aligned to {size} bytes", f"{argument}.clone()")


def _like(
    op: str, argument: str, value: object, dtypes: tuple[torch.dtype, ...], name: str, like: Tensor
) -> None:
    _tensor(op, argument, value, dtypes)
    assert isinstance(value, Tensor)
    if value.shape != like.shape:
        _refuse(op, argument, f"shape {tuple(value.shape)}", f"{name}'s shape {tuple(like.shape)}")
    _device(op, argument, value, name, like)


def _device(op: str, argument: str, value: Tensor, name: str, like: Tensor) -> None:
    if value.device != like.device:
        _refuse(op, argument, f"device {value.device}", f"{name}'s device {like.device}")


def _vector(
    op: str, argument: str, value: object, dtype: torch.dtype, length: int, meaning: str, like: Tensor
) -> None:
    _tensor(op, argument, value, (dtype,))
    assert isinstance(value, Tensor)
    if tuple(value.shape) != (length,):
        _refuse(op, argument, f"shape {tuple(value.shape)}", f"{meaning} = ({length},)")
    _device(op, argument, value, "the first tensor", like)


def _batch(op: str, argument: str, value: Tensor) -> None:
    if value.dim() == 0:
        _refuse(op, argument, "shape ()", "(N, ...), N samples")


def _state(op: str, argument: str, value: Tensor) -> None:
    _tensor(op, argument, value, STATE_DTYPES)
    _batch(op, argument, value)


def _number(op: str, argument: str, value: object, accepted: str) -> Any:
    if not isinstance(value, (numbers.Real, torch.SymFloat, torch.SymInt)):
        _refuse(op, argument, f"a {type(value).__name__}", accepted, TypeError)
    return value


def _size(op: str, argument: str, value: object, like: Tensor, dtype: torch.dtype) -> None:
    """Checks a step size or eps: a number, or a tensor of shape () or (N,) of the state's dtype."""
    accepted = f"a number >= 0, or a {_names((dtype,))} tensor of shape () or (N,)"
    if isinstance(value, Tensor):
        _tensor(op, argument, value, (dtype,))
        if tuple(value.shape) not in ((), (like.shape[0],)):
            _refuse(op, argument, f"shape {tuple(value.shape)}", f"{accepted}, N = {like.shape[0]}")
        _device(op, argument, value, "the first tensor", like)
    elif not _number(op, argument, value, accepted) >= 0:
        _refuse(op, argument, value, accepted)


def _share(op: str, argument: str, value: object, like: Tensor, dtype: torch.dtype) -> None:
    """Checks a share: a number from 0 to 1, or a tensor such as :func:`_size` accepts."""
    if isinstance(value, Tensor):
        _size(op, argument, value, like, dtype)
        return
    accepted = f"a number from 0 to 1, or a {_names((dtype,))} tensor of shape () or (N,)"
    if not 0 <= _number(op, argument, value, accepted) <= 1:
        _refuse(op, argument, value, accepted)


def _box(op: str, lo: object, hi: object) -> None:
    for name, value in (("lo", lo), ("hi", hi)):
        number = _number(op, name, value, "a number")
        if number != number:
            _refuse(op, name, value, "a number")
    if not _number(op, "lo", lo, "a number") <= hi:
        _refuse(op, "lo", f"{lo}, above hi = {hi}", "lo <= hi")


def _not_differentiable(op: str, argument: str, value: Tensor) -> None:
    if value.requires_grad and torch.is_grad_enabled():
        _refuse(
            op,
            argument,
            "a tensor that requires a gradient, in grad mode",
            f"{argument}.detach(), or a call under torch.no_grad() (the op is not differentiable)",
            RuntimeError,
        )
    if _has_tangent(value):  # in any grad mode: torch.no_grad() is for gradients alone
        got = "a tensor with a tangent, in forward-mode differentiation"
        _refuse(op, argument, got, f"{argument}.detach() (the op is not differentiable)", RuntimeError)


def _has_tangent(value: Tensor) -> bool:
    forward_ad = torch.autograd.forward_ad
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None


def _normalization(op: str, adv: Tensor, mean: Tensor | None, std: Tensor | None) -> None:
    if mean is None and std is None:
        return
    if mean is None or std is None:
        _refuse(op, "std" if std is None else "mean", None, "mean and std together, or neither")
    if adv.dim() < 2:
        _refuse(
            op,
            "mean",
            f"a mean for shape {tuple(adv.shape)}",
            "(N, C, ...) tensors, where there are channels",
        )
    for name, value in (("mean", mean), ("std", std)):
        _vector(op, name, value, adv.dtype, adv.shape[1], "(C,)", adv)


def has_memory(*tensors: Tensor) -> bool:
    """Whether these tensors have addresses, which those that a compiler traces with do not have."""
    return not torch.compiler.is_compiling() and all(
        type(t) in (Tensor, torch.nn.Parameter)
        and t.device.type != "meta"
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
        for t in tensors
    )


def _not_self_overlapping(op: str, argument: str, value: Tensor) -> None:
    if not has_memory(value) or value.numel() == 0:
        return
    reach = 0
    for stride, size in sorted((s, n) for s, n in zip(value.stride(), value.shape, strict=True) if n > 1):
        if stride <= reach:
            _refuse(
                op,
                argument,
                f"a tensor whose elements overlap (shape {tuple(value.shape)}, strides {value.stride()})",
                f"one memory location per element: {argument}.clone()",
            )
        reach += (size - 1) * stride


class _Address:
    """A tensor's place in memory, as numpy understands it. The memory itself is never touched."""

    def __init__(self, tensor: Tensor):
        size = tensor.element_size()
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{size}",
            "shape": tuple(tensor.shape),
            "strides": tuple(stride * size for stride in tensor.stride()),
            "data": (tensor.data_ptr(), True),
        }


def _disjoint(op: str, written_name: str, written: Tensor, name: str, value: Tensor) -> None:
    if not has_memory(written, value) or written.numel() == 0:
        return
    try:
        shared = numpy.shares_memory(
            numpy.asarray(_Address(written)), numpy.asarray(_Address(value)), _OVERLAP_SEARCH
        )
    except numpy.exceptions.TooHardError:
        shared = True
    if shared:
        _refuse(
            op,
            name,
            f"a tensor that shares memory with {written_name}, which is written",
            f"a tensor of its own: {name}.clone()",
        )


def _written(op: str, argument: str, value: Tensor, /, **others: object) -> None:
    """others: what must not share its memory; numbers have none."""
    _not_differentiable(op, argument, value)
    if has_memory(value) and value.is_inference() and not torch.is_inference_mode_enabled():
        got = "an inference tensor, outside inference mode"
        _refuse(op, argument, got, f"{argument}.clone()", RuntimeError)
    _not_self_overlapping(op, argument, value)
    for name, other in others.items():
        if isinstance(other, Tensor):
            _disjoint(op, argument, value, name, other)


def step(
    op: str,
    adv: Tensor,
    grad: Tensor,
    clean: Tensor,
    step_size: float | Tensor,
    eps: float | Tensor,
    lo: float,
    hi: float,
    active: Tensor | None,
    out: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    *,
    previous: Tensor | None = None,
    **shares: float | Tensor,
) -> None:
    """Checks the arguments of every ``*_step_``. previous and shares are arguments of some of them."""
    _state(op, "adv", adv)
    _like(op, "grad", grad, FLOAT_DTYPES, "adv", adv)
    _like(op, "clean", clean, IMAGE_DTYPES, "adv", adv)
    _size(op, "step_size", step_size, adv, adv.dtype)
    _size(op, "eps", eps, adv, adv.dtype)
    _box(op, lo, hi)
    if active is not None:
        _vector(op, "active", active, torch.bool, adv.shape[0], "(N,)", adv)
    if out is not None:
        _like(op, "out", out, FLOAT_DTYPES, "adv", adv)
    elif mean is not None or std is not None:
        _refuse(op, "mean" if std is None else "std", "a tensor, without out", "mean and std only with out")
    _normalization(op, adv, mean, std)
    sizes = {"step_size": step_size, "eps": eps, **shares}
    _written(op, "adv", adv, previous=previous, grad=grad, clean=clean, out=out, **sizes)
    if previous is not None:
        _written(op, "previous", previous, grad=grad, clean=clean, out=out, **sizes)
    if out is not None:
        _written(op, "out", out, grad=grad, clean=clean, **sizes)


def apgd_step(op: str, adv: Tensor, previous: Tensor, momentum: float | Tensor, **others: Any) -> None:
    """Checks the arguments of every ``*_apgd_step_``."""
    _state(op, "adv", adv)
    _like(op, "previous", previous, (adv.dtype,), "adv", adv)
    _share(op, "momentum", momentum, adv, adv.dtype)
    step(op, adv, previous=previous, momentum=momentum, **others)


def l1_step(op: str, adv: Tensor, sparsity: float | Tensor, **others: Any) -> None:
    """Checks the arguments of ``l1_step_``."""
    _state(op, "adv", adv)
    _share(op, "sparsity", sparsity, adv, adv.dtype)
    step(op, adv, sparsity=sparsity, **others)


def momentum(op: str, momentum: Tensor, grad: Tensor, decay: float) -> None:
    """Checks the arguments of ``momentum_``."""
    _state(op, "momentum", momentum)
    _like(op, "grad", grad, FLOAT_DTYPES, "momentum", momentum)
    if not _number(op, "decay", decay, "a number >= 0") >= 0:
        _refuse(op, "decay", decay, "a number >= 0")
    _written(op, "momentum", momentum, grad=grad)


def keep_best(
    op: str, best: Tensor, best_value: Tensor, adv: Tensor, value: Tensor, active: Tensor | None
) -> None:
    """Checks the arguments of ``keep_best_``."""
    _state(op, "best", best)
    _like(op, "adv", adv, (best.dtype,), "best", best)
    for name, vector in (("best_value", best_value), ("value", value)):
        _vector(op, name, vector, best.dtype, best.shape[0], "(N,)", best)
    if active is not None:
        _vector(op, "active", active, torch.bool, best.shape[0], "(N,)", best)
    _written(op, "best", best, adv=adv, best_value=best_value, value=value)
    _written(op, "best_value", best_value, value=value, adv=adv)


def project(op: str, adv: Tensor, clean: Tensor, eps: float | Tensor, lo: float, hi: float) -> None:
    """Checks the arguments of every ``*_project_``."""
    _state(op, "adv", adv)
    _like(op, "clean", clean, IMAGE_DTYPES, "adv", adv)
    _size(op, "eps", eps, adv, adv.dtype)
    _box(op, lo, hi)
    _written(op, "adv", adv, clean=clean, eps=eps)


def state_dtype(clean: Tensor) -> torch.dtype:
    """The dtype of an attack's state for these clean images: float64 for float64, otherwise float32."""
    return torch.float64 if clean.dtype == torch.float64 else torch.float32


def start(
    op: str,
    clean: Tensor,
    eps: float | Tensor,
    seed: Tensor,
    lo: float,
    hi: float,
    index: Tensor | None,
) -> None:
    """Checks the arguments of every ``*_start``."""
    _tensor(op, "clean", clean, IMAGE_DTYPES)
    _batch(op, "clean", clean)
    _size(op, "eps", eps, clean, state_dtype(clean))
    _vector(op, "seed", seed, torch.int64, 2, "(2,)", clean)
    _box(op, lo, hi)
    if index is not None:
        _vector(op, "index", index, torch.int64, clean.shape[0], "(N,)", clean)
    _not_differentiable(op, "clean", clean)


def prepare(
    op: str,
    adv: Tensor,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
    memory_format: torch.memory_format | None,
) -> None:
    """Checks the arguments of ``prepare``."""
    _state(op, "adv", adv)
    _normalization(op, adv, mean, std)
    if dtype not in FLOAT_DTYPES:
        _refuse(op, "dtype", dtype, _names(FLOAT_DTYPES))
    formats = (
        None,
        torch.preserve_format,
        torch.contiguous_format,
        torch.channels_last,
        torch.channels_last_3d,
    )
    if memory_format not in formats:
        _refuse(op, "memory_format", memory_format, ", ".join(map(str, formats[1:])))
    ranks = {torch.channels_last: 4, torch.channels_last_3d: 5}
    if memory_format in ranks and adv.dim() != ranks[memory_format]:
        _refuse(op, "memory_format", f"{memory_format} for rank {adv.dim()}", f"rank {ranks[memory_format]}")
    _not_differentiable(op, "adv", adv)


def cross_entropy(op: str, logits: Tensor, labels: Tensor) -> None:
    """Checks the arguments of ``cross_entropy``."""
    _tensor(op, "logits", logits, STATE_DTYPES)
    if logits.dim() != 2 or logits.shape[1] == 0:
        _refuse(op, "logits", f"shape {tuple(logits.shape)}", "(N, classes), one class or more")
    _vector(op, "labels", labels, torch.int64, logits.shape[0], "(N,)", logits)
    _not_differentiable(op, "logits", logits)
