"""What is Triton's own."""

import pytest
import torch

import roli_fast
from roli_fast import ops

from ..selection import slow
from .cases import OPS, arguments, assert_same_bits

# The interpreter takes long for those that look at whole samples.
BY_ELEMENT = [op for op in OPS if op.agrees is None]


@pytest.mark.skipif(roli_fast.backends()["triton"].missing is not None, reason="Triton cannot run here")
@pytest.mark.parametrize("op", [*BY_ELEMENT, *slow(*(op for op in OPS if op not in BY_ELEMENT))], ids=str)
def test_places_of_64_bits(op, monkeypatch):
    """As for more than 2^31 elements: over several programs, in samples of whole fours and of others."""
    from roli_fast.kernels import layout

    monkeypatch.setattr(layout, "WIDE_FROM", 0)
    for shape in [(2, 3, 100, 100), (3, 3, 101, 77)]:
        with roli_fast.backend("triton"):
            got = op(**arguments(op, shape))
        assert_same_bits(got, op(**arguments(op, shape)))


TENSORS = {
    "l2_step_": ("adv", "grad", "clean"),
    "l2_project_": ("adv", "clean"),
    "l2_apgd_step_": ("adv", "previous", "grad", "clean"),
    "l2_start": ("clean",),
    "l1_step_": ("adv", "grad", "clean"),
    "l1_project_": ("adv", "clean"),
    "l1_start": ("clean",),
    "momentum_": ("momentum", "grad"),
    "keep_best_": ("best", "adv"),
}
QUICK = ("l2_project_", "keep_best_")


def call(name, tensors, backend, samples=slice(None)):
    """The op on some of the samples: what it wrote, or returned."""
    values = {}
    if name[0] == "l":
        values["eps"] = 0.4
    if "step" in name:
        values["step_size"] = 0.3
    if "start" in name:
        values |= {"seed": torch.tensor([5, 7]), "index": torch.arange(3)[samples]}
    if name == "keep_best_":
        values |= {"best_value": torch.zeros(3)[samples], "value": torch.tensor([1.0, -1.0, 1.0])[samples]}
    given = {key: tensor[samples].clone() for key, tensor in tensors.items()}
    device = next(iter(given.values())).device
    given |= {key: v.to(device) if isinstance(v, torch.Tensor) else v for key, v in values.items()}
    with roli_fast.backend(backend):
        result = getattr(ops, name)(**given)
    return next(iter(given.values())) if result is None else result


@pytest.mark.skipif(roli_fast.backends()["triton"].missing is not None, reason="Triton cannot run here")
@pytest.mark.parametrize("name", [*QUICK, *slow(*(name for name in TENSORS if name not in QUICK))])
@pytest.mark.parametrize("shape", [(3, 2, 5, 33), *slow((3, 2, 4, 40))], ids=["odd", "whole sixteens"])
def test_samples_of_many_parts_and_parts_of_many_blocks(name, shape, monkeypatch):
    from roli_fast.kernels import layout

    monkeypatch.setattr(layout, "BLOCK", 32)
    monkeypatch.setattr(layout, "LARGE_BLOCK", 32)
    monkeypatch.setattr(layout, "PARTS", 4)
    device = roli_fast.backends()["triton"].devices[0]
    tensors = {key: torch.rand(shape, device=device) for key in TENSORS[name]}
    got = call(name, tensors, "triton")
    torch.testing.assert_close(got, call(name, tensors, "reference"), rtol=0, atol=2e-6)
    assert_same_bits(call(name, tensors, "triton", slice(2, 3)), got[2:])
    monkeypatch.setattr(layout, "WIDE_FROM", 0)
    assert_same_bits(call(name, tensors, "triton"), got)


def test_the_last_program_of_32_bits_ends_within_them():
    from roli_fast.kernels import layout

    for block in (layout.BLOCK, layout.LARGE_BLOCK):
        programs = -(-(layout.WIDE_FROM - 1) // block)
        assert programs * block - 1 < 2**31


@pytest.mark.parametrize("value", ["ON", "", *slow("1", "true", "0", "off")])
def test_the_interpreter_is_recognised_as_triton_does(value, fresh):
    code = (
        "import roli_fast, triton; "
        "print(roli_fast.backends()['triton'].devices == ('cpu',), triton.knobs.runtime.interpret)"
    )
    done = fresh(code, env={"TRITON_INTERPRET": value})
    assert done.stdout.split() in (["True"] * 2, ["False"] * 2), done.stdout + done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_how_to_run_it(fresh):
    code = "import roli_fast; print(roli_fast.backends()['triton'].missing)"
    done = fresh(code, env={"TRITON_INTERPRET": "0"})
    assert "TRITON_INTERPRET=1" in done.stdout
