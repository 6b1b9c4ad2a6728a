"""How tensors of any strides reach kernels that walk over dense memory: what lies otherwise is copied."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
from torch import Tensor

# Elements of a program: 8 per thread with four warps, so that bfloat16 is read in 128 bits as well. The
# interpreter spends its time on operations, however many elements each has.
BLOCK = 16384 if triton.knobs.runtime.interpret else 1024


# So many elements have places that 32 bits cannot hold, those of the last program's tail included.
WIDE_FROM = 2**31 - BLOCK

# No contraction to fma: the bits are those of the other backends.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps, in any order of the dimensions."""
    reach = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != reach:
            return False
        reach *= size
    return True


def same_layout(a: Tensor, b: Tensor) -> bool:
    strides = zip(a.shape, a.stride(), b.stride(), strict=True)
    return all(size == 1 or first == second for size, first, second in strides)


def in_layout_of(like: Tensor, tensor: Tensor) -> Tensor:
    """The tensor, copied where its elements lie in another order than those of like, which is dense."""
    return tensor if same_layout(like, tensor) else torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


@contextlib.contextmanager
def _in_place_of(tensor: Tensor, dense: Tensor) -> Iterator[Tensor]:
    """dense, to be written; the tensor then has what was written, and autograd knows."""
    yield dense
    if dense is not tensor:
        tensor.copy_(dense)
    elif not tensor.is_inference():  # a kernel on raw pointers leaves the version counter alone
        torch.autograd.graph.increment_version(tensor)


def updated(tensor: Tensor) -> AbstractContextManager[Tensor]:
    """Dense memory to read and write in place of the tensor."""
    return _in_place_of(tensor, tensor if is_dense(tensor) else tensor.contiguous())


def updated_in_layout_of(like: Tensor, tensor: Tensor | None) -> AbstractContextManager[Tensor | None]:
    """Memory in the layout of like to read and write in place of the tensor, if there is one."""
    if tensor is None:
        return contextlib.nullcontext()
    return _in_place_of(tensor, in_layout_of(like, tensor))


def written(tensor: Tensor | None, like: Tensor) -> AbstractContextManager[Tensor | None]:
    """Memory in the layout of like to write in place of the tensor, if there is one."""
    if tensor is None:
        return contextlib.nullcontext()
    fits = same_layout(like, tensor)
    return _in_place_of(tensor, tensor if fits else torch.empty_like(like, dtype=tensor.dtype))


def stride_of(vector: Tensor | None) -> int:
    return vector.stride(0) if vector is not None and vector.dim() else 0


def sized(value: float | Tensor) -> tuple[float, Tensor | None, int]:
    """A size as a kernel takes it: (number, tensor, stride)."""
    return (0.0, value, stride_of(value)) if isinstance(value, Tensor) else (value, None, 0)


def coordinate(tensor: Tensor, dim: int) -> tuple[int, int]:
    """(stride, size): the element at a place of dense memory has index place // stride % size in dim."""
    if tensor.dim() <= dim or tensor.shape[dim] == 1:
        return 1, 1
    return tensor.stride(dim), tensor.shape[dim]


def launch(kernel: Any, like: Tensor, count: int, *arguments: Any, **constants: Any) -> None:
    """Runs the kernel over count elements on like's device, in its current stream."""
    device = torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext()
    with device:
        kernel[(-(-count // BLOCK),)](
            *arguments, **constants, WIDE=count >= WIDE_FROM, BLOCK=BLOCK, **OPTIONS
        )
