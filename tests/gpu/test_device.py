"""What only a GPU can show: streams, graphs, compilation, memory beyond 32 bits. The contract itself is in
tests/ops, whose suite runs on the GPU as well."""

import pytest
import torch

import roli_fast
from roli_fast import ops

from ..ops.cases import BY_NAME, arguments, assert_agree, assert_same_bits, copied, each_op

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
IMAGES = (16, 3, 224, 224)


def moved(given, device=DEVICE):
    return {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in given.items()}


def here(results):
    return tuple(result.cpu() for result in results)


def a_step(shape=(8, 3, 32, 32), **options):
    return moved(arguments(BY_NAME["linf_step_"], shape)) | options


# Backends


def test_the_native_kernels_are_the_default():
    found = roli_fast.backends()
    assert found["cuda"].missing is None
    assert found["triton"].missing is None
    assert "cuda" in found["cuda"].default_for
    assert torch._C._dispatch_has_kernel_for_dispatch_key("roli_fast::linf_step_", "CUDA")


def test_triton_as_the_default(python):
    """ROLI_FAST_BACKEND replaces the native kernels under torch.ops too."""
    code = (
        "import sys, torch, roli_fast.ops; a = torch.rand(2, 3, device='cuda')\n"
        "torch.ops.roli_fast.linf_project_(a, a.clone(), 0.1); print('roli_fast.kernels' in sys.modules)"
    )
    assert python("-c", code, env={"ROLI_FAST_BACKEND": "triton"}).split() == ["True"]
    assert python("-c", code).split() == ["False"]


def test_a_cpu_tensor_among_cuda_tensors_is_refused(gpu_backend):
    given = a_step()
    for name in ("grad", "clean"):
        with pytest.raises(ValueError, match=f"{name}: got device cpu, accepted: adv's device cuda"):
            ops.linf_step_(**given | {name: given[name].cpu()})
        with pytest.raises((RuntimeError, ValueError), match=name):
            torch.ops.roli_fast.linf_step_(**given | {name: given[name].cpu()})


def test_a_cpu_backend_refuses_cuda_tensors():
    message = "'cpu' runs on cpu; got a tensor on cuda"
    with roli_fast.backend("cpu"), pytest.raises(RuntimeError, match=message):
        ops.linf_step_(**a_step())


# Bits


@each_op
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_agrees_with_the_cpu(op, gpu_backend, layout):
    """On batches of images, with every storage type, beyond a block and a program."""
    for dtypes in op.dtypes():
        given = arguments(op, IMAGES, **dtypes)
        given |= {name: given[name].contiguous(memory_format=layout) for name in op.tensors}
        got = op(**moved(given))
        before = copied(given)
        with roli_fast.backend("cpu"):
            expected = op(**given)
        assert_agree(op, here(got), expected, before)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_out_has_the_same_bits_as_on_the_cpu(gpu_backend, layout, dtype):
    by = arguments(BY_NAME["prepare"], IMAGES)
    given = arguments(BY_NAME["linf_step_"], IMAGES) | {"mean": by["mean"], "std": by["std"]}
    given |= {"out": torch.empty(IMAGES, dtype=dtype), "eps": torch.linspace(0, 0.1, IMAGES[0])}
    given |= {"step_size": torch.tensor(0.02), "active": torch.arange(IMAGES[0]) % 3 > 0}
    for name in ("adv", "grad", "clean", "out"):
        given[name] = given[name].contiguous(memory_format=layout)
    there = moved(given)
    ops.linf_step_(**there)
    with roli_fast.backend("cpu"):
        ops.linf_step_(**given)
    assert_same_bits(there["adv"].cpu(), given["adv"])
    assert_same_bits(there["out"].cpu(), given["out"])


@pytest.mark.parametrize("layout", ["dense", "strided"])
def test_places_beyond_32_bits(gpu_backend, layout):
    count = 2**31 + 2**20 + 3
    free, _ = torch.cuda.mem_get_info()
    if free < 12 * count:
        pytest.skip(f"needs {12 * count / 2**30:.0f} GiB of free GPU memory")
    adv = torch.full((1, count), 0.5, device=DEVICE)
    grad = torch.ones((1, count), dtype=torch.bfloat16, device=DEVICE)
    clean = torch.full((1, 1), 51, dtype=torch.uint8, device=DEVICE).expand(1, count)
    ops.linf_step_(adv, grad, clean if layout == "strided" else clean.contiguous(), 0.25, 0.125)
    expected = torch.tensor(51.0) / torch.tensor(255.0) + 0.125
    assert [value.item() for value in torch.aminmax(adv)] == [expected.item()] * 2


# Streams and graphs


def busy():
    """Keeps the current stream busy for a while."""
    torch.cuda._sleep(200_000_000)  # cycles, a tenth of a second


def test_runs_in_the_current_stream(gpu_backend):
    """Behind what comes before it in its stream, and without waiting for it."""
    given = a_step()
    expected = arguments(BY_NAME["linf_step_"], (8, 3, 32, 32))
    with roli_fast.backend("cpu"):
        ops.linf_step_(**expected)
    late = torch.zeros_like(given["grad"])
    ops.linf_step_(**given | {"adv": given["adv"].clone()})  # compiled, if need be
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        busy()
        late.copy_(given["grad"])
        ops.linf_step_(**given | {"grad": late})
        done = stream.record_event()
    assert not done.query()
    stream.synchronize()
    assert_same_bits(given["adv"].cpu(), expected["adv"])


@each_op
def test_nothing_synchronises(op, gpu_backend):
    given = moved(arguments(op))
    given |= {name: torch.full((3,), 0.02, device=DEVICE) for name in op.sizes}
    op(**given)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        busy()
        event = torch.cuda.Event()
        op(**given)
        event.record()
        assert not event.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_runs_on_the_tensors_device_whatever_the_current_one(gpu_backend):
    given = arguments(BY_NAME["linf_step_"])
    there = moved(given, "cuda:1")
    ops.linf_step_(**there)
    assert torch.cuda.current_device() == 0
    with roli_fast.backend("cpu"):
        ops.linf_step_(**given)
    assert_same_bits(there["adv"].cpu(), given["adv"])


def test_capture_and_replay(gpu_backend):
    """A graph of start, step with out, projection and input; between replays every tensor changes."""
    shape = (8, 3, 32, 32)
    static = {
        "clean": torch.rand(shape, device=DEVICE),
        "grad": torch.randn(shape, device=DEVICE),
        "seed": torch.tensor([1, 2], device=DEVICE),
        "index": torch.arange(8, device=DEVICE),
        "step_size": torch.tensor(0.01, device=DEVICE),
        "eps": torch.full((8,), 0.03, device=DEVICE),
        "active": torch.ones(8, dtype=torch.bool, device=DEVICE),
    }
    mean, std = torch.rand(3, device=DEVICE), torch.rand(3, device=DEVICE) + 0.1

    def attack(clean, grad, seed, index, step_size, eps, active):
        adv = ops.linf_start(clean, eps, seed, index=index)
        out = torch.empty_like(adv, dtype=torch.bfloat16)
        ops.linf_step_(adv, grad, clean, step_size, eps, active=active, out=out, mean=mean, std=std)
        ops.linf_project_(adv, clean, eps)
        return adv, out, ops.prepare(adv, mean, std, dtype=torch.float16)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        attack(**static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attack(**static)

    for n in range(4):
        torch.manual_seed(n)
        fresh = {
            "clean": torch.rand(shape),
            "grad": torch.randn(shape),
            "seed": torch.tensor([n, -n]),
            "index": torch.randperm(8),
            "step_size": torch.tensor(0.01 * n),
            "eps": torch.rand(8) / 10,
            "active": torch.rand(8) > 0.5,
        }
        for name, value in fresh.items():
            static[name].copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        for got, expected in zip(captured, attack(**static), strict=True):
            assert_same_bits(got.cpu(), expected.cpu())


# Autograd and compilation


def test_writes_are_noticed_by_autograd(gpu_backend):
    for op in (BY_NAME["linf_step_"], BY_NAME["linf_project_"], BY_NAME["l2_step_"]):
        given = moved(arguments(op))
        before = given["adv"]._version
        op(**given)
        assert given["adv"]._version > before
        with pytest.raises(RuntimeError, match="requires a gradient"):
            op(**given | {"adv": given["adv"].clone().requires_grad_()})
        saved = torch.rand_like(given["adv"]).requires_grad_()
        product = (saved * given["adv"]).sum()
        op(**given)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_under_no_grad_and_inference_mode(gpu_backend, mode):
    with mode():
        given = a_step()
        ops.linf_step_(**given)
    expected = arguments(BY_NAME["linf_step_"], (8, 3, 32, 32))
    with roli_fast.backend("cpu"):
        ops.linf_step_(**expected)
    assert_same_bits(given["adv"].cpu(), expected["adv"])


@each_op
@pytest.mark.parametrize("sizes", ["numbers", "tensors"])
def test_inductor(op, gpu_backend, sizes):
    given = moved(arguments(op))
    if sizes == "tensors":
        given |= {name: torch.full((3,), 0.02, device=DEVICE) for name in op.sizes}
    eager = {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in given.items()}
    expected = op(**eager)
    torch.compiler.reset()
    results = op.results(torch.compile(getattr(ops, op.name), fullgraph=True)(**given), given)
    assert_same_bits(here(results), here(expected))


def test_a_compiled_attack_in_a_graph(gpu_backend):
    """mode="reduce-overhead" captures the ops with what surrounds them."""

    def attack(clean, target, seed):
        adv = ops.linf_start(clean, 0.1, seed)
        for _ in range(3):
            adv = ops.linf_step(adv, target - adv, clean, 0.05, 0.1)
        return adv

    compiled = torch.compile(attack, fullgraph=True, mode="reduce-overhead")
    target = torch.rand(3, 32, 32, device=DEVICE)
    for n in range(4):
        clean, seed = torch.rand(4, 3, 32, 32, device=DEVICE), torch.tensor([n, 0], device=DEVICE)
        torch.compiler.cudagraph_mark_step_begin()
        got = compiled(clean, target, seed).clone()
        assert_same_bits(got.cpu(), attack(clean, target, seed).cpu())
