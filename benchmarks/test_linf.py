"""The fused Linf step against the torch expression in three forms, and against a copy.

``make bench``, or ``pytest benchmarks/test_linf.py``. The copy moves as many bytes as the step must: it
is what the memory allows an operation that reads as much as it writes. Timings are never asserted on;
contenders that do not compute the same fail.
"""

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from roli_fast import ops

from . import baselines, machine
from .timing import Call, Measurement, RecordedClock, interleaved

STEP_SIZE, EPS = 2 / 255, 8 / 255
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLOCK = RecordedClock()


@dataclass(frozen=True)
class Form:
    """A way to call the step; adv is float32, as in every attack here."""

    grad: torch.dtype = torch.float32
    clean: torch.dtype = torch.float32
    out: torch.dtype | None = None  # with mean and std
    layout: torch.memory_format = torch.contiguous_format  # of all tensors
    tensor_sizes: bool = False  # step_size and eps as tensors of shape ()

    @property
    def bytes_per_element(self) -> int:
        """What has to move: grad and clean are read, adv is read and written, out is written."""
        return self.grad.itemsize + self.clean.itemsize + 2 * 4 + (self.out.itemsize if self.out else 0)


BF16 = torch.bfloat16
FORMS = {  # bytes per element: grad + clean + adv read and written + out
    "float32": Form(),  # 4 + 4 + 8 = 16
    "tensor-sizes": Form(tensor_sizes=True),  # 4 + 4 + 8 = 16
    "bf16-grad": Form(grad=BF16),  # 2 + 4 + 8 = 14
    "uint8-clean": Form(clean=torch.uint8),  # 4 + 1 + 8 = 13
    "bf16-out": Form(grad=BF16, out=BF16),  # 2 + 4 + 8 + 2 = 16
    "bf16-out-channels-last": Form(grad=BF16, out=BF16, layout=torch.channels_last),  # the same
}


@dataclass(frozen=True)
class Size:
    shape: tuple[int, int, int, int]
    rounds: int
    repeats: int = 1  # calls per timing
    in_cache: bool = False  # else a call finds nothing of its data there, as after a model's backward


SIZES = {
    "1x1x28x28": Size((1, 1, 28, 28), rounds=100, repeats=300, in_cache=True),  # the cost of a call
    "128x3x32x32": Size((128, 3, 32, 32), rounds=300),
    "64x3x224x224": Size((64, 3, 224, 224), rounds=50),
}
if os.environ.get("ROLI_FAST_BENCH_QUICK") == "1":  # whether the benchmarks run, not how fast
    SIZES = {"2x3x8x8": Size((2, 3, 8, 8), rounds=3, in_cache=True)}

CONTENDERS = ("ours", "compiled", "preallocated", "expression", "copy")


@dataclass(frozen=True)
class Operands:
    """One set of tensors that the step works on."""

    adv: Tensor
    grad: Tensor
    clean: Tensor
    out: Tensor | None

    @property
    def nbytes(self) -> int:
        tensors = (self.adv, self.grad, self.clean, self.out)
        return sum(t.nbytes for t in tensors if t is not None)

    def clone(self) -> "Operands":
        out = None if self.out is None else self.out.clone()
        return Operands(self.adv.clone(), self.grad, self.clean, out)

    def call_of(
        self, step: Callable[..., Any], sizes: list[float | Tensor], normalization: dict[str, Tensor]
    ) -> Call:
        """The step on these operands. What it does not need is not passed: each keyword costs time."""
        if self.out is None:
            return partial(step, self.adv, self.grad, self.clean, *sizes)
        return partial(step, self.adv, self.grad, self.clean, *sizes, out=self.out, **normalization)


Bind = Callable[[Operands], Call]


def make_operands(form: Form, size: Size) -> Operands:
    clean = torch.rand(size.shape)
    adv = (clean + EPS * (2 * torch.rand(size.shape) - 1)).clamp(0, 1)
    if form.clean == torch.uint8:
        clean = (255 * clean).round()
    out = None if form.out is None else torch.empty(size.shape, dtype=form.out)
    tensors = (adv, torch.randn(size.shape).to(form.grad), clean.to(form.clean), out)
    return Operands(*(t if t is None else t.contiguous(memory_format=form.layout) for t in tensors))


def bind_steps(form: Form, example: Operands) -> dict[str, Bind]:
    """For each contender, what makes a call of it on given operands."""
    sizes = [torch.tensor(size) if form.tensor_sizes else size for size in (STEP_SIZE, EPS)]
    channels = example.adv.shape[1]
    per_channel = {"mean": torch.tensor(MEAN[:channels]), "std": torch.tensor(STD[:channels])}
    broadcast = {name: values.view(-1, 1, 1) for name, values in per_channel.items()}

    def bind(step: Callable[..., Any], normalization: dict[str, Tensor]) -> Bind:
        return lambda operands: operands.call_of(step, sizes, normalization)

    return {
        "ours": bind(ops.linf_step_, per_channel),
        "compiled": bind(baselines.compiled(baselines.linf_step_), broadcast),
        "preallocated": bind(
            baselines.PreallocatedLinfStep(example.adv, example.grad, example.clean), broadcast
        ),
        "expression": bind(baselines.linf_step, broadcast),
    }


def make_copy(form: Form, size: Size) -> Call:
    """Reads half of the step's bytes and writes the other half."""
    source = torch.rand(math.prod(size.shape) * form.bytes_per_element // (2 * torch.float32.itemsize))
    return partial(torch.empty_like(source).copy_, source)


def check_same_result(steps: dict[str, Bind], operands: Operands) -> None:
    """Every contender's adv is ours up to its last bit, and its out up to one rounding."""
    expected = operands.clone()
    steps["ours"](expected)()
    assert not torch.equal(expected.adv, operands.adv)
    for name, bind in steps.items():
        own = operands.clone()
        adv, out = bind(own)() or (own.adv, own.out)  # written in place, unless it is returned
        explain = f"{name} differs from ours: {{}}".format
        torch.testing.assert_close(adv, expected.adv, rtol=0, atol=2**-23, msg=explain)
        if out is not None:
            torch.testing.assert_close(out, expected.out, rtol=2**-7, atol=2**-20, msg=explain)


def number_of_versions(operands: Operands, in_cache: bool) -> int:
    """So many sets of operands that using the others flushes the caches several times over."""
    return 1 if in_cache else 1 + math.ceil(4 * machine.last_level_cache() / operands.nbytes)


@functools.cache
def measure(form_name: str, size_name: str) -> Measurement:
    form, size = FORMS[form_name], SIZES[size_name]
    torch.manual_seed(0)
    first = make_operands(form, size)
    steps = bind_steps(form, first)
    check_same_result(steps, first)
    versions = number_of_versions(first, size.in_cache)
    operands = [first] + [make_operands(form, size) for _ in range(versions - 1)]
    contenders = {name: [bind(o) for o in operands] for name, bind in steps.items()}
    contenders["copy"] = [make_copy(form, size) for _ in range(versions)]
    return interleaved(contenders, size.rounds, size.repeats)


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_linf_step(benchmark: Any, record_case: Callable, form: str, size: str, contender: str) -> None:
    measured = measure(form, size)
    must_move = math.prod(SIZES[size].shape) * FORMS[form].bytes_per_element
    benchmark.group = f"linf_step_ {form} {size}"
    benchmark.extra_info.update(
        bytes_per_element=FORMS[form].bytes_per_element,
        in_cache=SIZES[size].in_cache,
        calls_per_timing=SIZES[size].repeats,
        effective_gb_per_s=must_move / measured.seconds_of(contender)["median"] / 1e9,
        ratio_to_copy=measured.ratio(contender, "copy"),
        ratio_to_ours=measured.ratio(contender, "ours"),
        other_cores_busy=measured.other_cores,
    )
    benchmark.pedantic(CLOCK.replay(measured.seconds[contender]), rounds=SIZES[size].rounds)
    if contender == "ours":
        record_case(form, size, measured)
