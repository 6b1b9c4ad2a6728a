"""The step and the projection on numpy arrays: torch's CPU op, bit for bit, where the arrays lie."""

import itertools
import os
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import roli_fast
from roli_fast import numpy as on_numpy
from roli_fast import ops

from ..ops.cases import BY_NAME, INF, NAN, arguments, assert_same_bits

STEP = BY_NAME["linf_step_"]
STATES = ("float32", "float64")
FLOATS = ("float16", *STATES)
IMAGES = (*FLOATS, "uint8")


def arrays(shape=(3, 3, 5, 7), seed=0, **dtypes):
    """The step's required arguments."""
    of = arguments(STEP, shape, seed=seed, **{name: getattr(torch, dtype) for name, dtype in dtypes.items()})
    return {name: as_array(value) for name, value in of.items()}


def as_array(value):
    return value.numpy() if isinstance(value, torch.Tensor) else value


def as_tensor(value):
    """A contiguous copy: torch has no negative strides."""
    return torch.from_numpy(numpy.array(value, order="C")) if isinstance(value, numpy.ndarray) else value


def by_torch(op, given):
    """What torch's op writes to adv and out."""
    given = {name: as_tensor(value) for name, value in given.items()}
    with roli_fast.backend("cpu"):
        op(**given)
    return given["adv"], given.get("out")


def assert_bits(array, expected):
    assert_same_bits(as_tensor(array), expected)


class Window:
    """An array's values as a view of larger memory, its axes in this order and with these steps."""

    def __init__(self, array, order=None, steps=None):
        order = order or range(array.ndim)
        steps = steps or [1] * array.ndim
        moved = array.transpose(order)
        sizes = [abs(step) * size + 1 for step, size in zip(steps, moved.shape, strict=True)]
        self.memory = (
            (numpy.arange(numpy.prod(sizes, dtype=int)) % 97 + 100).reshape(sizes).astype(array.dtype)
        )
        ends = [(0, size - 1) if step > 0 else (size - 1, 0) for step, size in zip(steps, sizes, strict=True)]
        slices = [slice(*end, step) for end, step in zip(ends, steps, strict=True)]
        self.index = (*slices, ...)  # with these dots a view, even of no axis
        self.around = self.memory.copy()
        self.memory[self.index] = moved
        self.view = self.memory[self.index].transpose(numpy.argsort(order))
        assert self.view.shape == array.shape
        assert numpy.shares_memory(self.view, self.memory) or not array.size

    def assert_intact(self):
        now = self.memory.copy()
        now[self.index] = self.around[self.index]
        assert now.tobytes() == self.around.tobytes()


@st.composite
def windows(draw, array):
    order = draw(st.permutations(range(array.ndim)))
    steps = draw(st.tuples(*[st.sampled_from([1, 1, 2, 3, -1, -1, -2])] * array.ndim))
    return Window(array, order, steps)


@st.composite
def calls(draw):
    """Any call that is accepted: its arguments, and the memory in which they lie."""
    shape = tuple(draw(st.lists(st.integers(0, 6), min_size=1, max_size=5)))
    state = draw(st.sampled_from(STATES))
    grad, clean = draw(st.sampled_from(FLOATS)), draw(st.sampled_from(IMAGES))
    given = arrays(shape, draw(st.integers(0, 2**32)), state=state, grad=grad, clean=clean)
    for name in ("step_size", "eps"):
        number = draw(st.floats(0, 2) | st.sampled_from([0, 8 / 255, INF, 1e-40, 1e300]))
        values = st.lists(st.floats(-1, 2, width=32) | st.just(NAN), min_size=shape[0], max_size=shape[0])
        given[name] = draw(
            st.just(number)
            | st.just(numpy.array(min(number, 1e30), state))
            | values.map(lambda v: numpy.array(v, state))
        )
    lo, hi = sorted([draw(st.floats(-1, 2)), draw(st.floats(-1, 2) | st.just(INF))])
    given |= draw(st.sampled_from([{}, {"lo": lo, "hi": hi}]))
    if draw(st.booleans()):
        given["active"] = numpy.array(
            draw(st.lists(st.booleans(), min_size=shape[0], max_size=shape[0])), bool
        )
    if draw(st.booleans()):
        given["out"] = numpy.full(shape, NAN, draw(st.sampled_from(FLOATS)))
        if len(shape) > 1 and shape[1] and draw(st.booleans()):
            by = arguments(BY_NAME["prepare"], shape, state=getattr(torch, state))
            given |= {name: by[name].numpy() for name in ("mean", "std")}
    memory = {name: draw(windows(value)) for name, value in given.items() if isinstance(value, numpy.ndarray)}
    return given, memory


@settings(max_examples=4 * settings.default.max_examples)
@given(calls())
def test_the_step_has_the_bits_of_torch(call):
    given, memory = call
    adv, out = by_torch(ops.linf_step_, given)
    result = on_numpy.linf_step_(**given | {name: window.view for name, window in memory.items()})
    assert result is None
    assert_bits(memory["adv"].view, adv)
    if out is not None:
        assert_bits(memory["out"].view, out)
    for name, window in memory.items():
        window.assert_intact()
        if name not in ("adv", "out"):
            assert_bits(window.view, as_tensor(given[name]))


@given(calls())
def test_the_projection_has_the_bits_of_torch(call):
    given, memory = call
    given = {name: given[name] for name in ("adv", "clean", "eps", "lo", "hi") if name in given}
    adv, _ = by_torch(ops.linf_project_, given)
    placed = {name: memory[name].view for name in given if name in memory}
    assert on_numpy.linf_project_(**given | placed) is None
    assert_bits(memory["adv"].view, adv)
    for name in placed:
        memory[name].assert_intact()


@pytest.mark.parametrize("backwards", [*itertools.product([True, False], repeat=4)][:-1])
def test_all_arrays_backwards(backwards):
    """Elements are then done from the other end; an index still says whose eps and which channel's mean."""
    shape, steps = (3, 2, 4, 5), [-1 if b else 1 for b in backwards]
    given = arrays(shape)
    given |= {"eps": numpy.array([0.01, 0.03, 0.1], "float32"), "out": numpy.empty(shape, "float32")}
    normalised = {"mean": numpy.array([0.2, 0.6], "float32"), "std": numpy.array([0.5, 0.25], "float32")}
    for options in ({}, normalised):
        call = {name: numpy.array(v) if isinstance(v, numpy.ndarray) else v for name, v in given.items()}
        adv, out = by_torch(ops.linf_step_, call | options)
        memory = {name: Window(v, steps=steps) for name, v in call.items() if numpy.ndim(v) == 4}
        on_numpy.linf_step_(**call | options | {name: window.view for name, window in memory.items()})
        assert_bits(memory["adv"].view, adv)
        assert_bits(memory["out"].view, out)
        for window in memory.values():
            window.assert_intact()


@pytest.mark.parametrize(("state", "grad", "clean"), [*itertools.product(STATES, FLOATS, IMAGES)])
def test_every_combination_of_dtypes(state, grad, clean):
    given = arrays(state=state, grad=grad, clean=clean)
    expected, _ = by_torch(ops.linf_step_, given)
    on_numpy.linf_step_(**given)
    assert_bits(given["adv"], expected)


def test_bfloat16_of_another_package():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    given = arrays(grad="float32", clean="float32")
    given |= {name: given[name].astype(bfloat16) for name in ("grad", "clean")}
    given["out"] = numpy.zeros(given["adv"].shape, bfloat16)
    tensors = {name: as_tensor(given[name].astype("float32")).bfloat16() for name in ("grad", "clean", "out")}
    adv = as_tensor(given["adv"])
    ops.linf_step_(**given | {"adv": adv} | tensors)
    on_numpy.linf_step_(**given)
    assert_bits(given["adv"], adv)
    assert_bits(given["out"].astype("float32"), tensors["out"].float())


@pytest.mark.parametrize("length", [1, 63, 64, 65, 511, 513, 32769, 100_003])
def test_lengths_around_blocks_and_chunks(length):
    for shape in ((length,), (2, length), (2, 3, length)):
        given = arrays(shape)
        expected, _ = by_torch(ops.linf_step_, given)
        mirrored = {name: Window(given[name], steps=[-1] * len(shape)) for name in ("adv", "grad", "clean")}
        on_numpy.linf_step_(**given | {name: window.view for name, window in mirrored.items()})
        assert_bits(mirrored["adv"].view, expected)
        on_numpy.linf_step_(**given)
        assert_bits(given["adv"], expected)


def test_expanded_arguments_that_are_read():
    given = arrays()
    read = {name: numpy.broadcast_to(given[name][:1, :1], given[name].shape) for name in ("grad", "clean")}
    expected, _ = by_torch(ops.linf_step_, given | read)
    on_numpy.linf_step_(**given | read)
    assert_bits(given["adv"], expected)


def test_samples_beyond_two_to_the_31_are_not_copied(tmp_path):
    """In a sparse file, of which only the samples take memory."""
    distance = 2**31 + 3
    memory = numpy.memmap(tmp_path / "adv", "float32", "w+", shape=(distance + 5,))
    given = arrays((2, 5))
    far = numpy.lib.stride_tricks.as_strided(memory, (2, 5), (4 * distance, 4))
    far[...] = given["adv"]
    expected, _ = by_torch(ops.linf_step_, given)
    on_numpy.linf_step_(**given | {"adv": far})
    assert_bits(far, expected)


@pytest.mark.parametrize(
    "number", [1, True, numpy.float32(0.25), numpy.float64(0.25), numpy.int64(1), Fraction(1, 4)], ids=repr
)
def test_numbers_of_any_type(number):
    given = arrays()
    expected, _ = by_torch(ops.linf_step_, given | {"eps": float(number), "lo": 0.0, "hi": float(number)})
    on_numpy.linf_step_(**given | {"eps": number, "lo": numpy.uint8(0), "hi": number})
    assert_bits(given["adv"], expected)


def test_subclasses_are_arrays():
    given = arrays((3, 4))
    expected, _ = by_torch(ops.linf_step_, given)
    on_numpy.linf_step_(**given | {"adv": given["adv"].view(numpy.matrix)})
    assert_bits(given["adv"], expected)


def test_slices_of_a_batch_from_several_threads():
    given = arrays((8, 3, 64, 65))
    expected, _ = by_torch(ops.linf_step_, given)

    def step(n):
        on_numpy.linf_step_(**given | {name: given[name][n : n + 1] for name in ("adv", "grad", "clean")})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(step, range(8)))
    assert_bits(given["adv"], expected)


# Refusals


def misaligned(array):
    memory = numpy.zeros(array.nbytes + 1, numpy.uint8)[1:]
    view = memory.view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def packed(array):
    """A field of records whose size is no multiple of the field's."""
    records = numpy.zeros(array.shape, [("value", array.dtype), ("tag", numpy.uint8)])
    records["value"] = array
    return records["value"]


def read_only(array):
    array.flags.writeable = False
    return array


def sliding(array):
    return numpy.lib.stride_tricks.sliding_window_view(array.ravel(), 3, writeable=True)


CHANGES = {
    "adv": [
        (lambda x: x.tolist(), "a list", "a numpy array of dtype float32, float64"),
        (torch.from_numpy, "a Tensor", "a numpy array"),
        (lambda x: None, "a NoneType", "a numpy array"),
        (lambda x: x[0, 0], "a float32", "a numpy array"),
        (lambda x: x[0, 0, ...], "shape ()", "(N, ...), N samples"),
        (lambda x: x.astype("float16"), "dtype float16", "float32, float64"),
        (lambda x: x.astype("longdouble"), "dtype float", "float32, float64"),
        (lambda x: x.astype(x.dtype.newbyteorder()), "dtype >f4", "float32, float64"),
        (lambda x: x.astype(object), "dtype object", "float32, float64"),
        (read_only, "a read-only array", "a writable array"),
        (misaligned, "elements that are not aligned to 4 bytes", "adv.copy()"),
        (packed, "elements that are not aligned to 4 bytes", "adv.copy()"),
    ],
    "grad": [
        (lambda x: [1.0], "a list", "float16, bfloat16, float32, float64"),
        (lambda x: x.view("int8"), "dtype int8", "float16, bfloat16, float32, float64"),
        (lambda x: x.view("uint8"), "dtype uint8", "float16, bfloat16, float32, float64"),
        (lambda x: x.astype("complex64"), "dtype complex64", "float16"),
        (lambda x: x[:1], "shape (1, 3)", "adv's shape (4, 3)"),
        (lambda x: x[0], "shape (3,)", "adv's shape (4, 3)"),
        (misaligned, "not aligned to 4 bytes", "grad.copy()"),
    ],
    "clean": [
        (lambda x: x > 0, "dtype bool", "float16, bfloat16, float32, float64, uint8"),
        (lambda x: x.astype("int64"), "dtype int64", "uint8"),
        (lambda x: x.astype(">f8"), "dtype >f8", "uint8"),
        (lambda x: x.T, "shape (3, 4)", "adv's shape (4, 3)"),
    ],
    "eps": [
        (lambda x: -1e-30, "-1e-30", "a number >= 0, or a float32 array of shape () or (N,), N = 4"),
        (lambda x: NAN, "nan", "a number >= 0"),
        (lambda x: "0.1", "a str", "a number >= 0"),
        (lambda x: None, "a NoneType", "a number >= 0"),
        (lambda x: [0.1], "a list", "a number >= 0"),
        (lambda x: 0.1j, "a complex", "a number >= 0"),
        (lambda x: 10**400, "a number beyond the range of float64", "a number >= 0"),
        (lambda x: numpy.bool_(True), "a bool", "a number >= 0"),
        (lambda x: numpy.full(4, 0.1), "dtype float64", "float32"),
        (lambda x: numpy.full(3, 0.1, "float32"), "shape (3,)", "N = 4"),
        (lambda x: numpy.full(1, 0.1, "float32"), "shape (1,)", "N = 4"),
        (lambda x: numpy.full((4, 1), 0.1, "float32"), "shape (4, 1)", "N = 4"),
        (lambda x: misaligned(numpy.full(4, 0.1, "float32")), "not aligned", "eps.copy()"),
    ],
    "step_size": [
        (lambda x: -1, "-1", "a number >= 0"),
        (lambda x: numpy.array(1), "dtype int64", "float32"),
    ],
    "lo": [
        (lambda x: NAN, "nan", "a number"),
        (lambda x: "0", "a str", "a number"),
        (lambda x: 2, "2, above hi = 1.0", "lo <= hi"),
        (lambda x: numpy.zeros(()), "a ndarray", "a number"),
    ],
    "hi": [(lambda x: NAN, "nan", "a number"), (lambda x: None, "a NoneType", "a number")],
    "active": [
        (lambda x: [True] * 4, "a list", "a numpy array of dtype bool"),
        (lambda x: numpy.ones(4, numpy.uint8), "dtype uint8", "bool"),
        (lambda x: numpy.ones(3, bool), "shape (3,)", "(N,) = (4,)"),
        (lambda x: numpy.ones((4, 1), bool), "shape (4, 1)", "(N,) = (4,)"),
    ],
    "out": [
        (lambda x: x.tolist(), "a list", "a numpy array of dtype float16"),
        (lambda x: x.view("uint8"), "dtype uint8", "float16, bfloat16, float32, float64"),
        (lambda x: x[:2], "shape (2, 3)", "adv's shape (4, 3)"),
        (read_only, "a read-only array", "a writable array"),
        (lambda x: None, None, None),
    ],
    "mean": [
        (lambda x: None, "None", "mean and std together, or neither"),
        (lambda x: x.astype("float64"), "dtype float64", "float32"),
        (lambda x: x[:2], "shape (2,)", "(C,) = (3,)"),
        (lambda x: x.tolist(), "a list", "a numpy array of dtype float32"),
    ],
    "std": [
        (lambda x: None, "None", "mean and std together, or neither"),
        (lambda x: x[:, None], "shape (3, 1)", "(C,) = (3,)"),
    ],
}
REFUSED = [(name, *change) for name, changes in CHANGES.items() for change in changes if change[1]]


def full_call(shape=(4, 3)):
    return arrays(shape) | {
        "lo": 0.0,
        "hi": 1.0,
        "active": numpy.ones(4, bool),
        "out": numpy.zeros(shape, "float32"),
        "mean": numpy.zeros(3, "float32"),
        "std": numpy.ones(3, "float32"),
    }


def refused(message, op=on_numpy.linf_step_, error=(ValueError, TypeError), **given):
    before = {name: value.tobytes() for name, value in given.items() if isinstance(value, numpy.ndarray)}
    with pytest.raises(error, match=message):
        op(**given)
    assert before == {name: given[name].tobytes() for name in before}


@pytest.mark.parametrize(("name", "change", "got", "accepted"), REFUSED)
def test_refusals(name, change, got, accepted):
    given = full_call()
    given[name] = change(given[name])
    error = TypeError if re.match("a [a-zA-Z_0-9]+$", got) else ValueError
    words = f"^linf_step_: {name}: got .*{re.escape(got)}.*, accepted: .*{re.escape(accepted)}"
    refused(words, error=error, **given)
    rest = {key: given[key] for key in ("adv", "clean", "eps", "lo", "hi")}
    if name in rest:
        refused(words.replace("step", "project"), on_numpy.linf_project_, error, **rest)


def test_the_good_call_behind_the_bad_ones():
    given = full_call()
    expected, out = by_torch(ops.linf_step_, given)
    on_numpy.linf_step_(**given)
    assert_bits(given["adv"], expected)
    assert_bits(given["out"], out)


def test_refusals_of_a_normalisation():
    given = full_call()
    refused("mean: got an array, without out, accepted: mean and std only with out", **given | {"out": None})
    refused("std: got an array, without out", **given | {"out": None, "mean": None})
    flat = arrays((4,)) | {"out": numpy.zeros(4, "float32")}
    refused(r"mean: got a mean for shape \(4,\)", **flat, mean=given["mean"], std=given["std"])


def test_a_missing_argument():
    with pytest.raises(TypeError, match="eps"):
        on_numpy.linf_step_(*[numpy.zeros(1)] * 3, 0.1)


def test_what_is_written_may_not_overlap_itself():
    given = full_call()
    for name in ("adv", "out"):
        for make in (sliding, lambda x: sliding(x)[:, ::-1], lambda x: sliding(x)[::-1]):
            view = make(numpy.zeros(6, "float32"))
            refused(f"^linf_step_: {name}: got an array whose elements overlap", **given | {name: view})


# Pairs that share memory: what is written, and another array of its shape.
SHARED = {
    "same": lambda b: (b[:2], b[:2]),
    "reversed": lambda b: (b[:2], b[1::-1]),
    "mirrored": lambda b: (b[:, 10:20], b[:, 19:9:-1]),
    "one_element": lambda b: (b[0, :20], b[0, 38:18:-1]),
    "transposed": lambda b: (b[:3, :3], b[:3, :3].T),
    "strides_meet": lambda b: (b[0, 17::-2], b[0, 1:26:3]),
    "expanded": lambda b: (b[:, :4], numpy.broadcast_to(b[:1, :4], (4, 4))),
    "other_dtype": lambda b: (b[:2], b.view("float16")[:2, ::2]),
    "half_an_element": lambda b: (b[0, :4], b.view("float16")[0, 10:6:-1]),
}


@pytest.mark.parametrize("share", SHARED.values(), ids=SHARED)
def test_shared_memory_is_refused(share):
    written, other = share(numpy.random.default_rng(0).random((4, 40), "float32"))
    free = numpy.zeros_like(written)
    sizes = {"step_size": 0.1, "eps": 0.1}
    words = "got an array that shares memory with {}, which is written, accepted: .*copy"
    refused(f"grad: {words.format('adv')}", adv=written, grad=other, clean=free, **sizes)
    refused(f"clean: {words.format('adv')}", adv=written, grad=free, clean=other, **sizes)
    refused(f"clean: {words.format('adv')}", on_numpy.linf_project_, adv=written, clean=other, eps=0.1)
    refused(f"grad: {words.format('out')}", adv=free, grad=other, clean=free.copy(), out=written, **sizes)
    refused(f"clean: {words.format('out')}", adv=free, grad=free.copy(), clean=other, out=written, **sizes)
    if other.flags.writeable:
        refused(f"out: {words.format('adv')}", adv=written, grad=free, clean=free, out=other, **sizes)


@pytest.mark.parametrize("name", ["step_size", "eps"])
@pytest.mark.parametrize("written", ["adv", "out"])
def test_sizes_in_what_is_written_are_refused(name, written):
    """They are read again after a part of the sample is written."""
    memory = numpy.random.default_rng(0).random((4, 40), "float32")
    free = numpy.zeros_like(memory)
    given = {"adv": free.copy(), "grad": free, "clean": free, "step_size": 0.1, "eps": 0.1, written: memory}
    words = f"{name}: got an array that shares memory with {written}, which is written, accepted: .*copy"
    for size in (memory[:, 3], memory[::-1, 39], memory[1, 5:6].reshape(())):
        refused(words, **given | {name: size})
        if (name, written) == ("eps", "adv"):
            refused(words, on_numpy.linf_project_, adv=memory, clean=free, eps=size)


def test_reading_one_array_twice_is_fine():
    image = numpy.random.default_rng(0).random((3, 4))
    adv, expected = image.copy(), image.copy()
    on_numpy.linf_step_(expected, image.copy(), image.copy(), 0.1, 0.2)
    on_numpy.linf_step_(adv, image, image, 0.1, 0.2)
    assert_bits(adv, torch.from_numpy(expected))


def test_random_windows():
    """Accepted where no element is shared and refused where one is, against a count of every element."""
    rng = random.Random(0)
    memory, places = numpy.zeros(120, "float32"), numpy.arange(120)
    seen = set()
    for _ in range(2000):
        shape = [rng.randint(1, 4) for _ in range(rng.randint(1, 3))]

        def window(shape=shape):
            strides = [rng.choice([-1, 1]) * rng.randint(1, 13) for _ in shape]
            steps = [(n - 1) * stride for n, stride in zip(shape, strides, strict=True)]
            below, above = sum(s for s in steps if s < 0), sum(s for s in steps if s > 0)
            return rng.randint(-below, 119 - above), strides

        def view(of, at, shape=shape):
            start, strides = at
            bytes_apart = [stride * of.itemsize for stride in strides]
            return numpy.lib.stride_tricks.as_strided(of[start:], shape, bytes_apart)

        adv, clean = window(), window()
        elements = [view(places, at).ravel().tolist() for at in (adv, clean)]
        distinct = len({*elements[0]}) == len(elements[0])
        shared = bool({*elements[0]} & {*elements[1]})
        refusal = ""
        try:
            on_numpy.linf_project_(view(memory, adv), view(memory, clean), 0.1)
        except ValueError as error:
            refusal = str(error)
        if not refusal:
            assert distinct
            assert not shared
        elif "overlap" not in refusal:  # which may be said of strides that only look so
            assert shared
        seen.add((bool(refusal), shared))
    assert {(False, False), (True, True)} <= seen


# Without torch


def python(code):
    return subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True)


def test_torch_is_not_needed():
    code = """
import sys
sys.modules["torch"] = None  # whoever imports it fails
import numpy
import roli_fast.numpy
adv = numpy.full((2, 3), 0.5)
roli_fast.numpy.linf_step_(adv, numpy.ones((2, 3)), numpy.full((2, 3), 0.5), 0.25, 0.125)
print(adv.tolist(), [name for name in ("timm", "scipy", "triton") if name in sys.modules])
"""
    done = python(code)
    assert done.stdout.strip() == "[[0.625, 0.625, 0.625], [0.625, 0.625, 0.625]] []", done.stderr


def test_without_native_code_it_says_why():
    done = python("import sys; sys.modules['roli_fast._C'] = None; import roli_fast.numpy")
    assert done.returncode == 1
    assert re.match(r"ImportError: roli_fast\.numpy .*ROLI_FAST_NATIVE=0", done.stderr.splitlines()[-1])
