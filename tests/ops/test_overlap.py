"""What is written must not share memory with itself or with what is read; neighbours in memory are fine."""

import random

import pytest
import torch

from .cases import BY_NAME, arguments, assert_same_bits, copied, each_writing_op

STEP, PROJECT = BY_NAME["linf_step_"], BY_NAME["linf_project_"]


def step(call, adv, grad, clean, **options):
    call(STEP, adv=adv, grad=grad, clean=clean, step_size=0.25, eps=0.5, lo=0.0, hi=1.0, **options)


def buffer(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


# Three windows into one buffer that share no element.
NEIGHBOURS = {
    "interleaved": lambda: buffer(4, 9).unflatten(1, (3, 3)).unbind(2),
    "interleaved_samples": lambda: (lambda b: (b[0::3], b[1::3], b[2::3]))(buffer(12, 5)),
    "channels": lambda: (lambda b: (b[:, 0:2], b[:, 2:4], b[:, 4:6]))(buffer(2, 6, 3, 4)),
    "channels_of_channels_last": lambda: (lambda b: (b[:, 0:2], b[:, 2:4], b[:, 4:6]))(
        buffer(2, 6, 3, 4).to(memory_format=torch.channels_last)
    ),
    "columns": lambda: buffer(3, 4, 15).split(5, dim=2),
    "chunks": lambda: buffer(9, 4).chunk(3),
    "complex": lambda: (
        *torch.view_as_real(torch.rand(3, 4, dtype=torch.complex64)).unbind(-1),
        buffer(3, 4),
    ),
    "triangles": lambda: (lambda b: (b[0, :3], b[1:4, 0], b[1, 1:4]))(buffer(4, 4)),
    "diagonals": lambda: (lambda b: (b.diagonal()[:4], b.diagonal(1), b.diagonal(-1)))(buffer(5, 5)),
}


@pytest.mark.parametrize("windows", NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_neighbours_are_accepted(windows, call):
    adv, grad, clean = windows()
    expected, others = adv.clone(), (grad.clone(), clean.clone())
    step(call, expected, *others)
    step(call, adv, grad, clean)
    assert_same_bits(adv.clone(), expected)
    assert_same_bits(grad.clone(), others[0])
    assert_same_bits(clean.clone(), others[1])

    adv, out, clean = windows()
    step(call, adv, torch.ones_like(adv), clean, out=out)
    assert_same_bits(out.clone(), adv.clone())


@pytest.mark.parametrize("name", ["step_size", "eps"])
def test_sizes_are_no_part_of_what_is_written(name, call):
    """They are read again while it is written."""
    adv, grad, clean = buffer(9, 4).chunk(3)
    given = {"adv": adv, "grad": grad, "clean": clean, "lo": 0.0, "hi": 1.0}
    given |= {"step_size": torch.full((3,), 0.25), "eps": torch.full((3,), 0.5)}
    before = adv.clone()
    with pytest.raises((ValueError, RuntimeError), match=f"{name}.*shares memory with"):
        call(STEP, **given | {name: adv[:, 0]})
    with pytest.raises((ValueError, RuntimeError), match=r"eps.*shares memory with"):
        call(PROJECT, adv=adv, clean=clean, eps=adv[:, 0], lo=0.0, hi=1.0)
    assert_same_bits(adv.clone(), before.clone())
    call(STEP, **given | {name: clean[:, 0]})


def test_the_best_values_are_no_part_of_the_best(call):
    best, adv, values = buffer(9, 4).chunk(3)
    given = {"best": best, "best_value": values[:, 0], "adv": adv, "value": values[:, 1]}
    for name, taken in (("best_value", best), ("value", best), ("best_value", adv)):
        with pytest.raises((ValueError, RuntimeError), match="shares memory with"):
            call(BY_NAME["keep_best_"], **given | {name: taken[:, 0]})
    call(BY_NAME["keep_best_"], **given | {"value": adv[:, 0]})


def test_reading_one_tensor_twice_is_fine(call):
    """grad aliasing clean, and both expanded."""
    image = buffer(3, 4)
    adv = image.clone()
    step(call, adv, image, image)
    expected = image.clone()
    step(call, expected, image.clone(), image.clone())
    assert_same_bits(adv, expected)
    step(call, adv, image[:1].expand(3, 4), image[:1].expand(3, 4))


def test_without_elements_nothing_overlaps(call):
    empty = torch.zeros(0, 3)
    step(call, empty, empty, empty, out=empty.half())


# Pairs that share memory: what is written, and another tensor of its shape.
SHARED = {
    "same": lambda b: (b[:2], b[:2]),
    "shifted": lambda b: (b[0, :20], b[0, 1:21]),
    "one_element": lambda b: (b[0, :20], b[0, 19:39]),
    "rows": lambda b: (b[0:2], b[1:3]),
    "transposed": lambda b: (b[:3, :3], b[:3, :3].T),
    "strides_meet": lambda b: (b[0, 0:18:2], b[0, 0:27:3]),
    "expanded": lambda b: (b[:, :4], b[:1, :4].expand(4, 4)),
    "row_and_column": lambda b: (b[0, :4], b[:4, 0]),
    "other_dtype": lambda b: (b[:2], b.view(torch.float16)[:2, ::2]),
    "half_an_element": lambda b: (b[0, :4], b.view(torch.float16)[0, 7:11]),
}


def refused(call, name, **given):
    before = {key: (value.clone(), value._version) for key, value in given.items()}
    with pytest.raises((ValueError, RuntimeError), match=rf"\b{name}\b.*(shares memory|overlap)"):
        step(call, **given)
    for key, (bits, version) in before.items():
        assert_same_bits(given[key].clone(), bits)
        assert given[key]._version == version


@pytest.mark.parametrize("share", SHARED.values(), ids=SHARED)
def test_shared_memory_is_refused(share, call):
    written, other = share(buffer(4, 40))
    free = torch.zeros_like(written)
    refused(call, "grad", adv=written, grad=other, clean=free)
    refused(call, "clean", adv=written, grad=free, clean=other)
    refused(call, "out", adv=written, grad=free, clean=free, out=other)
    refused(call, "grad", adv=free, grad=other, clean=free.clone(), out=written)
    refused(call, "clean", adv=free, grad=free.clone(), clean=other, out=written)
    with pytest.raises((ValueError, RuntimeError), match=r"clean.*shares memory"):
        call(PROJECT, adv=written, clean=other, eps=0.1)


SELF_OVERLAPPING = {
    "expanded": lambda b: b[:1].expand(4, 40),
    "sliding": lambda b: b.flatten().unfold(0, 10, 5),
    "stride_0": lambda b: b.as_strided((3, 4), (4, 0)),
    "crossing": lambda b: b.as_strided((4, 4), (3, 2)),
}


@pytest.mark.parametrize("make", SELF_OVERLAPPING.values(), ids=SELF_OVERLAPPING)
def test_a_written_tensor_that_overlaps_itself_is_refused(make, call):
    written = make(buffer(4, 40))
    free = torch.zeros(written.shape)
    refused(call, "adv", adv=written, grad=free, clean=free)
    refused(call, "out", adv=free, grad=free.clone(), clean=free.clone(), out=written)


def test_random_windows(backend):
    """Accepted where no element is shared and refused where one is, against a count of every element."""
    rng = random.Random(0)
    memory = torch.zeros(120)
    seen = set()
    for _ in range(400):
        shape = [rng.randint(1, 4) for _ in range(rng.randint(1, 3))]

        def window(shape=shape):
            strides = [rng.randint(1, 13) for _ in shape]
            reach = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
            return torch.as_strided(memory, shape, strides, rng.randint(0, 119 - reach))

        def elements(tensor):
            indices = torch.arange(120).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            return indices.flatten().tolist()

        adv, clean = window(), window()
        distinct = len({*elements(adv)}) == adv.numel()
        shared = bool({*elements(adv)} & {*elements(clean)})
        refusal = ""
        try:
            PROJECT(adv=adv, clean=clean, eps=0.1)
        except ValueError as error:
            refusal = str(error)
        if not refusal:
            assert distinct
            assert not shared
        elif "overlap" not in refusal:  # which may be said of strides that only look so
            assert shared
        seen.add((bool(refusal), shared))
    assert {(False, False), (True, True)} <= seen


@each_writing_op
def test_every_op_refuses_shared_memory(op, call):
    """Of each tensor that it writes with each other one of that shape, and with itself."""
    names = [*op.tensors, *(["out"] if "out" in op.writes else [])]
    vectors = [name for name in op.fixed if name in op.writes or name == "value"]

    def assert_refused(argument, **changed):
        given = arguments(op) | ({"out": torch.zeros(3, 3, 5, 7)} if "out" in names else {}) | changed
        before = copied({name: v for name, v in given.items() if isinstance(v, torch.Tensor)})
        with pytest.raises((ValueError, RuntimeError), match=rf"\b{argument}\b.*(shares memory|overlap)"):
            call(op, **given)
        for name, bits in before.items():
            assert_same_bits(given[name].clone(), bits)

    for group in (names, vectors):
        shape = (3, 3, 5, 7) if group is names else (3,)
        for written in (name for name in group if name in op.writes):
            memory = torch.rand(6, *shape[1:])
            assert_refused(written, **{written: memory[:1].expand(shape)})
            for other in group:
                if other != written:
                    assert_refused(f"({written}|{other})", **{written: memory[:3], other: memory[2:5]})
