"""The fused ops of the Linf family against the torch expression in several forms, and against a copy.

``make bench``, or ``pytest benchmarks/test_linf.py``, with ``--device cuda`` on a GPU. The copy moves as many
bytes as the op must: it is what the memory allows an operation that reads as much as it writes. Timings are
never asserted on; contenders that do not compute the same fail.
"""

import functools
import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import roli_fast
from roli_fast import ops

from . import baselines, machine
from .timing import Call, Measurement, RecordedClock, interleaved, launches, on_the_clock, on_the_gpu

STEP_SIZE, EPS = 2 / 255, 8 / 255
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLOCK = RecordedClock()


@dataclass(frozen=True)
class Form:
    """A way to call an op; adv is float32, as in every attack here."""

    op: str = "linf_step_"
    grad: torch.dtype = torch.float32
    clean: torch.dtype = torch.float32
    out: torch.dtype | None = None  # with mean and std
    layout: torch.memory_format = torch.contiguous_format  # of all tensors
    tensor_sizes: bool = False  # step_size and eps as tensors of shape ()

    @property
    def bytes_per_element(self) -> int:
        """What has to move: inputs are read, outputs are written, the adv of a step is both."""
        out = self.out.itemsize if self.out else 0
        return {
            "linf_step_": self.grad.itemsize + self.clean.itemsize + 2 * 4 + out,
            "linf_project_": self.clean.itemsize + 2 * 4,
            "linf_start": self.clean.itemsize + 4,
            "prepare": 4 + out,
        }[self.op]


BF16, UINT8, LAST = torch.bfloat16, torch.uint8, torch.channels_last
FORMS = {  # bytes per element: grad + clean + adv read and written + out
    "float32": Form(),  # 4 + 4 + 8 = 16
    "tensor-sizes": Form(tensor_sizes=True),  # 4 + 4 + 8 = 16
    "bf16-grad": Form(grad=BF16),  # 2 + 4 + 8 = 14
    "uint8-clean": Form(clean=UINT8),  # 4 + 1 + 8 = 13
    "bf16-out": Form(grad=BF16, out=BF16),  # 2 + 4 + 8 + 2 = 16
    "bf16-out-channels-last": Form(grad=BF16, out=BF16, layout=LAST),  # the same
}
OTHER_OPS = {
    "project": Form("linf_project_"),  # 4 + 8 = 12
    "start": Form("linf_start"),  # 4 + 4 = 8
    "prepare-bf16": Form("prepare", out=BF16),  # 4 + 2 = 6
}
ON_A_GPU = {
    "float32-channels-last": Form(layout=LAST),
    "bf16-grad-channels-last": Form(grad=BF16, layout=LAST),
    "uint8-clean-channels-last": Form(clean=UINT8, layout=LAST),
    "project-channels-last": Form("linf_project_", layout=LAST),
    "project-uint8-clean": Form("linf_project_", clean=UINT8),
    "start-channels-last": Form("linf_start", layout=LAST),
    "start-uint8-clean": Form("linf_start", clean=UINT8),
    "prepare-float32": Form("prepare", out=torch.float32),
    "prepare-bf16-channels-last": Form("prepare", out=BF16, layout=LAST),
}


@dataclass(frozen=True)
class Size:
    shape: tuple[int, int, int, int]
    rounds: int
    repeats: int = 1  # calls per timing
    in_cache: bool = False  # else a call finds nothing of its data there, as after a model's backward


SIZES = {
    "cpu": {
        "1x1x28x28": Size((1, 1, 28, 28), rounds=100, repeats=300, in_cache=True),  # the cost of a call
        "128x3x32x32": Size((128, 3, 32, 32), rounds=300),
        "64x3x224x224": Size((64, 3, 224, 224), rounds=50),
    },
    "cuda": {
        "1x1x28x28": Size((1, 1, 28, 28), rounds=20, repeats=200, in_cache=True),  # the cost of a call
        "128x3x32x32": Size((128, 3, 32, 32), rounds=50),
        "512x3x224x224": Size((512, 3, 224, 224), rounds=30),  # 308 MB each in float32
    },
}
ALL_FORMS = FORMS | OTHER_OPS | ON_A_GPU
QUICK = {"2x3x8x8": Size((2, 3, 8, 8), rounds=3, in_cache=True)}  # whether it runs, not how fast


def contenders(form: Form, device: str) -> tuple[str, ...]:
    """In the order of the tables. Ours is the default backend of the device."""
    rivals = ["compiled"]
    if form.op == "linf_step_":
        rivals.append("preallocated")
    if device == "cuda" and form.op.endswith("_"):  # what does not write in place makes a new tensor anyway
        rivals.append("compiled-new")
    return ("ours", *(["triton"] if device == "cuda" else []), *rivals, "expression", "copy")


def pytest_generate_tests(metafunc: Any) -> None:
    """A test per form, size and contender of the device."""
    device = metafunc.config.getoption("--device")
    forms = FORMS | OTHER_OPS | (ON_A_GPU if device == "cuda" else {})
    sizes = QUICK if os.environ.get("ROLI_FAST_BENCH_QUICK") == "1" else SIZES[device]
    cases = [
        (device, form, size, contender)
        for form in forms
        for size in (sizes if form in FORMS | OTHER_OPS else largest(sizes, device))
        for contender in contenders(forms[form], device)
    ]
    metafunc.parametrize(("device", "form", "size", "contender"), cases)


def largest(sizes: Collection[str], device: str) -> list[str]:
    """On a GPU, where compiling the rivals takes most of the time, further forms are measured in one size."""
    return list(sizes)[-1:] if device == "cuda" else list(sizes)


Operands = dict[str, Any]  # the op's arguments by name


def make_operands(form: Form, size: Size, device: str) -> Operands:
    """One set of tensors that the op works on. What it does not need is not there: it would cost time."""

    def laid_out(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=form.layout)

    clean = torch.rand(size.shape, device=device)
    adv = laid_out((clean + EPS * (2 * torch.rand_like(clean) - 1)).clamp(0, 1))
    clean = laid_out((255 * clean).round().to(UINT8) if form.clean == UINT8 else clean)
    sizes = {"step_size": STEP_SIZE, "eps": EPS}
    if form.tensor_sizes:
        sizes = {name: torch.tensor(value, device=device) for name, value in sizes.items()}
    channels = size.shape[1]
    by = {name: torch.tensor(v[:channels], device=device) for name, v in (("mean", MEAN), ("std", STD))}
    if form.op == "linf_start":
        return {"clean": clean, "eps": EPS, "seed": torch.tensor([1, 2], device=device)}
    if form.op == "prepare":
        return {"adv": adv, **by, "dtype": form.out}
    if form.op == "linf_project_":
        return {"adv": adv, "clean": clean, "eps": EPS}
    grad = laid_out(torch.randn(size.shape, device=device).to(form.grad))
    out = {"out": torch.empty_like(adv, dtype=form.out), **by} if form.out else {}
    return {"adv": adv, "grad": grad, "clean": clean, **sizes, **out}


def call_of(function: Callable[..., Any], operands: Operands) -> Call:
    """Tensors and sizes by position, as one calls an op in a loop."""
    by_name = ("out", "mean", "std") if "grad" in operands else ("mean", "std", "dtype")
    positional = [value for name, value in operands.items() if name not in by_name]
    return partial(function, *positional, **{name: operands[name] for name in by_name if name in operands})


def broadcast(operands: Operands) -> Operands:
    """mean and std as an expression needs them."""
    return operands | {name: operands[name].view(-1, 1, 1) for name in ("mean", "std") if name in operands}


def bind(contender: str, form: Form, example: Operands) -> Callable[[Operands], Call]:
    """What makes a call of the contender on given operands."""
    if contender in ("ours", "triton"):
        function = getattr(ops, form.op)
        return partial(call_of, function if contender == "ours" else on_triton(function))
    expression = getattr(baselines, form.op.removesuffix("_"))
    function = {
        "expression": lambda: expression,
        "compiled": lambda: baselines.compiled(getattr(baselines, form.op)),
        "compiled-new": lambda: baselines.compiled(expression),
        "preallocated": lambda: baselines.PreallocatedLinfStep(
            *(example[name] for name in ("adv", "grad", "clean"))
        ),
    }[contender]()
    return lambda operands: call_of(function, broadcast(operands))


def on_triton(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with roli_fast.backend("triton"):
            return function(*args, **kwargs)

    return call


def make_copy(form: Form, size: Size, device: str) -> Call:
    """Reads half of the op's bytes and writes the other half."""
    count = math.prod(size.shape) * form.bytes_per_element // (2 * torch.float32.itemsize)
    source = torch.rand(count, device=device)
    return partial(torch.empty_like(source).copy_, source)


def copied(operands: Operands) -> Operands:
    return operands | {name: operands[name].clone() for name in ("adv", "out") if name in operands}


def results(function: Callable[[Operands], Call], operands: Operands) -> tuple[Tensor, Tensor | None]:
    """adv, or what is made of it, and out."""
    own = copied(operands)
    returned = function(own)()
    adv, out = returned if isinstance(returned, tuple) else (returned, None)
    return (own["adv"] if adv is None else adv), (own.get("out") if out is None else out)


def check_same_result(
    functions: dict[str, Callable[[Operands], Call]], form: Form, operands: Operands
) -> None:
    """Every contender's adv is ours up to its last bit, and what is rounded up to one rounding. A random
    start is another one, and stays in the ball."""
    ours, ours_out = results(functions["ours"], operands)
    for name, function in functions.items():
        adv, out = results(function, operands)
        explain = f"{name} differs from ours: {{}}".format
        if form.op == "linf_start":
            distance = (adv - ours).abs().max().item()
            assert distance <= 2 * EPS + 2**-22, f"{name} leaves the ball: {distance}"
            continue
        rounded = {"rtol": 2**-7, "atol": 2**-20}
        tolerance = rounded if form.op == "prepare" else {"rtol": 0, "atol": 2**-23}
        torch.testing.assert_close(adv, ours, **tolerance, msg=explain)
        if out is not None:
            torch.testing.assert_close(out, ours_out, **rounded, msg=explain)


def number_of_versions(operands: Operands, in_cache: bool, device: str) -> int:
    """So many sets of operands that using the others flushes the caches several times over."""
    nbytes = sum(value.nbytes for value in operands.values() if isinstance(value, Tensor))
    return 1 if in_cache else 1 + math.ceil(4 * machine.last_level_cache(device) / nbytes)


@dataclass(frozen=True)
class Result:
    measured: Measurement
    launches: dict[str, int | None]  # kernels and copies per call, of small ones on a GPU


@functools.cache
def measure(device: str, form_name: str, size_name: str) -> Result:
    form = ALL_FORMS[form_name]
    size = (SIZES[device] | QUICK)[size_name]
    torch.manual_seed(0)
    first = make_operands(form, size, device)
    functions = {name: bind(name, form, first) for name in contenders(form, device) if name != "copy"}
    check_same_result(functions, form, first)
    versions = number_of_versions(first, size.in_cache, device)
    operands = [first] + [make_operands(form, size, device) for _ in range(versions - 1)]
    calls: dict[str, list[Call]] = {name: [f(o) for o in operands] for name, f in functions.items()}
    calls["copy"] = [make_copy(form, size, device) for _ in range(versions)]
    stopwatch = on_the_gpu if device == "cuda" else on_the_clock
    measured = interleaved(calls, size.rounds, size.repeats, stopwatch)
    count = device == "cuda" and size.repeats > 1
    counted = {name: launches(call[0]) for name, call in calls.items()} if count else {}
    return Result(measured, counted)


@pytest.mark.benchmark(timer=CLOCK)
def test_linf(
    benchmark: Any, record_case: Callable, device: str, form: str, size: str, contender: str
) -> None:
    result = measure(device, form, size)
    measured = result.measured
    described, shape = ALL_FORMS[form], (SIZES[device] | QUICK)[size]
    must_move = math.prod(shape.shape) * described.bytes_per_element
    benchmark.group = f"{described.op} {form} {size}"
    benchmark.extra_info.update(
        op=described.op,
        bytes_per_element=described.bytes_per_element,
        in_cache=shape.in_cache,
        calls_per_timing=shape.repeats,
        effective_gb_per_s=must_move / measured.seconds_of(contender)["median"] / 1e9,
        ratio_to_copy=measured.ratio(contender, "copy"),
        ratio_to_ours=measured.ratio(contender, "ours"),
        other_cores_busy=measured.other_cores,
        launches=result.launches.get(contender),
    )
    benchmark.pedantic(CLOCK.replay(measured.seconds[contender]), rounds=shape.rounds)
    if contender == "ours":
        record_case(form, size, measured)
