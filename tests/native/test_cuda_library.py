"""The library of the CUDA kernels, as far as a machine without a GPU can tell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import roli_fast
from roli_fast import _C

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(roli_fast.__file__).parent / "lib" / "libroli_fast_cuda.so"

needs_cuda_in_torch = pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")


@pytest.fixture(autouse=True)
def built():
    """The development environment has an nvcc: without the library there is nothing to test, an error."""
    if os.environ.get("ROLI_FAST_CUDA") == "0":
        pytest.skip("ROLI_FAST_CUDA=0")
    assert LIBRARY.exists(), _C.build_config()["cuda"]


def test_it_says_for_which_gpus_it_was_built():
    assert re.fullmatch(r"nvcc \d+\.\d+\.\d+ for (\d+\.\d+\S*)( \d+\.\d+\S*)*", _C.build_config()["cuda"])


def look_for_nvcc(folder, shown, **environment):
    """What cmake/nvcc.cmake finds."""
    script = folder / "look.cmake"
    script.write_text(
        f'set(torch_root "{Path(torch.__file__).parent}")\n'
        f'include("{ROOT / "cmake" / "nvcc.cmake"}")\n'
        f'message("{shown}")\n'
    )
    environment = {k: v for k, v in os.environ.items() if k != "TORCH_CUDA_ARCH_LIST"} | environment
    command = [sys.executable, "-m", "cmake", "-P", script]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    return done.stderr.strip()


def test_ampere_to_blackwell(tmp_path):
    """What is built for unless TORCH_CUDA_ARCH_LIST says otherwise, as the setup of the tests may have."""
    names, architectures = look_for_nvcc(tmp_path, "${cuda_arch_list}|${cuda_architectures}").split("|")
    # PTX for GPUs to come.
    assert names == "8.0 9.0 10.0+PTX 12.0"
    assert architectures == "80-real;90-real;100-real;100-virtual;120-real"


def test_an_nvcc_that_does_not_work_is_none(tmp_path):
    """Such as one that no host compiler suits: the rest is built without it."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "release 12.8, V12.8.0" && exit\nexit 1\n')
    nvcc.chmod(0o755)
    assert look_for_nvcc(tmp_path, "${cuda_built}", CUDACXX=str(nvcc)) == f"no: {nvcc} cannot compile"


@needs_cuda_in_torch
def test_it_loads_and_registers_every_op_without_a_gpu(answer):
    code = f"""
import json, torch, roli_fast.ops
torch.ops.load_library({str(LIBRARY)!r})
has = torch._C._dispatch_has_kernel_for_dispatch_key
ops = [f"{{space}}::{{op}}" for space in ("roli_fast", "roli_fast_native")
       for op in ("linf_step_", "linf_step_.tensor", "linf_project_", "linf_project_.tensor",
                  "linf_start", "linf_start.tensor", "prepare")]
print(json.dumps([[op, has(op, "CPU"), has(op, "CUDA")] for op in ops]))
"""
    for op, on_cpu, on_cuda in answer(code):
        assert on_cpu, op
        assert on_cuda, op


def test_no_path_of_the_build_machine():
    for library in LIBRARY.parent.glob("*.so"):
        content = library.read_bytes()
        for path in (ROOT, Path(torch.__file__).parent, Path.home()):
            assert str(path).encode() not in content, library


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_what_is_missing_is_named():
    found = roli_fast.backends()
    reason = "torch sees no CUDA device" if torch.version.cuda else "torch is built without CUDA"
    assert found["cuda"].missing == reason
    with pytest.raises(RuntimeError, match=f"'cuda' cannot run: {reason}"), roli_fast.backend("cuda"):
        pass


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ROLI_FAST_CUDA": "yes"}, "ROLI_FAST_CUDA: got 'yes', accepted: auto, 0, 1"),
        ({"TORCH_CUDA_ARCH_LIST": "9.0 Hopper"}, "TORCH_CUDA_ARCH_LIST: got 'Hopper', accepted: 8.0"),
        ({"CUDACXX": "/nowhere/nvcc"}, "CUDACXX: got '/nowhere/nvcc', accepted: the path of nvcc"),
    ],
)
def test_bad_choices_are_refused_before_anything_is_built(environment, message, tmp_path):
    import pybind11

    command = [
        *(sys.executable, "-m", "cmake", "-S", ROOT, "-B", tmp_path, f"-DPython_EXECUTABLE={sys.executable}"),
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    environment = os.environ | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())
