"""Which implementation runs."""

import subprocess
import sys
import threading

import pytest
import torch

import roli_fast
from roli_fast import ops
from roli_fast.ops import choice

from .cases import is_reference

SEED = torch.tensor([0, 0])


def start(device="cpu"):
    return ops.linf_start(torch.zeros(2, 3, device=device), 0.1, SEED.to(device))


@pytest.fixture(autouse=True)
def native():
    missing = roli_fast.backends()["cpu"].missing
    if missing:
        pytest.skip(missing)


def test_backends():
    found = roli_fast.backends()
    assert {"cpu", "reference"} <= {*found}
    assert all(found[name].name == name for name in found)
    assert found["cpu"].devices == ("cpu",)
    assert found["cpu"].default_for == ("cpu",)
    assert found["reference"].devices == ("any",)
    assert all(found[name].missing is None for name in ("cpu", "reference"))


def test_the_default_on_cpu_is_native():
    assert not is_reference(start)


def test_a_choice_holds_inside_its_block(backend_on_cpu):
    assert is_reference(start) == (backend_on_cpu == "reference")
    with roli_fast.backend("reference"):
        assert is_reference(start)
        with roli_fast.backend("cpu"):
            assert not is_reference(start)
        assert is_reference(start)
    assert is_reference(start) == (backend_on_cpu == "reference")


def test_a_choice_ends_with_an_error():
    with pytest.raises(KeyError), roli_fast.backend("reference"):
        raise KeyError
    assert not is_reference(start)


def test_a_choice_is_of_its_thread():
    seen = []
    with roli_fast.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(is_reference(start)))
        thread.start()
        thread.join()
        assert is_reference(start)
    assert seen == [False]


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"'cuda9'.*accepted: .*cpu.*reference"), roli_fast.backend("cuda9"):
        pass


def test_other_devices_take_the_reference():
    """And a backend that does not run there says so, instead of another one running."""
    assert start("meta").shape == (2, 3)
    with roli_fast.backend("reference"):
        assert start("meta").is_meta
    with roli_fast.backend("cpu"), pytest.raises(RuntimeError, match=r"'cpu' runs on cpu.*meta"):
        start("meta")


def test_the_torch_op_keeps_to_the_default():
    """torch.ops.roli_fast is fixed at import: what a graph holds does not change with a block around it."""
    adv, image = torch.full((2, 2), 0.75), torch.full((2, 2), 0.5)
    with roli_fast.backend("reference"):
        assert not is_reference(lambda: torch.ops.roli_fast.linf_project_(adv, image, 0.125))
    assert adv.tolist() == [[0.625, 0.625]] * 2


@pytest.mark.slow
def test_a_choice_inside_a_compiled_function():
    """In a fresh process: whether it works must not depend on what ran on the thread before."""
    code = """
import torch, roli_fast
from roli_fast import ops

def step(adv, grad, clean):
    with roli_fast.backend("reference"):
        ops.linf_step_(adv, grad, clean, 0.1, 0.1)
    return adv

def plain(adv, grad, clean):
    ops.linf_step_(adv, grad, clean, 0.1, 0.1)
    return adv

x = torch.rand(2, 3)
for function in (step, plain):
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    for _ in range(2):
        assert torch.equal(compiled(x.clone(), x, x), function(x.clone(), x, x))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("missing", "wanted", "default"),
    [
        ((), None, "cuda"),
        (("cuda",), None, "triton"),
        (("cuda", "triton"), None, "reference"),
        ((), "triton", "triton"),
        ((), "reference", "reference"),
        ((), "cpu", "cuda"),
    ],
)
def test_the_default_on_a_gpu(monkeypatch, missing, wanted, default):
    """As if there were one: the native kernels first, then Triton, then plain torch."""
    monkeypatch.setattr(choice, "_load_cuda", lambda: "no" if "cuda" in missing else None)
    monkeypatch.setattr(choice, "_find_triton", lambda: "no" if "triton" in missing else None)
    monkeypatch.setattr(choice, "_interpreting", lambda: False)
    if wanted:
        monkeypatch.setenv("ROLI_FAST_BACKEND", wanted)
    else:
        monkeypatch.delenv("ROLI_FAST_BACKEND", raising=False)
    found = choice._find_backends()
    assert [name for name, backend in found.items() if "cuda" in backend.default_for] == [default]
