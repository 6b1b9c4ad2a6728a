"""Every argument that does not fit is refused: by name, with what came and what is accepted, and with
nothing written."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

import roli_fast
from roli_fast import ops

from .cases import FLOATS, IMAGES, NAN, OPS, TORCH_OPS, Op, arguments, copied, each_op

DTYPES = (*IMAGES, torch.int8, torch.int64, torch.bool, torch.complex64)


@dataclasses.dataclass(frozen=True)
class Bad:
    """A call with one bad argument.

    change: from good arguments to those that differ.
    got: what the message must say came.
    ours: only roli_fast.ops can refuse; torch's schema has no such call, or converts the value first.
    """

    op: Op
    argument: str
    what: str
    change: Callable[[dict[str, Any]], dict[str, Any]]
    got: str
    ours: bool = False

    def __str__(self) -> str:
        return f"{self.op}-{self.argument}-{self.what}"

    def call(self) -> dict[str, Any]:
        shape = (4, 3, 5, 7)
        good = arguments(self.op, shape)
        good |= {"lo": 0.0, "hi": 1.0} if self.op.box else {}
        given = {
            "active": torch.ones(4, dtype=torch.bool),
            "out": torch.zeros(shape),
            "mean": torch.zeros(3),
            "std": torch.ones(3),
            "index": torch.arange(4),
        }
        good |= {name: given[name] for name in self.op.options if name in given}
        return good | self.change(good)


def bad_calls() -> Iterator[Bad]:
    for op in OPS:
        names = (*op.tensors, *op.sizes, *op.fixed, *op.options)
        yield from bad_tensors(op)
        for name in op.sizes:
            yield from bad_sizes(op, name)
        if op.box:
            yield from bad_boxes(op)
        for name in names:
            if name in VECTORS:
                yield from bad_vectors(op, name, *VECTORS[name])
        if "decay" in names:
            yield from bad_numbers(op, "decay")
        if "mean" in names:
            yield from bad_normalizations(op)
        if "memory_format" in names:
            yield from bad_formats(op)


VECTORS = {
    "active": (torch.bool, "N"),
    "index": (torch.int64, "N"),
    "seed": (torch.int64, "2"),
    "mean": (torch.float32, "C"),
    "std": (torch.float32, "C"),
    "best_value": (torch.float32, "N"),
    "value": (torch.float32, "N"),
}


def images(op: Op) -> dict[str, tuple[torch.dtype, ...]]:
    """What has the shape of the first tensor, and the dtypes that it may have."""
    return op.accepted() | ({"out": FLOATS} if "out" in op.options else {})


def bad_tensors(op: Op) -> Iterator[Bad]:
    first = op.tensors[0]
    for name, dtypes in images(op).items():

        def bad(what: str, change: Callable[[Tensor], Any], got: str, name: str = name) -> Bad:
            return Bad(op, name, what, lambda given: {name: change(given[name])}, got)

        yield bad("list", lambda x: [0.5], "a list")
        if name != "out":
            yield bad("None", lambda x: None, "a NoneType")
        yield bad("sparse", lambda x: x.to_sparse(), "layout torch.sparse_coo")
        for dtype in (dtype for dtype in DTYPES if dtype not in dtypes):
            yield bad(str(dtype)[6:], lambda x, dtype=dtype: x.to(dtype), f"dtype {str(dtype)[6:]}")
        if name == first:
            yield bad("rank_0", lambda x: x[0, 0, 0, 0].clone(), "shape ()")
        else:
            yield bad("batch", lambda x: torch.cat([x, x]), "shape (8, 3, 5, 7)")
            yield bad("one_sample", lambda x: x[:1].clone(), "shape (1, 3, 5, 7)")
            yield bad("rank", lambda x: x.flatten(1), "shape (4, 105)")
            yield bad("permuted", lambda x: x.transpose(2, 3), "shape (4, 3, 7, 5)")
            yield bad("device", lambda x: x.to("meta"), "device meta")


def bad_sizes(op: Op, name: str) -> Iterator[Bad]:
    def bad(what: str, value: Any, got: str, ours: bool = False, **others: Any) -> Bad:
        return Bad(op, name, what, lambda given: others | {name: value}, got, ours)

    for what, value, got in BAD_NUMBERS:
        # In torch's overload of tensors, None stands for a share's default.
        yield bad(what, value, got, ours=name in op.shares and value is None)
        for other in op.sizes:
            if other != name:
                beside = f"{what}_beside_{other}"
                yield bad(beside, value, got, ours=True, **{other: torch.tensor(0.1)})
    if name in op.shares:
        yield bad("above_1", 1.0000001, "1.0000001")
        yield bad("above_1_beside_a_tensor", 1.5, "1.5", ours=True, eps=torch.tensor(0.1))
    yield bad("float64", torch.tensor(0.1, dtype=torch.float64), "dtype float64")
    yield bad("int64", torch.tensor(1), "dtype int64")
    yield bad("float16", torch.full((4,), 0.1, dtype=torch.float16), "dtype float16")
    yield bad("length", torch.full((3,), 0.1), "shape (3,)")
    yield bad("length_1", torch.full((1,), 0.1), "shape (1,)")
    yield bad("column", torch.full((4, 1), 0.1), "shape (4, 1)")
    yield bad("sparse", torch.full((4,), 0.1).to_sparse(), "layout torch.sparse_coo")
    yield bad("device", torch.full((4,), 0.1, device="meta"), "device meta")


BAD_NUMBERS: list[tuple[str, Any, str]] = [
    ("negative", -1e-30, "-1e-30"),
    ("infinite", -float("inf"), "-inf"),
    ("nan", NAN, "nan"),
    ("str", "0.1", "a str"),
    ("None", None, "a NoneType"),
    ("complex", 0.1j, "a complex"),
]


def bad_numbers(op: Op, name: str) -> Iterator[Bad]:
    """Of what is a number on all accounts."""
    for what, value, got in BAD_NUMBERS:
        yield Bad(op, name, what, lambda _, value=value: {name: value}, got)
    tensor = torch.ones(4)
    yield Bad(op, name, "tensor", lambda _: {name: tensor}, "a Tensor")


def bad_boxes(op: Op) -> Iterator[Bad]:
    for name in ("lo", "hi"):
        for what, value, got in [("nan", NAN, "nan"), ("str", "0", "a str"), ("None", None, "a NoneType")]:
            yield Bad(op, name, what, lambda _, name=name, value=value: {name: value}, got)
    yield Bad(op, "lo", "above_hi", lambda _: {"lo": 0.5, "hi": 0.25}, "0.5")


def bad_vectors(op: Op, name: str, dtype: torch.dtype, length: str) -> Iterator[Bad]:
    def bad(what: str, change: Callable[[Tensor], Any], got: str) -> Bad:
        return Bad(op, name, what, lambda given: {name: change(given[name])}, got)

    n = {"N": 4, "C": 3, "2": 2}[length]
    yield bad("list", lambda x: x.tolist(), "a list")
    wrong = torch.uint8 if dtype == torch.bool else torch.int32 if dtype == torch.int64 else torch.float64
    yield bad(str(wrong)[6:], lambda x: x.to(wrong), f"dtype {str(wrong)[6:]}")
    yield bad("longer", lambda x: torch.cat([x, x]), f"shape ({2 * n},)")
    yield bad("one", lambda x: x[:1], "shape (1,)")
    yield bad("scalar", lambda x: x[0], "shape ()")
    yield bad("column", lambda x: x[:, None], f"shape ({n}, 1)")
    yield bad("sparse", lambda x: x.to_sparse(), "layout torch.sparse_coo")
    yield bad("device", lambda x: x.to("meta"), "device meta")


def bad_normalizations(op: Op) -> Iterator[Bad]:
    yield Bad(op, "std", "missing", lambda _: {"std": None}, "None")
    yield Bad(op, "mean", "missing", lambda _: {"mean": None}, "None")
    yield Bad(
        op,
        "mean",
        "without_channels",
        lambda given: {name: given[name][:, 0, 0, 0].clone() for name in images(op)},
        "shape (4,)",
    )
    if "out" in op.options:
        yield Bad(op, "mean|std", "without_out", lambda _: {"out": None}, "without out")
        yield Bad(op, "mean", "alone_without_out", lambda _: {"out": None, "std": None}, "without out")
        yield Bad(op, "std", "alone_without_out", lambda _: {"out": None, "mean": None}, "without out")


def bad_formats(op: Op) -> Iterator[Bad]:
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn):
        yield Bad(op, "dtype", str(dtype)[6:], lambda _, dtype=dtype: {"dtype": dtype}, str(dtype))
    yield Bad(op, "dtype", "None", lambda _: {"dtype": None}, "None")
    yield Bad(op, "dtype", "str", lambda _: {"dtype": "float32"}, "float32")
    yield Bad(op, "memory_format", "str", lambda _: {"memory_format": "channels_last"}, "channels_last")
    yield Bad(
        op,
        "memory_format",
        "rank",
        lambda given: {"memory_format": torch.channels_last, "adv": given["adv"].flatten(2)},
        "torch.channels_last",
    )
    yield Bad(op, "memory_format", "rank_5", lambda _: {"memory_format": torch.channels_last_3d}, "rank 4")


BAD = list(bad_calls())


def each_argument(bads: Iterable[Bad]) -> pytest.MarkDecorator:
    """Parametrizes over the ops and their arguments, with all bad calls of one argument."""
    groups: dict[str, list[Bad]] = {}
    for bad in bads:
        groups.setdefault(f"{bad.op}-{bad.argument}", []).append(bad)
    return pytest.mark.parametrize("bads", groups.values(), ids=groups)


def storage_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def unwritten(given: dict[str, Any]) -> Callable[[], None]:
    """Asserts, when called, that all tensors have the bits and the version of now."""
    tensors = [
        (name, value, value.clone(), value._version)
        for name, value in given.items()
        if isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    ]

    def check() -> None:
        for name, tensor, before, version in tensors:
            assert torch.equal(storage_bytes(tensor), storage_bytes(before)), f"{name} was written"
            assert tensor._version == version, f"{name}'s version was raised"

    return check


def assert_refused(
    bad: Bad,
    given: dict[str, Any],
    call: Callable[..., Any],
    errors: tuple[type[Exception], ...],
    message: str,
) -> None:
    """With this message and nothing written. (A traceback shows which bad call it was.)"""
    check = unwritten(given)
    with pytest.raises(errors, match=message):
        call(**given)
    check()


@each_argument(BAD)
def test_refusals(bads, guard, capfd):
    for bad in bads:
        # The functional twin's errors are those of the op behind it.
        message = rf"^{bad.op.name}_?: ({bad.argument}): got .*{re.escape(bad.got)}.*, accepted: ."
        assert_refused(bad, bad.call(), bad.op, (ValueError, TypeError), message)
    assert capfd.readouterr() == ("", "")


@each_argument(bad for bad in BAD if bad.op in TORCH_OPS and not bad.ours)
def test_refusals_of_the_torch_op(bads, capfd):
    """In fewer words, or in torch's own where its schema refuses."""
    for bad in bads:
        given = bad.call()
        if any(isinstance(given[name], Tensor) for name in bad.op.sizes):
            given |= {name: torch.tensor(0.1) for name in bad.op.sizes if isinstance(given[name], float)}
        named = rf"\b({bad.argument})\b"
        if bad.argument == "memory_format":
            named = "memory_format|channels_last"
        assert_refused(bad, given, bad.op.torch_op, (RuntimeError, TypeError, ValueError), named)
    assert capfd.readouterr() == ("", "")


def between_elements(tensor: Tensor) -> Tensor:
    """The same values, a byte from where elements lie."""
    memory = bytearray(1 + tensor.nbytes)
    return torch.frombuffer(memory, dtype=tensor.dtype, offset=1).view(tensor.shape).copy_(tensor)


@each_op
def test_elements_that_are_not_aligned(op, backend_on_cpu):
    """No processor reads them well, and C++ does not know them."""
    good = Bad(op, "", "", lambda _: {}, "").call() | {name: torch.full((4,), 0.1) for name in op.sizes}
    vectors = {name: value for name, value in good.items() if isinstance(value, Tensor)}
    twin = op not in TORCH_OPS  # which copies adv
    for name in vectors.keys() - {"active"} - ({"adv"} if twin else set()):
        given = copied(good) | {name: between_elements(good[name])}
        check = unwritten(given)
        size = good[name].element_size()
        with pytest.raises(ValueError, match=rf"{name}: got elements that are not aligned to {size} bytes, "):
            op(**given)
        check()


@pytest.mark.parametrize("name", ["linf_step_", "l2_step_", "linf_project_", "momentum_", "keep_best_"])
def test_vmap_is_refused_by_name(name, backend_on_cpu):
    good = arguments(next(op for op in OPS if op.name == name), (4, 3, 5))
    tensors = {key: value for key, value in good.items() if isinstance(value, Tensor)}
    numbers = {key: value for key, value in good.items() if key not in tensors}
    first = next(iter(tensors))
    before = good[first].clone()
    each = {key: torch.stack([value] * 2) for key, value in tensors.items()}
    with pytest.raises(RuntimeError, match=f"{name}: {first}: got a tensor inside torch.func.vmap, accepted"):
        torch.func.vmap(lambda given: getattr(ops, name)(**given, **numbers))(each)
    assert torch.equal(each[first][0], before)


@pytest.mark.parametrize("value", [numpy.float32(0.1), numpy.int64(1), Fraction(8, 255)], ids=repr)
@pytest.mark.parametrize("argument", ["step_size", "eps", "lo", "hi"])
def test_backends_agree_on_what_is_a_number(argument, value):
    def accepted(backend):
        given = {"adv": torch.zeros(1, 1), "grad": torch.ones(1, 1), "clean": torch.zeros(1, 1)}
        given |= {"step_size": 0.1, "eps": 0.1, argument: value}
        with roli_fast.backend(backend):
            try:
                ops.linf_step_(**given)
            except TypeError:
                return False
            return True

    assert accepted("cpu") == accepted("reference")


@each_op
def test_the_good_call_behind_the_bad_ones(op, backend):
    """Or else a refusal could have another reason."""
    good = Bad(op, "", "", lambda _: {}, "")
    op(**good.call())
    if op in TORCH_OPS:
        op.torch_op(**good.call())


def test_a_missing_argument(backend):
    with pytest.raises(TypeError, match="eps"):
        ops.linf_step_(torch.zeros(1), torch.zeros(1), torch.zeros(1), 0.1)


def test_a_negated_view_is_refused_by_name():
    adv = torch.rand(2, 3, dtype=torch.complex64).conj().imag
    with pytest.raises(ValueError, match=r"linf_project_: adv: got a negated view, .*adv.resolve_neg\(\)"):
        ops.linf_project_(adv, torch.rand(2, 3), 0.1)


@pytest.mark.parametrize("name", ["adv", "grad", "clean", "out"])
def test_memory_that_was_freed_is_refused(name):
    """As sharding frees it; its address would mean that there is no such argument."""
    given = {what: torch.rand(2, 3) for what in ("adv", "grad", "clean", "out")}
    given[name].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=f"linf_step_: {name}: got a tensor whose memory was freed"):
        ops.linf_step_(**given, step_size=0.1, eps=0.2)


def test_integers_are_refused_by_name_where_one_size_is_a_tensor():
    adv = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="adv: got dtype int64"):
        ops.linf_step_(adv, torch.rand(2, 3), torch.rand(2, 3), 1e39, torch.tensor(0.1))
