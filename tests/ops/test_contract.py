"""What every op owes its caller, whatever it computes."""

import ctypes
import itertools
import mmap
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import roli_fast

from ..selection import slow
from .cases import (
    BY_NAME,
    FLOATS,
    INF,
    LAYOUTS,
    NAN,
    STATES,
    arguments,
    assert_agree,
    assert_ideal,
    assert_same_bits,
    channels_last,
    contiguous,
    copied,
    each_box_op,
    each_kernel,
    each_op,
    each_torch_op,
    each_writing_op,
    examples,
    interpreted,
    ops_with,
    spaced,
    vectors,
)

# Around the widths of vectors, of blocks and of the pieces that threads share.
LENGTHS = (*range(1, 70), 255, 256, 257, 1023, 1024, 1025, 4099, 32767, 32768, 32769, 100_003)
# Where the interpreter runs a program for each sample, and each block of it; or where torch does it all.
FEW_LENGTHS = (*range(1, 10), 31, 33, 64, 255, 257, 1023, 1024, 1025, 4099, 32_769)
FEW_SAMPLES = (1, 2, 3, 7, 33, 130)
RANKS = ((1,), (7,), (3, 5), (3, 2, 5), (2, 3, 5, 7), (4, 1, 1, 9), (2, 3, 2, 3, 5), (1, 1, 1, 1, 1))


def check(op, given):
    before = copied(given)
    assert_ideal(op, op(**given), before)


@each_kernel
def test_every_combination_of_dtypes(op, backend):
    for dtypes in op.dtypes():
        check(op, arguments(op, **dtypes))


@each_kernel
def test_every_dtype(op, backend):
    """Without their combinations, which take Triton's interpreter half a minute."""
    for state in STATES:
        check(op, arguments(op, state=state))
    for name, dtypes in op.accepted().items():
        if name in ("grad", "clean"):
            for dtype in dtypes:
                check(op, arguments(op, (2, 3, 5, 7), **{name: dtype}))


@each_kernel
def test_every_rank(op, backend):
    for shape in RANKS:
        check(op, arguments(op, shape))


@each_kernel
def test_every_length(op, backend, request):
    few = interpreted(backend) or backend == "reference"
    # The formula of L1 takes a hundred times as long as the others'.
    every = 3 if op.power == 1 and not request.config.getoption("--slow") else 1
    for length in FEW_LENGTHS if few else LENGTHS[::every]:
        check(op, arguments(op, (1, length)))
    for samples in FEW_SAMPLES if few else LENGTHS[::every]:
        check(op, arguments(op, (samples,)))


@each_op
def test_nothing_to_do(op, backend):
    for shape in [(0,), (0, 3), (2, 0), (0, 3, 4, 4), (2, 3, 0, 4), (2, 0, 1, 1, 1)]:
        result, *_ = op(**arguments(op, shape))
        assert result.shape == shape
        assert result.dtype == torch.float32


@each_op
def test_results_are_new_and_mutating_ops_return_nothing(op, backend):
    given = arguments(op)
    result = getattr(roli_fast.ops, op.name)(**given)
    if op.writes:
        assert result is None
    else:
        result.fill_(-1)
        assert not any((given[name] == -1).any() for name in op.tensors)


@each_op
def test_other_arguments_are_left_alone(op, backend):
    given = arguments(op)
    before = copied(given)
    op(**given)
    for name, value in before.items():
        if isinstance(value, Tensor) and name not in op.writes:
            assert_same_bits(given[name], value)


# Layouts


def assert_layouts(op, shape, pairs):
    """With all arguments in one layout but one: a kernel that asks only some of them about it is found."""
    values = arguments(op, shape)
    expected = op(**copied(values))
    for one, other in pairs:
        for apart in op.tensors if one != other else op.tensors[:1]:
            laid_out = {name: (other if name == apart else one)(values[name]) for name in op.tensors}
            assert_same_bits(op(**copied(values) | laid_out), expected)


PAIRS = [*itertools.product(LAYOUTS, repeat=2)]
SHAPES = ((3, 3, 5, 7), (2, 40, 6, 6), (5, 3), (7,), (2, 3, 2, 3, 5))


@each_kernel
@pytest.mark.parametrize("shape", [SHAPES[0], *slow(*SHAPES[1:])], ids=str)
def test_any_layout_of_any_argument(op, backend, shape):
    """Every pair of layouts meets in every pair of arguments."""
    assert_layouts(op, shape, PAIRS)


@each_kernel
def test_any_layout_in_any_rank(op, backend):
    for shape in SHAPES[1:]:
        assert_layouts(op, shape, [pair for pair in PAIRS if contiguous in pair or len({*pair}) == 1])


@each_kernel
def test_layouts_of_images(op, backend):
    """As large as images are: rows longer than a block, more rows than one thread takes."""
    shape = (2, 3, 130, 150)
    expected = op(**arguments(op, shape))
    for layout in LAYOUTS:
        given = arguments(op, shape)
        given[op.tensors[0]] = layout(given[op.tensors[0]])
        assert_same_bits(op(**given), expected)
        given = arguments(op, shape)
        given |= {name: layout(given[name]) for name in op.tensors}
        assert_same_bits(op(**given), expected)


@each_op
def test_expanded_inputs(op, backend):
    """One image for the whole batch, one gradient for all channels: strides of 0 where nothing is written."""
    given = arguments(op)
    read = [name for name in op.tensors if name not in op.writes]
    given |= {name: given[name][:1, :1].expand_as(given[name]) for name in read}
    dense = {name: given[name].contiguous() for name in read}
    expected = op(**copied(given) | dense)
    assert_same_bits(op(**given), expected)


@each_kernel
def test_parameters_of_any_stride(op, backend):
    given = arguments(op) | vectors(op)
    expected = op(**copied(given))
    chosen = vectors(op)
    for names in (chosen, *([name] for name in chosen)):  # all of them, and each alone
        assert_same_bits(op(**copied(given) | {name: spaced(given[name]) for name in names}), expected)

    given = arguments(op)
    numbers = dict.fromkeys(op.sizes, 0.02)
    expanded = {name: torch.tensor(0.02).expand(3) for name in op.sizes}
    expected = op(**copied(given) | numbers)
    assert_same_bits(op(**given | expanded), expected)


@ops_with("out")
def test_mean_and_std_of_any_stride(op, backend):
    by = arguments(BY_NAME["prepare"])
    results = []
    for chosen in ([], ["mean"], ["std"]):
        apart = {name: spaced(by[name]) if name in chosen else by[name] for name in ("mean", "std")}
        results.append(op(**arguments(op), out=torch.empty_like(by["adv"]), **apart))
    for result in results[1:]:
        assert_same_bits(result, results[0])


@each_op
def test_the_stride_of_a_single_element_means_nothing(op, backend):
    def restrided(tensor, stride):
        strides = [stride if size == 1 else s for size, s in zip(tensor.shape, tensor.stride(), strict=True)]
        return tensor.as_strided(tensor.shape, strides)

    for shape in [(1, 1, 4, 5), (1, 3, 8), (3, 1, 8), (1, 7), (1,)]:
        given = arguments(op, shape)
        given |= {name: torch.full(shape[:1], given[name]) for name in op.sizes}
        expected = op(**copied(given))
        for stride in (0, 12345):
            call = copied(given)
            call |= {name: restrided(call[name], stride) for name in op.tensors}
            assert_same_bits(op(**call), expected)


def before_a_forbidden_page(tensor):
    """The tensor, dense, with memory behind it that no one may touch."""
    page = mmap.PAGESIZE
    size = -(-tensor.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + size), page, 0) == 0
    last = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=size - tensor.nbytes)
    return last.view(tensor.shape).copy_(tensor)


@each_op
def test_nothing_is_read_or_written_past_the_end(op, backend_on_cpu):
    """Whatever it is: a read that is thrown away may be of memory that is not there."""
    for shape in [(1,), (3,), (2, 5), (3, 33), (2, 3, 5, 7)]:
        for dtypes in op.dtypes():
            given = arguments(op, shape, **dtypes)
            given |= vectors(op, shape, op.state(given))
            op(**{n: before_a_forbidden_page(v) if isinstance(v, Tensor) else v for n, v in given.items()})


def framed(tensor, layout):
    """The tensor as a window into larger memory, and a function that asserts that the rest is as it was."""
    sizes = torch.Size(2 * size + 3 for size in tensor.shape)
    # Values that no op writes, different from place to place, so that moved memory shows as well.
    memory = layout((1000 + torch.arange(sizes.numel()) % 997).to(tensor.dtype).reshape(sizes))
    window = tuple(slice(2, 2 + 2 * size, 2) for size in tensor.shape)
    around = memory.clone()
    memory[window] = tensor

    def assert_intact():
        now = memory.clone()
        now[window] = around[window]
        assert_same_bits(now, around)

    return memory[window], assert_intact


@each_writing_op
@pytest.mark.parametrize("layout", LAYOUTS)
def test_writes_stay_inside_the_view(op, backend, layout):
    for shape in [(1,), (33,), (2, 17), (3, 3, 5, 7)]:
        given = arguments(op, shape) | ({"out": torch.zeros(shape).half()} if "out" in op.writes else {})
        expected = op(**copied(given))
        checks = []
        for name in op.writes:
            given[name], assert_intact = framed(given[name], layout)
            checks.append(assert_intact)
        assert_same_bits(tuple(result.clone() for result in op(**given)), expected)
        for assert_intact in checks:
            assert_intact()


@each_writing_op
def test_offsets_beyond_two_to_the_31(op, backend_on_cpu, tmp_path):
    """Samples 2^31 elements apart, in a sparse file of which only the samples take memory."""
    distance = 2**31 + 3
    memory = torch.from_file(str(tmp_path / "state"), shared=True, size=distance + 5)
    (tmp_path / "state").unlink()
    given = arguments(op, (2, 5))
    expected = op(**copied(given))
    first = op.tensors[0]
    far = memory.as_strided((2, 5), (distance, 1)).copy_(given[first])
    assert_same_bits(op(**given | {first: far}), expected)


@each_op
def test_parameters_beyond_two_to_the_31(op, backend_on_cpu, tmp_path):
    """Values of samples and channels 2^30 elements apart: a mask or a statistic may be a slice of a large
    tensor."""
    distance = 2**30 + 1

    def far(values, name):
        memory = torch.from_file(
            str(tmp_path / name), shared=True, size=(len(values) - 1) * distance + 1, dtype=values.dtype
        )
        (tmp_path / name).unlink()
        return memory.as_strided(values.shape, (distance,)).copy_(values)

    given = arguments(op) | vectors(op)
    expected = op(**copied(given))
    assert_same_bits(op(**given | {name: far(given[name], name) for name in vectors(op)}), expected)


@pytest.mark.slow
@each_writing_op
def test_more_than_two_to_the_31_elements(op):
    """Of one value per argument: the result is that of a small tensor, whatever the norm."""
    # L1 works in memory of its own, of a sample's size: many samples, where the others have few.
    shape = (2**15 + 1, 2**16 + 1) if op.power == 1 else (2, 2**30 + 33)
    written = [name for name in op.tensors if name in op.writes]
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") < len(written) * 9 * 2**30:
        pytest.skip("memory")

    def call(shape):
        given = arguments(op, shape=(2, 1))
        values = {"adv": 0.5, "momentum": 0.5}
        given |= {name: torch.full(shape, values.get(name, 0.25)) for name in written}
        read = [name for name in op.tensors if name not in written]
        smaller = {
            "grad": torch.full((1, 1), 0.25, dtype=torch.bfloat16),
            "clean": torch.full((1, 1), 64, dtype=torch.uint8),
        }
        given |= {
            name: smaller.get(name, torch.full((1, 1), values.get(name, 0.25))).expand(shape) for name in read
        }
        given |= dict.fromkeys({*op.sizes} - {*op.shares}, 0.125 * op.length(shape[1]))
        return op(**given)

    for expected, result in zip(call((2, 3)), call(shape), strict=True):
        if result.shape == shape:
            for extreme in (torch.amin, torch.amax):
                torch.testing.assert_close(extreme(result), extreme(expected), rtol=1e-6, atol=0)


# Sizes, masks, bounds


@ops_with("eps")
def test_sizes_per_sample(op, backend):
    for state in STATES:
        length = op.length(105)
        values = {
            "eps": torch.tensor([0.0, 8 / 255 * length, INF], dtype=state),
            "step_size": torch.tensor([2 / 255 * length, 0.0, 0.3 * length], dtype=state),
        }
        values |= dict.fromkeys(op.shares, torch.tensor([0.4, 0.0, 1.0], dtype=state))
        values = {name: values[name] for name in op.sizes}
        given = arguments(op, state=state) | values
        before = copied(given)
        together = op(**given)
        assert_ideal(op, together, before)
        for n in range(3):
            alone = arguments(op, state=state) | {name: value[n].item() for name, value in values.items()}
            before = copied(alone)
            nth = op(**alone)
            if state == torch.float32:  # in which the order of a sum of float64 does not show
                assert_same_bits(tuple(r[n] for r in together), tuple(r[n] for r in nth))
            assert_agree(
                op,
                tuple(
                    torch.cat([a[:n], b[n : n + 1], a[n + 1 :]]) for a, b in zip(nth, together, strict=True)
                ),
                nth,
                before,
            )


@ops_with("eps")
def test_a_size_is_the_same_as_number_and_as_tensor(op, backend):
    expected = op(**arguments(op))
    for shape, chosen in itertools.product([(), (3,)], [op.sizes, *((name,) for name in op.sizes)]):
        given = arguments(op)
        given |= {name: torch.full(shape, given[name]) for name in chosen}
        assert_same_bits(op(**given), expected)


@ops_with("eps")
def test_invalid_sizes_in_tensors_count_as_zero(op, backend):
    invalid = torch.tensor([-0.1, NAN, -INF])
    for name in op.sizes:
        expected = op(**arguments(op) | {name: 0.0})
        assert_same_bits(op(**arguments(op) | {name: invalid}), expected)
        assert_same_bits(op(**arguments(op) | {name: torch.tensor(NAN)}), expected)


@ops_with("active")
@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (4, 2000), (4,)], ids=str)
def test_inactive_samples_keep_their_bits(op, backend, shape):
    payload = torch.tensor([0x7FC12345], dtype=torch.int32).view(torch.float32)  # a NaN of its own
    given = arguments(op, shape)
    given[op.tensors[0]].view(4, -1)[:, 0] = payload
    before = op.results(None, copied(given)) or (given["adv"].clone(),)  # for the twin, what it copies
    everywhere = op(**copied(given))
    for mask in [(False, False, False, False), (True, False, False, True), (False, True, True, False)]:
        active = torch.tensor(mask)
        results = op(**copied(given), active=active)
        for result, was, active_one in zip(results, before, everywhere, strict=True):
            assert torch.equal(result[~active].view(torch.int32), was[~active].view(torch.int32))
            assert_same_bits(result[active], active_one[active])


@each_box_op
@pytest.mark.parametrize("state", STATES, ids=str)
def test_other_bounds(op, backend, state):
    """Ours or infinite, a single point, and such as leave clean images outside: there the box wins."""
    for lo, hi in [(-1.0, 1.0), (0, 255), (-INF, INF), (0.25, 0.25), (0.1, 0.9), (2.0, 3.0), (-0.5, INF)]:
        given = arguments(op, state=state)
        before = copied(given)
        result, *others = op(**given, lo=lo, hi=hi)
        assert_ideal(op, (result, *others), before | {"lo": lo, "hi": hi})
        low, high = torch.tensor([lo, hi], dtype=result.dtype)
        assert ((result >= low) & (result <= high)).all()


# A sample's result is its own


@each_kernel
def test_order_and_size_of_the_batch(op, backend):
    shape = (5, 3, 8, 9)
    order = torch.tensor([3, 0, 4, 1, 2])
    of_channels = ("seed", "mean", "std")
    given = arguments(op, shape) | vectors(op, shape)

    def samples(which):
        return {
            name: value[which] if isinstance(value, Tensor) and name not in of_channels else value
            for name, value in copied(given).items()
        }

    expected = op(**copied(given))
    for which in (order, slice(0, 1), slice(1, 4), slice(4, 5)):
        assert_same_bits(op(**samples(which)), tuple(result[which] for result in expected))


@each_kernel
def test_the_same_bits_from_run_to_run(op, backend):
    shape = (3, 3, 40, 41)
    expected = op(**arguments(op, shape))
    for _ in range(3):
        assert_same_bits(op(**arguments(op, shape)), expected)


def at_out(op, given, std):
    """The call without out that does the same: where the direction depends on scale, grad is that at out."""
    if std is None or not op.scaled:
        return copied(given)
    return copied(given) | {"grad": given["grad"] / std.reshape(-1, *[1] * (given["grad"].dim() - 2))}


@ops_with("out")
def test_out_is_prepare_of_the_result(op, backend):
    """Of inactive samples too, for every dtype and layout of out."""
    shape = (3, 3, 9, 11)
    active = torch.tensor([True, False, True])
    for state, normalized in itertools.product(STATES, [False, True]):
        by = arguments(BY_NAME["prepare"], shape, state=state)
        by = {name: by[name] if normalized else None for name in ("mean", "std")}
        given = arguments(op, shape, state=state)
        expected = op(**at_out(op, given, by["std"]), active=active)
        for dtype, layout in itertools.product(FLOATS, LAYOUTS):
            out = layout(torch.full(shape, NAN, dtype=dtype))
            *results, out = op(**copied(given), active=active, out=out, **by)
            assert_agree(op, tuple(results), expected, given)
            assert_same_bits(out, roli_fast.ops.prepare(results[0], **by, dtype=dtype))


@ops_with("out")
@pytest.mark.parametrize("channels", [1, 2, 3, 7, 64, 1500])
def test_out_is_normalised_channel_by_channel(op, backend, channels):
    """However many channels there are, innermost or outermost, in rows that end anywhere."""
    shape = (2, channels, 3, 11)
    by = arguments(BY_NAME["prepare"], shape)
    mean, std = by["mean"], by["std"]
    given = arguments(op, shape)
    expected = op(**at_out(op, given, std))
    for layouts in itertools.product([contiguous, channels_last], repeat=2):
        adv, out = layouts[0](given["adv"]), layouts[1](torch.empty(shape))
        *results, out = op(**copied(given) | {"adv": adv}, out=out, mean=mean, std=std)
        assert_agree(op, tuple(results), expected, given)
        assert_same_bits(out, (results[0] - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1))


@each_torch_op
def test_the_torch_op_is_the_same_op(op):
    """torch.ops.roli_fast takes numbers or tensors by the same name, and reads no tensor to decide."""
    values = [0.02, torch.tensor(0.02), torch.tensor(-1.0), torch.tensor(NAN), torch.tensor([0.1, -1.0, 2.0])]
    for value in values if op.sizes else [None]:
        given = arguments(op) | dict.fromkeys(op.sizes, value)
        expected = op(**copied(given))
        assert_same_bits(op.results(op.torch_op(**given), given), expected)


@each_torch_op
@pytest.mark.parametrize(
    ("namespace", "backend"),
    [("roli_fast", "reference"), ("roli_fast_native", "cpu"), ("roli_fast_triton", "triton")],
)
def test_defaults_are_those_of_the_schema(op, namespace, backend):
    """Among sizes in tensors too, of which a schema cannot give one."""
    if not roli_fast.backends()[backend].runs_on("cpu"):
        pytest.skip(f"{backend} does not run on CPU tensors")
    torch_op = getattr(getattr(torch.ops, namespace), op.name)
    defaults = {a.name: a.default_value for a in torch_op.default._schema.arguments if a.has_default_value()}
    defaults |= {"dtype": torch.float32} if "dtype" in defaults else {}  # a number in the schema
    given = {name: value for name, value in arguments(op).items() if name not in defaults}
    given |= {"active": torch.arange(3) == 1} if "active" in op.options else {}
    for convert in (float, torch.tensor):
        short = copied(given) | {name: convert(given[name]) for name in op.sizes if name in given}
        full = defaults | copied(short) | {name: convert(defaults[name]) for name in op.shares}
        assert_same_bits(op.results(torch_op(**short), short), op.results(torch_op(**full), full))


# Backends


@st.composite
def calls(draw, op):
    """Any call that the contract accepts, made twice: the same bits in memory of its own."""
    shape = tuple(draw(st.lists(st.integers(0, 6), min_size=1, max_size=5)))
    dtypes = draw(st.sampled_from(op.dtypes()))
    seed = draw(st.integers(0, 2**32))
    given = arguments(op, shape, **dtypes, seed=seed)
    state = op.state(given)
    for name in op.sizes:
        special, most = ((), 1) if name in op.shares else ((INF,), 2)
        per_sample = st.floats(-1, most, width=32) | st.sampled_from([NAN, *special])
        number = draw(st.floats(0, most) | st.sampled_from([0.0, 8 / 255, 1e-40, *special]))
        vector = st.lists(per_sample, min_size=shape[0], max_size=shape[0])
        given[name] = draw(
            st.just(number)
            | st.just(torch.tensor(number, dtype=state))
            | vector.map(lambda values: torch.tensor(values, dtype=state))
        )
    if op.box:
        # + 0.0: no -0.0, which Triton's interpreter takes for 0.0 where it is a constant.
        lo, hi = sorted([draw(st.floats(-1, 2)) + 0.0, draw(st.floats(-1, 2) | st.just(INF)) + 0.0])
        given |= draw(st.sampled_from([{}, {"lo": lo, "hi": hi}]))
    masks = st.lists(st.booleans(), min_size=shape[0], max_size=shape[0])
    if "active" in op.options and draw(st.booleans()):
        given["active"] = torch.tensor(draw(masks), dtype=torch.bool)
    if "index" in op.options and draw(st.booleans()):
        indices = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=shape[0], max_size=shape[0])
        given["index"] = torch.tensor(draw(indices), dtype=torch.int64)
    normalized = len(shape) > 1 and draw(st.booleans())
    by = arguments(BY_NAME["prepare"], shape, state=state) if normalized else {"mean": None, "std": None}
    if "dtype" in op.options:
        given |= {"mean": by["mean"], "std": by["std"], "dtype": draw(st.sampled_from(FLOATS))}
    if "out" in op.options and draw(st.booleans()):
        given["out"] = torch.full(shape, NAN, dtype=draw(st.sampled_from(FLOATS)))
        given |= {"mean": by["mean"], "std": by["std"]}
    laid_out = {
        name: draw(st.sampled_from(LAYOUTS))
        for name, value in given.items()
        if isinstance(value, Tensor) and value.shape == shape
    }
    return [
        copied(given) | {name: layout(given[name]) for name, layout in laid_out.items()} for _ in range(2)
    ]


@each_kernel
def test_any_call_is_the_formula(op, backend):
    @examples(backend)
    @given(data=st.data())
    def ideal(data):
        given, before = data.draw(calls(op))
        assert_ideal(op, op(**given), before)

    ideal()


@each_kernel
def test_agrees_with_the_reference(op, backend):
    """On every bit, or within the bound of the op's row."""
    if backend == "reference":
        pytest.skip("it is the reference")

    @examples(backend, times=3)
    @given(data=st.data())
    def agree(data):
        mine, reference = data.draw(calls(op))
        before = copied(mine)
        got = op(**mine)
        with roli_fast.backend("reference"):
            expected = op(**reference)
            assert_agree(op, got, expected, before)
            if mine.get("out") is not None:
                by = {name: before[name] for name in ("mean", "std")}
                dtype = mine["out"].dtype
                assert_same_bits(mine["out"], roli_fast.ops.prepare(got[0], **by, dtype=dtype))

    agree()
