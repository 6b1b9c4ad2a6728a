"""What the machine code of the GPU kernels shows, for every GPU generation, without a GPU."""

import importlib
import json
from collections import Counter
from pathlib import Path

import pytest

import roli_fast
from roli_fast import _C

ROOT = Path(__file__).resolve().parents[2]
SMS = (80, 90, 100)
HALVES = ("float16", "bfloat16")

BITS = {"float32": 32, "float64": 64, "float16": 16, "bfloat16": 16, "uint8": 8, "Any": 32}


@pytest.fixture(scope="module")
def complete(request):
    """Whether all is compiled, for all GPUs, which takes minutes: else the CUDA kernels are those that were
    built for Hopper, with a few of Triton's."""
    return request.config.getoption("--slow")


@pytest.fixture(scope="module")
def sms(complete):
    return SMS if complete else (90,)


@pytest.fixture(scope="module")
def evidence(python, complete, sms):
    few = [] if complete else ["--triton", "apgd_step", "prepare"]
    built = _C.build_config()["cuda"]
    if not complete and "9.0" in built and "+PTX" in built:
        few += ["--library", str(Path(roli_fast.__file__).parent / "lib" / "libroli_fast_cuda.so")]
    return json.loads(python(ROOT / "tools" / "gpu_static.py", "--json", "--sm", *map(str, sms), *few))


@pytest.fixture(scope="module")
def tool():
    specification = importlib.util.spec_from_file_location("gpu_static", ROOT / "tools" / "gpu_static.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def dense(evidence, backend):
    """The kernels on dense operands, as a plain call has them."""
    return [k for k in evidence if k["backend"] == backend and k["form"] and "," not in k["name"]]


def written(kernel):
    by_name = {
        "step": ("adv", "out"),
        "project": ("adv",),
        "apgd_step": ("adv", "previous", "out"),
        "keep_best": ("best",),
        "momentum": ("momentum",),
        "prepare": ("out",),
        **dict.fromkeys(("start", "normal", "laplace", "scale"), ("start",)),
        **dict.fromkeys(("sums", "offsets", "distance", "momentum_sums"), ()),
    }
    name = kernel["name"].removeprefix("l2_").removeprefix("l1_")
    return [operand for operand in by_name[name] if operand in kernel["form"]]


def read(kernel):
    return [operand for operand in kernel["form"] if operand not in ("out", "start", "best")]


def test_every_kernel_is_compiled_for_every_gpu(evidence, sms):
    for backend in ("cuda", "triton"):
        kernels = [
            {(k["name"], *k["form"].items()) for k in evidence if k["backend"] == backend and k["sm"] == sm}
            for sm in sms
        ]
        assert len(kernels[0]) > 5
        assert all(of_sm == kernels[0] for of_sm in kernels)


def test_every_form_has_a_cuda_kernel(evidence):
    kernels = [k for k in dense(evidence, "cuda") if k["name"] == "step"]
    forms = {tuple(k["form"].values()) for k in kernels if "Any" not in k["form"].values()}
    expected = {
        ("float32", grad, clean, *out)
        for grad in ("float32", *HALVES)
        for clean in ("float32", "uint8")
        for out in ((), ("float32",), ("float16",), ("bfloat16",))
    }
    assert forms == expected
    others = {
        (k["name"], *k["form"].values())
        for k in dense(evidence, "cuda")
        if k["name"] != "step" and "Any" not in k["form"].values()
    }
    assert others == {
        *(("project", "float32", clean) for clean in ("float32", "uint8")),
        *(("start", "float32", clean) for clean in ("float32", "uint8")),
        *(("prepare", "float32", out) for out in ("float32", *HALVES)),
        *(("apgd_step", "float32", grad, "float32", "float32") for grad in ("float32", "bfloat16")),
    }


def test_nothing_spills(evidence):
    """But for a register that the slow path of Triton's float64 division may save."""

    def saves_one(kernel):
        by_sample = kernel["backend"] == "triton" and kernel["name"].startswith("l2_")
        return by_sample and kernel["stack"] <= 8 and kernel["local"] <= 2

    assert [k for k in evidence if (k["local"] or k["stack"]) and not saves_one(k)] == []


def test_registers_leave_room_for_many_warps(evidence):
    """At most 64: then 1024 threads fit on a multiprocessor. More of Triton's with sizes per sample, where
    L2 normalises, and on float64; those of L1 have as many as 512 threads can. Triton 3.8 takes 69 for a step
    that also writes float32 (3.6 and 3.7: 55), so that seven of its blocks of 128 threads fit, not eight."""

    def allowed(kernel):
        if kernel["backend"] == "cuda" and not kernel["form"]:  # as many as the body says: sums take some
            return {"L1": 255 if "double" in kernel["name"] else 128, "L2": 128}.get(kernel["name"][:2], 64)
        if kernel["backend"] == "cuda":
            return 64
        if "float64" in kernel["form"].values() or kernel["name"].startswith(("l1_", "cross_entropy")):
            return 128
        if kernel["name"].startswith("l2_") and "out" in kernel["form"]:
            return 128
        if kernel["name"] == "step" and kernel["form"].get("out") == "float32":
            return 72
        return 64 if "," not in kernel["name"] else 80

    assert [k for k in evidence if k["registers"] > allowed(k)] == []


def test_bit_exact_kernels_neither_contract_nor_approximate(evidence):
    """Cross-entropy has logarithms, which are a library's."""
    exact = [k for k in evidence if not k["name"].startswith(("cross_entropy", "CrossEntropy"))]
    assert [k for k in exact if k["forbidden"]] == []


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
        "@!%p1 fma.rn.f32 %f1, %f2, %f3, %f4;",
        "{ fma.rm.f32 %f1, %f2, %f3, %f4; }",
        "mul.f32 %f1, %f2, %f3;",
        "add.f64 %fd1, %fd2, %fd3;",
    ):
        assert tool.forbidden_in(f"{exact}\n\t{instruction}\n") == [instruction.split(" %")[0].split()[-1]]


def assert_accesses(kernel, elements, units):
    """Each of so many units of elements is moved in accesses of 128 bits, or in one where it has fewer."""
    for operands, accesses in ((read(kernel), kernel["reads"]), (written(kernel), kernel["writes"])):
        expected = Counter()
        for operand in operands:
            bits = elements * BITS[kernel["form"][operand]]
            expected[min(bits, 128)] += units * max(bits // 128, 1)
        for width, count in expected.items():
            assert accesses.get(str(width), 0) >= count, kernel


def test_accesses_of_cuda_kernels(evidence):
    """Four elements at a time: 128 bits of float32. A thread moves 32 bytes of state, or four draws."""
    for kernel in dense(evidence, "cuda"):
        state = kernel["form"].get("adv")
        assert_accesses(kernel, 4, {"float32": 2, "float64": 1, None: 1}[state])


def test_accesses_of_triton_kernels(evidence):
    """A thread moves eight elements: 128 bits at a time down to half precision, 64 of uint8."""
    for kernel in dense(evidence, "triton"):
        assert_accesses(kernel, 8, 1)


def test_bytes_per_element_and_their_time(evidence, complete):
    bytes_of = {
        (k["name"], *k["form"].values()): k["bytes_per_element"] for k in evidence if k["bytes_per_element"]
    }
    for kernel in evidence:
        if kernel["bytes_per_element"]:
            seconds = kernel["bytes_per_element"] * 64 * 3 * 224 * 224 / 4.3e12
            assert kernel["microseconds"] == pytest.approx(1e6 * seconds)
    expected = {
        ("step", "float32", "float32", "float32"): 4 + 4 + 2 * 4,
        ("step", "float32", "bfloat16", "uint8", "bfloat16"): 2 + 1 + 2 * 4 + 2,
        ("project", "float32", "float32"): 4 + 2 * 4,
        ("apgd_step", "float32", "float32", "float32", "float32"): 4 + 4 + 2 * 4 + 2 * 4,
        ("start", "float32", "uint8"): 1 + 4,
        ("prepare", "float32", "bfloat16"): 4 + 2,
    }
    if complete:
        expected |= {
            ("l2_sums", "float32", "float32", "float32"): 4 + 4 + 4,
            ("l2_step", "float32", "float32", "float32"): 4 + 4 + 2 * 4,
            ("momentum", "float32", "bfloat16"): 2 + 2 * 4,
            ("keep_best", "float32", "float32"): 4 + 4,
        }
    assert {kernel: bytes_of[kernel] for kernel in expected} == expected
