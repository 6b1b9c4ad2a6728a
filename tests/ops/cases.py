"""The ops under contract, one row each, and what all their tests share.

An op joins the suite as a row of OPS: the arguments that it takes and the formula that it stands for.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roli_fast import ops

from . import oracle

STATES = (torch.float32, torch.float64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
IMAGES = (*FLOATS, torch.uint8)
INF, NAN = float("inf"), float("nan")


@dataclasses.dataclass(frozen=True)
class Op:
    """A row of the table.

    tensors: arguments of the shape of the first one. All have the state's dtype but grad and clean.
    sizes: numbers >= 0, or tensors () or (N,).
    shares: those of the sizes that end at 1 and have a default.
    writes: arguments that it writes to; none for an op that returns its result.
    fixed: required arguments that are as they are.
    options: keyword arguments that it may be given.
    twin: a function of roli_fast.ops alone, the op of its name and an underscore on a copy.
    agrees: how far apart two backends' (first) results may be, by the exact arguments; None: not by a bit.
    scaled: grad is that at out, and with mean and std divided by std, since not its sign alone decides.
    power: of the norm in which sizes are lengths.
    """

    name: str
    oracle: Callable[..., list[tuple[Tensor, Any]]]
    tensors: tuple[str, ...]
    sizes: tuple[str, ...] = ()
    shares: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    box: bool = True
    twin: bool = False
    agrees: Callable[..., Tensor] | None = None
    scaled: bool = False
    power: float = INF

    def __str__(self) -> str:
        return self.name

    def __call__(self, **arguments: Any) -> tuple[Tensor, ...]:
        """All that the op computes: its result, or the tensors that it writes."""
        return self.results(getattr(ops, self.name)(**arguments), arguments)

    def results(self, result: Tensor | None, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
        """The same of a call that has been made."""
        if result is not None:
            return (result,)
        return tuple(arguments[name] for name in self.writes if arguments.get(name) is not None)

    def length(self, n: int) -> float:
        """Of a vector of n ones."""
        return float(n ** (1 / self.power))

    @property
    def torch_op(self) -> Any:
        return getattr(torch.ops.roli_fast, self.name)

    def state(self, arguments: dict[str, Any]) -> torch.dtype:
        """The dtype of the state: an attack on a float64 image is in float64, on any other in float32."""
        dtype = arguments[self.tensors[0]].dtype
        return torch.float64 if dtype == torch.float64 else torch.float32

    def accepted(self, state: torch.dtype = torch.float32) -> dict[str, tuple[torch.dtype, ...]]:
        """The dtypes that each tensor may have where the state has this one."""
        own = {"grad": FLOATS, "clean": IMAGES, self.tensors[0]: IMAGES if self.draws else STATES}
        return {name: own.get(name, (state,)) for name in self.tensors}

    @property
    def draws(self) -> bool:
        """Whether it is a random start: the one op whose state is not an argument."""
        return "seed" in self.fixed

    def dtypes(self) -> list[dict[str, torch.dtype]]:
        """Combinations of dtypes, for arguments below, in which every pair that the op accepts occurs."""
        kinds = {name: dtypes for name, dtypes in self.accepted().items() if name in ("grad", "clean")}
        states = () if self.draws else STATES
        found = []
        for places in itertools.product(*map(range, map(len, kinds.values()))):
            chosen = {name: dtypes[i] for (name, dtypes), i in zip(kinds.items(), places, strict=True)}
            if len(kinds) > 1:  # half of all: with each grad, the cleans take turns in meeting either state
                states = (STATES[sum(places) % 2],)
            found += [{"state": state, **chosen} for state in states] or [chosen]
        return found


STEP, APGD = ("adv", "grad", "clean"), ("adv", "previous", "grad", "clean")
PROJECT, START = ("adv", "clean"), ("clean",)
SIZES = ("step_size", "eps")
INPUT = ("active", "out", "mean", "std")
DRAW: dict[str, Any] = {"sizes": ("eps",), "fixed": ("seed",), "options": ("index",)}
L2: dict[str, Any] = {"agrees": oracle.near_pixels, "power": 2}
L1: dict[str, Any] = {"agrees": oracle.near_sample, "power": 1}
OPS = [
    Op("linf_step_", oracle.linf_step, STEP, SIZES, writes=("adv", "out"), options=INPUT),
    Op("linf_step", oracle.linf_step, STEP, SIZES, options=("active",), twin=True),
    Op(
        "linf_apgd_step_",
        oracle.linf_apgd_step,
        APGD,
        (*SIZES, "momentum"),
        ("momentum",),
        writes=("adv", "previous", "out"),
        options=INPUT,
    ),
    Op("linf_project_", oracle.linf_project, PROJECT, ("eps",), writes=("adv",)),
    Op("linf_start", oracle.linf_start, START, **DRAW),
    Op("l2_step_", oracle.l2_step, STEP, SIZES, writes=("adv", "out"), options=INPUT, scaled=True, **L2),
    Op("l2_step", oracle.l2_step, STEP, SIZES, options=("active",), twin=True, **L2),
    Op(
        "l2_apgd_step_",
        oracle.l2_apgd_step,
        APGD,
        (*SIZES, "momentum"),
        ("momentum",),
        writes=("adv", "previous", "out"),
        options=INPUT,
        scaled=True,
        **L2,
    ),
    Op("l2_project_", oracle.l2_project, PROJECT, ("eps",), writes=("adv",), **L2),
    Op("l2_start", oracle.l2_start, START, **DRAW, **L2),
    Op(
        "l1_step_",
        oracle.l1_step,
        STEP,
        (*SIZES, "sparsity"),
        ("sparsity",),
        writes=("adv", "out"),
        options=INPUT,
        scaled=True,
        **L1,
    ),
    Op(
        "l1_step",
        oracle.l1_step,
        STEP,
        (*SIZES, "sparsity"),
        ("sparsity",),
        options=("active",),
        twin=True,
        **L1,
    ),
    Op("l1_project_", oracle.l1_project, PROJECT, ("eps",), writes=("adv",), **L1),
    Op("l1_start", oracle.l1_start, START, **DRAW, **L1),
    Op(
        "momentum_",
        oracle.momentum,
        ("momentum", "grad"),
        writes=("momentum",),
        fixed=("decay",),
        box=False,
        agrees=oracle.near_momentum,
    ),
    Op(
        "keep_best_",
        oracle.keep_best,
        ("best", "adv"),
        writes=("best", "best_value"),
        fixed=("best_value", "value"),
        options=("active",),
        box=False,
    ),
    Op(
        "prepare",
        oracle.prepare,
        ("adv",),
        fixed=("mean", "std"),
        options=("dtype", "memory_format"),
        box=False,
    ),
]
TORCH_OPS = [op for op in OPS if not op.twin]
BY_NAME = {op.name: op for op in OPS}

each_op = pytest.mark.parametrize("op", OPS, ids=str)
# The twins, which are their ops on copies, only with the slow tests: for what takes long.
each_kernel = pytest.mark.parametrize(
    "op", [pytest.param(op, marks=pytest.mark.slow) if op.twin else op for op in OPS], ids=str
)
each_torch_op = pytest.mark.parametrize("op", TORCH_OPS, ids=str)
each_writing_op = pytest.mark.parametrize("op", [op for op in TORCH_OPS if op.writes], ids=str)
each_box_op = pytest.mark.parametrize("op", [op for op in OPS if op.box], ids=str)
each_ball_op = pytest.mark.parametrize("op", [op for op in TORCH_OPS if "eps" in op.sizes], ids=str)
each_start = pytest.mark.parametrize("op", [op for op in OPS if op.draws], ids=str)
each_twin = pytest.mark.parametrize("op", [op for op in OPS if op.twin], ids=str)


def ops_with(argument: str) -> pytest.MarkDecorator:
    """Parametrizes over the ops that take this argument."""
    chosen = [op for op in OPS if argument in (*op.tensors, *op.sizes, *op.fixed, *op.options)]
    return pytest.mark.parametrize("op", chosen, ids=str)


def interpreted(backend: str) -> bool:
    """Whether each program of the backend's kernels runs in Python."""
    return backend == "triton" and not torch.cuda.is_available()


def examples(backend: str, times: int = 1) -> settings:
    """So many times the examples of the run's profile; fewer where each of them takes long."""
    count = times * settings.default.max_examples
    return settings(max_examples=count // 4 if interpreted(backend) else count)


def arguments(
    op: Op,
    shape: tuple[int, ...] = (3, 3, 5, 7),
    *,
    state: torch.dtype = torch.float32,
    grad: torch.dtype | None = None,
    clean: torch.dtype | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The op's required arguments: images, points in and out of their balls, gradients with every kind of
    special value. grad and clean have the state's dtype where nothing is said."""
    random = torch.Generator().manual_seed(seed)
    grad, clean = grad or state, clean or state
    n = math.prod(shape[1:])
    each = (shape[0], *[1] * (len(shape) - 1))

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=random, dtype=torch.float64)

    def one_of(values: list[float], *size: int) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)[torch.randint(len(values), size, generator=random)]

    image = uniform(*shape)
    pixels = (image * 255).round().to(torch.uint8) if clean == torch.uint8 else image.to(clean)

    def point() -> Tensor:
        """A third of the pixels are clean ones, so that ties and feasible samples occur."""
        offset = (uniform(*shape) - 0.5) * 0.1 * (uniform(*shape) > 1 / 3)
        return (image + offset * (0.5 + 1.5 * uniform(*each))).to(state)

    # Infinite elements are all that counts in a sample that has some, and so are those of 1e30.
    special = torch.where(
        uniform(*each) < 1 / 3,
        one_of([0.0, -0.0, NAN, INF, -INF, 1e-30, -1e30, 5e-324], *shape),
        one_of([0.0, -0.0, NAN], *shape),
    )
    gradient = torch.where(uniform(*shape) < 0.3, special, uniform(*shape) - 0.5)
    gradient = gradient * one_of([1.0, 1.0, 1e-30, 1e30], *each)
    channels = shape[1] if len(shape) > 1 else 0
    adv, other = point(), point()
    tensors = {"adv": adv, "grad": gradient.to(grad), "clean": pixels}
    tensors |= dict.fromkeys(("previous", "best"), other)
    tensors["momentum"] = gradient.nan_to_num(0, 1, -1).clamp(-9, 9).flip(0).to(state)
    values = one_of([0.25, 0.5, 0.75, INF, -INF, NAN], 2, shape[0]).to(state)
    others: dict[str, Any] = {
        "step_size": 2 / 255 * op.length(n),
        "eps": 8 / 255 * op.length(n),
        "momentum": 0.7,
        "sparsity": 0.2,
        "seed": torch.tensor([0x123456789ABCDEF, -7]),
        "mean": uniform(channels).to(state) if channels else None,
        "std": (uniform(channels) + 0.1).to(state) if channels else None,
        "decay": 0.9,
        "best_value": values[0].clone(),
        "value": values[1].clone(),
    }
    return {name: tensors[name] for name in op.tensors} | {
        name: others[name] for name in (*op.sizes, *op.fixed)
    }


def numbers(state: torch.dtype, **options: Any) -> st.SearchStrategy[float]:
    return st.floats(allow_nan=False, width=32 if state == torch.float32 else 64, **options)


@st.composite
def attacks(draw: Any, op: Op, anything: bool = False) -> dict[str, Any]:
    """A call of an op with a ball on one sample, in either state.

    anything: infinite images as well.
    """
    state = draw(st.sampled_from(STATES))
    value = numbers(state)
    if not anything:  # the squares of distances between pixels are to be numbers of float64
        value = numbers(state, min_value=-1e6, max_value=1e6).map(lambda x: x if abs(x) > 1e-100 else 0.0)
    pixel = st.tuples(value, value, numbers(state), value)
    pixels = torch.tensor(draw(st.lists(pixel, min_size=1, max_size=12)), dtype=state).T
    given = dict(zip(("adv", "previous", "grad", "clean"), pixels.unsqueeze(1), strict=True))
    # What is larger than 1e300, and not infinite, overflows in sums of float64.
    size = numbers(state, min_value=0).map(lambda x: INF if x > 1e300 else x)
    given |= {"step_size": draw(size), "eps": draw(size | numbers(state, min_value=0, max_value=10))}
    given |= {name: draw(st.floats(0, 1)) for name in op.shares}
    given |= {"seed": torch.tensor([3, 4])}
    lo, hi = sorted([draw(numbers(state)), draw(numbers(state))])
    given = {name: given[name] for name in (*op.tensors, *op.sizes, *op.fixed)}
    return copied(given) | {"lo": lo, "hi": hi}


def for_any(op: Op, backend: str, test: Callable[[dict[str, Any]], None], **options: Any) -> None:
    """Runs the test on many attacks."""

    @examples(backend)
    @given(attack=attacks(op, **options))
    def check(attack: dict[str, Any]) -> None:
        test(attack)

    check()


def vectors(
    op: Op, shape: tuple[int, ...] = (3, 3, 5, 7), state: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """All that the op takes as one value per sample or channel, each sample's its own."""
    samples = torch.arange(shape[0])
    given = arguments(op, shape, state=state)
    found = {name: given[name] for name in op.fixed if isinstance(given[name], Tensor)}
    size = (samples + 1).to(state) / 100 * op.length(math.prod(shape[1:]))
    found |= dict.fromkeys(op.sizes, size)
    found |= dict.fromkeys(op.shares, (samples % 5 + 0.5).to(state) / 5)
    found |= {"active": samples % 2 == 0} if "active" in op.options else {}
    found |= {"index": samples * 7 % 5 + 2} if "index" in op.options else {}
    return found


def exact(op: Op, arguments: dict[str, Any]) -> dict[str, Any]:
    """Numbers and images as the state's dtype holds them, then float64: what formulas are about."""
    state = op.state(arguments)

    def convert(name: str, value: Any) -> Any:
        if name in op.tensors:
            if name != "grad":
                value = value / torch.tensor(255, dtype=state) if value.dtype == torch.uint8 else value
                value = value.to(state)
            return value.double()
        if name in op.sizes:
            value = torch.as_tensor(value, dtype=state).double()
            value = torch.where(value > 0, value, 0.0)  # in a tensor, negative and NaN count as 0
            return oracle.per_sample(value, arguments[op.tensors[0]])
        if isinstance(value, float | int):
            return torch.tensor(value, dtype=state).item()
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    box = {"lo": 0.0, "hi": 1.0} if op.box else {}
    return {name: convert(name, value) for name, value in (box | arguments).items()}


def assert_ideal(op: Op, results: tuple[Tensor, ...], arguments: dict[str, Any]) -> None:
    """The results, of arguments as they were before the call, are what the contract promises."""
    given = exact(op, arguments)
    active, out, mean = (given.pop(name, None) for name in ("active", "out", "mean"))
    if "mean" in op.fixed:
        given["mean"] = mean
    elif not op.scaled:
        given.pop("std", None)
    expected = op.oracle(**given, state=op.state(arguments))
    if out is not None:
        *results, written = results
        by = {name: arguments.get(name) for name in ("mean", "std")}
        assert_same_bits(written, ops.prepare(results[0], **by, dtype=written.dtype))
    for result, (ideal, slack), name in zip(results, expected, op.writes or ("",), strict=False):
        slack = torch.as_tensor(slack)
        if active is not None:
            chosen = oracle.per_sample(active, ideal)
            before = given[name or op.tensors[0]]
            ideal, slack = torch.where(chosen, ideal, before), torch.where(chosen, slack, 0.0)
        assert result.shape == ideal.shape
        rounded = ideal.to(result.dtype)
        near = (result.double() - rounded.double()).abs() <= slack
        met = (result == rounded) | (result.isnan() & ideal.isnan()) | near
        assert met.all(), _first(~met, result, rounded)


def assert_agree(
    op: Op, got: tuple[Tensor, ...], expected: tuple[Tensor, ...], arguments: dict[str, Any]
) -> None:
    """Two results of one call, whose sums may have been taken in two orders: other backends, or a float64
    state in other memory. The bound is that of the op's row."""
    if op.agrees is None:
        assert_same_bits(got, expected)
        return
    bound = op.agrees(expected[0], **exact(op, arguments), state=op.state(arguments))
    apart = (got[0].double() - expected[0].double()).abs()
    met = (apart <= bound) | (bits(got[0]) == bits(expected[0]))
    assert got[0].shape == expected[0].shape
    assert met.all(), _first(~met, got[0], expected[0])
    # What is computed from the first result, out, is up to the test; the others are copies.
    for name, mine, other in zip(op.writes, got, expected, strict=False):
        if name not in (op.writes[0], "out"):
            assert_same_bits(mine, other)


def bits(tensor: Tensor) -> Tensor:
    """The bit patterns; all NaN are one."""
    if not tensor.is_floating_point():
        return tensor
    signless = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return torch.where(tensor.isnan(), NAN, tensor).contiguous().view(signless)


def assert_same_bits(got: Tensor | tuple[Tensor, ...], expected: Tensor | tuple[Tensor, ...]) -> None:
    """Of two tensors, or of all results of two calls."""
    if isinstance(got, tuple):
        for pair in zip(got, expected, strict=True):
            assert_same_bits(*pair)
        return
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    differ = bits(got) != bits(expected)
    assert not differ.any(), _first(differ, got, expected)


def _first(wrong: Tensor, got: Tensor, expected: Tensor) -> str:
    at = tuple(wrong.nonzero()[0].tolist())
    values = f"{got[at].item()!r}, not {expected[at].item()!r}"
    return f"{int(wrong.sum())} of {wrong.numel()} wrong, first {at}: {values}"


def reached(function: Callable[[], Any]) -> set[str]:
    """The names of all torch ops that a call runs, those inside other ops too."""
    with torch.autograd.profiler.profile() as profile:
        function()
    return {event.name for event in profile.function_events}


def is_reference(function: Callable[[], Any]) -> bool:
    """Whether a call of an op of the Linf family runs plain torch, and no native kernel."""
    return "aten::where" in reached(function)


def copied(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}


# The same values, laid out in memory in another way.


def contiguous(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def channels_last(tensor: Tensor) -> Tensor:
    return contiguous(tensor.movedim(1, -1)).movedim(-1, 1) if tensor.dim() > 2 else contiguous(tensor)


def samples_innermost(tensor: Tensor) -> Tensor:
    order = tuple(reversed(range(tensor.dim())))
    return contiguous(tensor.permute(order)).permute(order)  # never the memory that it was given


def channels_outermost(tensor: Tensor) -> Tensor:
    return contiguous(tensor.transpose(0, 1)).transpose(0, 1) if tensor.dim() > 1 else contiguous(tensor)


def misaligned(tensor: Tensor) -> Tensor:
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)


def spaced(tensor: Tensor) -> Tensor:
    """Every second element of a larger tensor, in every dimension."""
    larger = tensor.new_zeros([2 * size + 1 for size in tensor.shape])
    view = larger[tuple(slice(1, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


LAYOUTS = (contiguous, channels_last, channels_outermost, samples_innermost, misaligned, spaced)
