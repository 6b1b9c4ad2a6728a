"""What the machine code of the GPU kernels shows, for every GPU generation, without a GPU."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMS = (80, 90, 100)
HALVES = ("float16", "bfloat16")

# What a thread of the CUDA kernels moves at once: four elements of every operand.
PACK_BITS = {"float32": 128, "float64": 128, "float16": 64, "bfloat16": 64, "uint8": 32}


@pytest.fixture(scope="module")
def evidence(python):
    return json.loads(python(ROOT / "tools" / "gpu_static.py", "--json"))


@pytest.fixture(scope="module")
def tool():
    specification = importlib.util.spec_from_file_location("gpu_static", ROOT / "tools" / "gpu_static.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def dense(evidence, backend):
    return [kernel for kernel in evidence if kernel["backend"] == backend and kernel["form"]]


def written(kernel):
    return {"step": ("adv", "out"), "project": ("adv",), "start": ("start",), "prepare": ("out",)}[
        kernel["name"]
    ]


def read(kernel):
    return [operand for operand in kernel["form"] if operand not in ("out", "start")]


def test_every_kernel_is_compiled_for_every_gpu(evidence):
    for backend in ("cuda", "triton"):
        kernels = [
            {(k["name"], *k["form"].items()) for k in evidence if k["backend"] == backend and k["sm"] == sm}
            for sm in SMS
        ]
        assert len(kernels[0]) > 10
        assert kernels[0] == kernels[1] == kernels[2]


def test_every_form_has_a_cuda_kernel(evidence):
    forms = {tuple(k["form"].values()) for k in dense(evidence, "cuda") if k["name"] == "step"}
    expected = {
        ("float32", grad, clean, *out)
        for grad in ("float32", *HALVES)
        for clean in ("float32", "uint8")
        for out in ((), ("float32",), ("float16",), ("bfloat16",))
    }
    assert forms == expected


def test_nothing_spills(evidence):
    assert [k for k in evidence if k["local"] or k["stack"]] == []


def test_registers_leave_room_for_many_warps(evidence):
    """At most 64: then 1024 threads fit on a multiprocessor."""
    assert [k for k in evidence if k["registers"] > 64] == []


def test_bit_exact_kernels_neither_contract_nor_approximate(evidence):
    assert [k for k in evidence if k["forbidden"]] == []


def test_what_is_forbidden_would_be_found(tool):
    exact = """
        mul.rn.f32 %f1, %f2, %f3;
        mad.lo.s32 %r1, %r2, %r3, %r4;
        div.rn.f32 %f1, %f2, %f3;
    """
    assert tool.forbidden_in(exact) == []
    for instruction in (
        "fma.rn.f32 %f1, %f2, %f3, %f4;",
        "fma.rn.f64 %fd1, %fd2, %fd3, %fd4;",
        "mad.rn.f32 %f1, %f2, %f3, %f4;",
        "div.approx.f32 %f1, %f2, %f3;",
        "div.full.f32 %f1, %f2, %f3;",
        "rcp.approx.ftz.f32 %f1, %f2;",
        "add.ftz.f32 %f1, %f2, %f3;",
        "@%p1 div.full.f32 %f1, %f2, %f3;",
    ):
        assert tool.forbidden_in(f"{exact}\n\t{instruction}\n") == [instruction.split(" %")[0].split()[-1]]


def test_accesses_of_cuda_kernels_are_as_wide_as_four_elements(evidence):
    """128 bits for float32, of every operand and of each pack that a thread moves."""
    for kernel in dense(evidence, "cuda"):
        packs = 1 if kernel["name"] == "start" else 2
        for operands, accesses in ((read(kernel), "reads"), (written(kernel), "writes")):
            widths = [PACK_BITS[kernel["form"][o]] for o in operands if o in kernel["form"]]
            for width in {64, 128} & {*widths}:
                assert kernel[accesses].get(str(width), 0) >= packs * widths.count(width), kernel


def test_accesses_of_triton_kernels_are_vectorised(evidence):
    """128 bits for every dtype but uint8, whose 8 elements of a thread have 64."""
    for kernel in dense(evidence, "triton"):
        for operands, accesses in ((read(kernel), "reads"), (written(kernel), "writes")):
            dtypes = [kernel["form"][o] for o in operands if o in kernel["form"]]
            elements = 8  # of a thread
            bits = {"float32": 32, "float64": 64, "uint8": 8} | dict.fromkeys(HALVES, 16)
            wide = sum(elements * bits[dtype] // 128 for dtype in dtypes)
            assert kernel[accesses].get("128", 0) >= wide, kernel
            assert kernel[accesses].get("64", 0) >= dtypes.count("uint8"), kernel


def test_bytes_per_element(evidence):
    bytes_of = {
        (k["name"], *k["form"].values()): k["bytes_per_element"] for k in evidence if k["bytes_per_element"]
    }
    assert bytes_of["step", "float32", "float32", "float32"] == 4 + 4 + 2 * 4
    assert bytes_of["step", "float32", "bfloat16", "uint8", "bfloat16"] == 2 + 1 + 2 * 4 + 2
    assert bytes_of["project", "float32", "float32"] == 4 + 2 * 4
    assert bytes_of["start", "float32", "uint8"] == 1 + 4
    assert bytes_of["prepare", "float32", "bfloat16"] == 4 + 2
