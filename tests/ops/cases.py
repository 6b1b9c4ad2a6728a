"""The ops under contract, one row each, and what all their tests share.

An op joins the suite as a row of OPS: the arguments that it takes and the formula that it stands for.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
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

    tensors: arguments of the shape of the first one, whose dtype decides the state's.
    sizes: numbers >= 0, or tensors () or (N,).
    writes: arguments that it writes to; none for an op that returns its result.
    fixed: required arguments that are as they are.
    options: keyword arguments that it may be given.
    """

    name: str
    oracle: Callable[..., tuple[Tensor, Any]]
    tensors: tuple[str, ...]
    sizes: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    box: bool = True

    def __str__(self) -> str:
        return self.name

    def __call__(self, **arguments: Any) -> Tensor:
        """What the op computes: its result, or the tensor that it writes."""
        result = getattr(ops, self.name)(**arguments)
        return arguments[self.writes[0]] if self.writes else result

    @property
    def torch_op(self) -> Any:
        return getattr(torch.ops.roli_fast, self.name)

    def state(self, arguments: dict[str, Any]) -> torch.dtype:
        """The dtype of the state: an attack on a float64 image is in float64, on any other in float32."""
        dtype = arguments[self.tensors[0]].dtype
        return torch.float64 if dtype == torch.float64 else torch.float32

    def dtypes(self) -> list[dict[str, torch.dtype]]:
        """All combinations of dtypes that the op accepts."""
        accepted = {"adv": STATES, "grad": FLOATS, "clean": IMAGES}
        return [
            dict(zip(self.tensors, combination, strict=True))
            for combination in itertools.product(*(accepted[name] for name in self.tensors))
        ]


STEP = ("adv", "grad", "clean"), ("step_size", "eps")
OPS = [
    Op(
        "linf_step_",
        oracle.linf_step,
        *STEP,
        writes=("adv", "out"),
        options=("active", "out", "mean", "std"),
    ),
    Op("linf_step", oracle.linf_step, *STEP, options=("active",)),
    Op("linf_project_", oracle.linf_project, ("adv", "clean"), ("eps",), writes=("adv",)),
    Op("linf_start", oracle.linf_start, ("clean",), ("eps",), fixed=("seed",), options=("index",)),
    Op(
        "prepare",
        oracle.prepare,
        ("adv",),
        fixed=("mean", "std"),
        options=("dtype", "memory_format"),
        box=False,
    ),
]
TORCH_OPS = [op for op in OPS if op.name != "linf_step"]  # the twin is a function of roli_fast.ops alone
BY_NAME = {op.name: op for op in OPS}

each_op = pytest.mark.parametrize("op", OPS, ids=str)
each_torch_op = pytest.mark.parametrize("op", TORCH_OPS, ids=str)
each_writing_op = pytest.mark.parametrize("op", [op for op in TORCH_OPS if op.writes], ids=str)
each_box_op = pytest.mark.parametrize("op", [op for op in OPS if op.box], ids=str)


def ops_with(argument: str) -> pytest.MarkDecorator:
    """Parametrizes over the ops that take this argument."""
    chosen = [op for op in OPS if argument in (*op.tensors, *op.sizes, *op.fixed, *op.options)]
    return pytest.mark.parametrize("op", chosen, ids=str)


properties = settings(
    deadline=None,
    derandomize=True,
    max_examples=100,
    # A backend chosen once for all examples is what the tests mean.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def arguments(
    op: Op,
    shape: tuple[int, ...] = (3, 3, 5, 7),
    *,
    adv: torch.dtype = torch.float32,
    grad: torch.dtype = torch.float32,
    clean: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Any]:
    """The op's required arguments: images, points in and out of their balls, gradients with every kind of
    special value."""
    random = torch.Generator().manual_seed(seed)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=random, dtype=torch.float64)

    image = uniform(*shape)
    pixels = (image * 255).round().to(torch.uint8) if clean == torch.uint8 else image.to(clean)
    # A third of the points are clean images, so that ties and feasible samples occur.
    offset = (uniform(*shape) - 0.5) * 0.1 * (uniform(*shape) > 1 / 3)
    values = torch.tensor([0.0, -0.0, NAN, INF, -INF, 1e-30, -1e30, 5e-324], dtype=torch.float64)
    special = values[torch.randint(len(values), shape, generator=random)]
    gradient = torch.where(uniform(*shape) < 0.3, special, uniform(*shape) - 0.5)
    channels = shape[1] if len(shape) > 1 else 0
    pool: dict[str, Any] = {
        "adv": (image + offset).to(adv),
        "grad": gradient.to(grad),
        "clean": pixels,
        "step_size": 2 / 255,
        "eps": 8 / 255,
        "seed": torch.tensor([0x123456789ABCDEF, -7]),
        "mean": uniform(channels).to(adv) if channels else None,
        "std": (uniform(channels) + 0.1).to(adv) if channels else None,
    }
    return {name: pool[name] for name in (*op.tensors, *op.sizes, *op.fixed)}


def ideal(op: Op, arguments: dict[str, Any]) -> tuple[Tensor, Any]:
    """The oracle's result and slack: numbers and images as the state's dtype holds them, then float64."""
    state = op.state(arguments)

    def exact(name: str, value: Any) -> Any:
        if name in op.tensors and name != "grad":
            if value.dtype == torch.uint8:
                value = value.double() / 255
            return value.to(state).double()
        if name in op.sizes:
            value = torch.as_tensor(value, dtype=state).double()
            value = torch.where(value > 0, value, 0.0)  # in a tensor, negative and NaN count as 0
            rank = arguments[op.tensors[0]].dim()
            return value.reshape(-1, *[1] * (rank - 1)) if value.dim() else value
        if name in ("mean", "std"):
            return value if value is None else value.double()
        if name in ("lo", "hi"):
            return torch.tensor(value, dtype=state).item()
        return value

    box = {"lo": 0.0, "hi": 1.0} if op.box else {}
    given = {name: exact(name, value) for name, value in (box | arguments).items()}
    return op.oracle(**given, state=state)


def assert_ideal(op: Op, result: Tensor, arguments: dict[str, Any]) -> None:
    """result, of arguments as they were before the call, is what the contract promises."""
    expected, slack = ideal(op, arguments)
    assert result.shape == expected.shape
    rounded = expected.to(result.dtype)
    near = (result.double() - rounded.double()).abs() <= torch.as_tensor(slack)
    met = (result == rounded) | (result.isnan() & expected.isnan()) | near
    assert met.all(), _first(~met, result, rounded)


def bits(tensor: Tensor) -> Tensor:
    """The bit patterns; all NaN are one."""
    if not tensor.is_floating_point():
        return tensor
    signless = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return torch.where(tensor.isnan(), NAN, tensor).contiguous().view(signless)


def assert_same_bits(got: Tensor, expected: Tensor) -> None:
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
