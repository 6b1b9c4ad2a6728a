"""How tensors of any strides reach kernels that walk over dense memory: a tensor that is not dense is copied.

An op that needs sums over a sample needs samples that follow each other in memory; a program then works on a
part of one. How a sample is cut depends on its own size alone, so that the rest of the batch does not change
its bits.
"""

import contextlib
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
from torch import Tensor

# Elements of a program: 8 per thread with four warps, so that bfloat16 is read in 128 bits as well. The
# interpreter spends its time on operations, however many elements each has.
BLOCK = 16384 if triton.knobs.runtime.interpret else 1024

# The same for a program that has a sample for itself, with more warps.
LARGE_BLOCK = BLOCK if triton.knobs.runtime.interpret else 4 * BLOCK
LARGE_WARPS = 16

# The most parts that a sample is cut into. Every program that needs a sample's sum adds up its parts' sums.
PARTS = 128

# From so many elements on, 32 bits cannot hold all places, those of the last program's tail included.
WIDE_FROM = 2**31 - LARGE_BLOCK

# No contraction to fma, which would change the bits.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps, in any order of the dimensions."""
    reach = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != reach:
            return False
        reach *= size
    return True


def is_dense_by_sample(tensor: Tensor) -> bool:
    """Whether it is dense, with one sample after the other."""
    samples = len(tensor)
    return is_dense(tensor) and (samples == 1 or tensor.stride(0) == tensor.numel() // samples)


def same_layout(a: Tensor, b: Tensor) -> bool:
    strides = zip(a.shape, a.stride(), b.stride(), strict=True)
    return all(size == 1 or first == second for size, first, second in strides)


def in_layout_of(like: Tensor, tensor: Tensor) -> Tensor:
    """The tensor, copied where its elements lie in another order than those of like, which is dense."""
    return tensor if same_layout(like, tensor) else torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def start_like(clean: Tensor) -> Tensor:
    """Memory for a random start: the state of an attack on clean."""
    dtype = torch.float64 if clean.dtype == torch.float64 else torch.float32
    return torch.empty_like(clean, dtype=dtype)


@contextlib.contextmanager
def _in_place_of(tensor: Tensor, dense: Tensor) -> Iterator[Tensor]:
    """Yields dense, to be written. The tensor then has what was written, and autograd knows."""
    yield dense
    if dense is not tensor:
        tensor.copy_(dense)
    else:
        notify_autograd(tensor)


def notify_autograd(tensor: Tensor) -> None:
    """A kernel on raw pointers leaves the version counter alone."""
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def updated(tensor: Tensor) -> AbstractContextManager[Tensor]:
    """Dense memory to read and write in place of the tensor."""
    return _in_place_of(tensor, tensor if is_dense(tensor) else tensor.contiguous())


def updated_by_sample(tensor: Tensor) -> AbstractContextManager[Tensor]:
    """Dense memory, one sample after the other, to read and write in place of the tensor."""
    return _in_place_of(tensor, tensor if is_dense_by_sample(tensor) else tensor.contiguous())


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


def _stride_of(vector: Tensor | None) -> int:
    return vector.stride(0) if vector is not None and vector.dim() else 0


def strided(*vectors: Tensor | None) -> tuple[Tensor | int | None, ...]:
    """Vectors as a kernel takes them: (tensor, stride) of each."""
    return tuple(itertools.chain(*((vector, _stride_of(vector)) for vector in vectors)))


def sized(*sizes: float | Tensor) -> tuple[float | Tensor | int | None, ...]:
    """Sizes as a kernel takes them: (number, tensor, stride) of each."""
    split = ((0.0, x, _stride_of(x)) if isinstance(x, Tensor) else (x, None, 0) for x in sizes)
    return tuple(itertools.chain(*split))


def coordinate(tensor: Tensor, dim: int) -> tuple[int, int]:
    """(stride, size): the element at a place of dense memory has index place // stride % size in dim."""
    if tensor.dim() <= dim or tensor.shape[dim] == 1:
        return 1, 1
    return tensor.stride(dim), tensor.shape[dim]


def launch(kernel: Any, like: Tensor, count: int, *arguments: Any, **constants: Any) -> None:
    """Runs the kernel over count elements on like's device, in its current stream."""
    _launch(kernel, like, -(-count // BLOCK), *arguments, **constants, WIDE=count >= WIDE_FROM)


def launch_by_sample(kernel: Any, like: Tensor, *arguments: Any, **constants: Any) -> None:
    """Runs the kernel over the parts of the samples of like, which are not empty. Its first arguments are the
    numbers of elements and parts of a sample, and of blocks of a part."""
    elements = like.numel() // len(like)
    parts, blocks = cut(elements)
    whole, wide = elements % 16 == 0, elements >= WIDE_FROM
    arguments = (elements, parts, blocks, *arguments)
    _launch(kernel, like, len(like) * parts, *arguments, **constants, WHOLE=whole, WIDE=wide)


def launch_sample_each(kernel: Any, like: Tensor, *arguments: Any) -> None:
    """Runs a program for each sample of like, which are not empty. The kernel's first argument is a sample's
    number of elements."""
    elements = like.numel() // len(like)
    whole, wide = elements % 16 == 0, elements >= WIDE_FROM
    options = {"num_warps": LARGE_WARPS, "BLOCK": LARGE_BLOCK}
    _launch(kernel, like, len(like), elements, *arguments, **options, WHOLE=whole, WIDE=wide)


def launch_by_row(kernel: Any, rows: Tensor, *arguments: Any) -> None:
    """Runs a program for each of the rows (N, columns), which are not empty. The kernel's first argument is
    the number of columns."""
    columns = rows.shape[1]
    block = min(BLOCK, triton.next_power_of_2(columns))
    options = {"num_warps": max(1, min(4, block // 64)), "BLOCK": block}
    _launch(kernel, rows, len(rows), columns, *arguments, **options)


def cut(elements: int) -> tuple[int, int]:
    """How many parts a sample has, and how many blocks a part has."""
    blocks = -(-elements // BLOCK)
    per_part = -(-blocks // PARTS)
    return -(-blocks // per_part), per_part


def _launch(kernel: Any, like: Tensor, programs: int, *arguments: Any, **constants: Any) -> None:
    device = torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext()
    with device:
        kernel[(programs,)](*arguments, **({"BLOCK": BLOCK} | OPTIONS | constants))
