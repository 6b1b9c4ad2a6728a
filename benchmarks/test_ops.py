"""The fused ops against torch expressions in several forms, the peers' expressions and a copy.

``make bench``, or ``pytest benchmarks/test_ops.py``, with ``--device cuda`` on a GPU. The copy moves as many
bytes as the op moves: it is what the memory allows an operation that reads as much as it writes. Timings are
never asserted on; contenders that do not compute the same fail.
"""

import functools
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import roli_fast
from roli_fast import ops
from roli_fast.speed import machine
from roli_fast.speed.timing import Call, Measurement, interleaved, on_the_clock

from .baselines import ops as baselines
from .shared import CLOCK, QUICK, enter, launches, on_the_gpu

# By the family: step size and eps. Points lie beyond the L2 and L1 balls, so that these have to project.
LINF = 2 / 255, 8 / 255
SIZES_OF_STEPS = {"li": LINF, "l2": (0.5, 1.0), "l1": (5.0, 25.0), "mo": LINF, "ke": LINF, "pr": LINF}
EPS = LINF[1]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
    def must_move(self) -> float:
        """Bytes per element: inputs are read once, outputs written once, the adv of a step is both."""
        grad, clean, out = self.grad.itemsize, self.clean.itemsize, self.out.itemsize if self.out else 0
        return {
            "linf_step_": grad + clean + 2 * 4 + out,
            "linf_apgd_step_": grad + clean + 4 * 4 + out,
            "linf_project_": clean + 2 * 4,
            "linf_start": clean + 4,
            "l2_step_": grad + clean + 2 * 4 + out,
            "l2_apgd_step_": grad + clean + 4 * 4 + out,
            "l2_project_": clean + 2 * 4,
            "l2_start": clean + 4,
            "l1_step_": grad + clean + 2 * 4 + out,
            "l1_project_": clean + 2 * 4,
            "l1_start": clean + 4,
            "momentum_": grad + 2 * 4,
            "keep_best_": 2 * 4 / 2,  # half of the samples win
            "prepare": 4 + out,
        }[self.op]

    @property
    def moves(self) -> float:
        """What ours moves: with the passes that take sums. The L1 ops read a sample as often as its threshold
        asks for, from the cache where it fits: not counted."""
        grad, clean = self.grad.itemsize, self.clean.itemsize
        again = {
            "l2_step_": 4 + grad + clean,
            "l2_apgd_step_": 4 + grad + clean + 2 * 4 + grad + clean,
            "l2_project_": 4 + clean,
            "l2_start": 2 * 4,
            "l1_start": 2 * 4,
            "momentum_": grad,
        }
        return self.must_move + again.get(self.op, 0)


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
OTHER_OPS |= {
    "apgd": Form("linf_apgd_step_"),  # 8 + 16 = 24
    "l2": Form("l2_step_"),  # 16, and the first pass again: 28
    "l2-bf16-out": Form("l2_step_", grad=BF16, out=BF16),  # 16, and 10
    "l2-apgd": Form("l2_apgd_step_"),  # 24, and 12 + 16
    "l2-project": Form("l2_project_"),  # 12, and 8
    "l2-start": Form("l2_start"),  # 8, and 8
    "l1": Form("l1_step_"),  # 16
    "l1-project": Form("l1_project_"),  # 12
    "l1-start": Form("l1_start"),  # 8, and 8
    "momentum": Form("momentum_"),  # 12, and 4
    "keep-best": Form("keep_best_"),  # 8 of every second sample
}
ON_A_GPU = {
    "l2-bf16-grad": Form("l2_step_", grad=BF16),
    "l2-channels-last": Form("l2_step_", layout=LAST),
    "apgd-bf16-grad": Form("linf_apgd_step_", grad=BF16),
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
        "64x3x224x224": Size((64, 3, 224, 224), rounds=15),
    },
    "cuda": {
        "1x1x28x28": Size((1, 1, 28, 28), rounds=20, repeats=200, in_cache=True),  # the cost of a call
        "128x3x32x32": Size((128, 3, 32, 32), rounds=50),
        "512x3x224x224": Size((512, 3, 224, 224), rounds=20),  # 308 MB each in float32
    },
}
IN_EVERY_SIZE = {*FORMS, "project", "start", "prepare-bf16"}
ALL_FORMS = FORMS | OTHER_OPS | ON_A_GPU
TINY = {"2x3x8x8": Size((2, 3, 8, 8), rounds=3, in_cache=True)}


def contenders(form: Form, device: str, size: str) -> tuple[str, ...]:
    """In the order of the tables. Ours is the default backend of the device. The reference takes seconds for
    large images on a CPU."""
    rivals = ["compiled"]
    if form.op == "linf_step_":
        rivals.append("preallocated")
    if device == "cuda" and form.op in ("linf_step_", "linf_project_"):  # the others make new tensors anyway
        rivals.append("compiled-new")
    rivals.append("expression")
    large = device == "cpu" and size == list(SIZES["cpu"])[-1]
    if form in (Form(form.op), *OTHER_OPS.values()) and not large:
        rivals.append("reference")
    if form == Form(form.op):
        rivals += baselines.PEERS.get(form.op, {})
    return ("ours", *(["triton"] if device == "cuda" else []), *rivals, "copy")


def pytest_generate_tests(metafunc: Any) -> None:
    """A test per form, size and contender of the device."""
    device = metafunc.config.getoption("--device")
    forms = FORMS | OTHER_OPS | (ON_A_GPU if device == "cuda" else {})
    sizes = TINY if QUICK else SIZES[device]
    cases = [
        (device, form, size, contender)
        for form in forms
        for size in (sizes if form in IN_EVERY_SIZE else largest(sizes, device))
        for contender in contenders(forms[form], device, size)
    ]
    metafunc.parametrize(("device", "form", "size", "contender"), cases)


def largest(sizes: Collection[str], device: str) -> list[str]:
    """The sizes of further forms: one on a GPU, where compiling the rivals takes most of the time; on a CPU
    that of training images too."""
    return list(sizes)[-1:] if device == "cuda" else list(sizes)[1:] or list(sizes)


Operands = dict[str, Any]  # the op's arguments by name


def make_operands(form: Form, size: Size, device: str) -> Operands:
    """One set of tensors that the op works on. What it does not need is not there: it would cost time."""

    def laid_out(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=form.layout)

    clean = torch.rand(size.shape, device=device)
    adv = laid_out((clean + EPS * (2 * torch.rand_like(clean) - 1)).clamp(0, 1))
    clean = laid_out((255 * clean).round().to(UINT8) if form.clean == UINT8 else clean)
    step_size, eps = SIZES_OF_STEPS[form.op[:2]]
    sizes = {"step_size": step_size, "eps": eps}
    if form.tensor_sizes:
        sizes = {name: torch.tensor(value, device=device) for name, value in sizes.items()}
    channels = size.shape[1]
    by = {name: torch.tensor(v[:channels], device=device) for name, v in (("mean", MEAN), ("std", STD))}
    if form.op.endswith("start"):
        return {"clean": clean, "eps": eps, "seed": torch.tensor([1, 2], device=device)}
    if form.op == "prepare":
        return {"adv": adv, **by, "dtype": form.out}
    if form.op.endswith("project_"):
        return {"adv": adv, "clean": clean, "eps": eps}
    if form.op == "keep_best_":
        value = (torch.arange(len(adv), device=device) % 2).float()
        return {"best": clean, "best_value": torch.full_like(value, 0.5), "adv": adv, "value": value}
    grad = laid_out(torch.randn(size.shape, device=device).to(form.grad))
    if form.op == "momentum_":
        return {"momentum": adv, "grad": grad, "decay": 1.0}
    previous = {"previous": laid_out(adv + 0.01 * (torch.rand_like(adv) - 0.5))} if "apgd" in form.op else {}
    out = {"out": torch.empty_like(adv, dtype=form.out), **by} if form.out else {}
    return {"adv": adv, **previous, "grad": grad, "clean": clean, **sizes, **out}


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
    if contender in ("ours", "triton", "reference"):
        function = getattr(ops, form.op)
        return partial(call_of, function if contender == "ours" else on_backend(contender, function))
    peers = baselines.PEERS.get(form.op, {})
    if contender in peers:
        return partial(call_of, peers[contender])
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


def on_backend(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with roli_fast.backend(name):
            return function(*args, **kwargs)

    return call


def make_copy(form: Form, size: Size, device: str) -> Call:
    """Reads half of the bytes that the op moves and writes the other half."""
    count = int(math.prod(size.shape) * form.moves) // (2 * torch.float32.itemsize)
    source = torch.rand(count, device=device)
    return partial(torch.empty_like(source).copy_, source)


WRITTEN = ("adv", "previous", "best", "best_value", "momentum", "out")


def copied(operands: Operands) -> Operands:
    return operands | {name: operands[name].clone() for name in WRITTEN if name in operands}


def results(function: Callable[[Operands], Call], operands: Operands) -> tuple[Tensor, Tensor | None]:
    """What the first argument becomes, or what is made of it, and out."""
    own = copied(operands)
    returned = function(own)()
    first, out = returned if isinstance(returned, tuple) else (returned, None)
    return (next(iter(own.values())) if first is None else first), (own.get("out") if out is None else out)


# How far contenders may be apart, by the family: a unit in the last place, or what float32 sums of a sample
# and the order of a formula's operations do; L1 thresholds are sums of kinks.
TOLERANCES = {"li": 2**-23, "l2": 2**-17, "l1": 2**-10, "mo": 2**-9, "ke": 0.0, "pr": 2**-7}


def check_same_result(
    functions: dict[str, Callable[[Operands], Call]], form: Form, operands: Operands
) -> None:
    """Every contender's result is ours, up to rounding. A random start is another one, in the ball."""
    ours, ours_out = results(functions["ours"], operands)
    for name, function in functions.items():
        first, out = results(function, operands)
        explain = f"{name} differs from ours: {{}}".format
        if form.op.endswith("start"):
            power = {"li": torch.inf, "l2": 2, "l1": 1}[form.op[:2]]
            clean = operands["clean"] / 255 if form.clean == UINT8 else operands["clean"]
            reach = torch.linalg.vector_norm((first - clean).flatten(1), power, dim=1).max().item()
            assert reach <= 1.001 * operands["eps"], f"{name} leaves the ball: {reach}"
            continue
        tolerance = 2**-7 if name == "art" else TOLERANCES[form.op[:2]]  # ART clips before it projects
        relative = 2**-7 if form.op == "prepare" else 2**-12 if form.op == "momentum_" else 0
        torch.testing.assert_close(first, ours, rtol=relative, atol=tolerance, msg=explain)
        if out is not None:
            torch.testing.assert_close(
                out, ours_out, rtol=2**-7, atol=max(tolerance, 2**-20) * 8, msg=explain
            )


def number_of_versions(operands: Operands, in_cache: bool, device: str) -> int:
    """So many sets of operands that using the others flushes the caches several times over."""
    nbytes = sum(value.nbytes for value in operands.values() if isinstance(value, Tensor))
    return 1 if in_cache else 1 + math.ceil(4 * machine.last_level_cache(device) / nbytes)


def rounds_of(form: Form, size: Size) -> int:
    """Fewer where the rivals sort all elements, which takes them seconds."""
    return max(3, size.rounds // 3) if form.op.startswith("l1") else size.rounds


@dataclass(frozen=True)
class Result:
    measured: Measurement
    launches: dict[str, int | None]  # kernels and copies per call, of small ones on a GPU


@functools.cache
def measure(device: str, form_name: str, size_name: str) -> Result:
    form = ALL_FORMS[form_name]
    size = (SIZES[device] | TINY)[size_name]
    torch.manual_seed(0)
    first = make_operands(form, size, device)
    functions = {
        name: bind(name, form, first) for name in contenders(form, device, size_name) if name != "copy"
    }
    check_same_result(functions, form, first)
    versions = number_of_versions(first, size.in_cache, device)
    operands = [first] + [make_operands(form, size, device) for _ in range(versions - 1)]
    calls: dict[str, list[Call]] = {name: [f(o) for o in operands] for name, f in functions.items()}
    calls["copy"] = [make_copy(form, size, device) for _ in range(versions)]
    stopwatch = on_the_gpu if device == "cuda" else on_the_clock
    measured = interleaved(calls, rounds_of(form, size), size.repeats, stopwatch)
    count = device == "cuda" and size.repeats > 1
    counted = {name: launches(call[0]) for name, call in calls.items()} if count else {}
    return Result(measured, counted)


@pytest.mark.benchmark(timer=CLOCK)
def test_ops(
    benchmark: Any, record_case: Callable, device: str, form: str, size: str, contender: str
) -> None:
    result = measure(device, form, size)
    measured = result.measured
    described, shape = ALL_FORMS[form], (SIZES[device] | TINY)[size]
    moved = math.prod(shape.shape) * described.moves
    enter(
        benchmark,
        measured,
        contender,
        f"{described.op} {form} {size}",
        op=described.op,
        must_move=described.must_move,
        moves=described.moves,
        in_cache=shape.in_cache,
        calls_per_timing=shape.repeats,
        effective_gb_per_s=moved / measured.seconds_of(contender)["median"] / 1e9,
        ratio_to_copy=measured.ratio(contender, "copy"),
        ratio_to_ours=measured.ratio(contender, "ours"),
        launches=result.launches.get(contender),
    )
    if contender == "ours":
        record_case(form, size, measured)
