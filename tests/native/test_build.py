"""What the native build says of itself."""

import platform

import torch

import roli_fast
from roli_fast import _C


def test_build_config():
    config = _C.build_config()
    assert config["version"] == roli_fast.__version__
    assert config["compiler"].split()[0] in ("GNU", "Clang", "AppleClang")
    assert config["compiler"].split()[1][0].isdigit()
    assert tuple(map(int, config["torch"].split(".")[:2])) >= (2, 10)


def test_instruction_sets():
    built = _C.build_config()["cpu_capabilities"]
    assert built[0] == "baseline"
    if platform.machine() in ("x86_64", "AMD64"):
        assert built == ["baseline", "avx2", "avx512"]
    assert _C.cpu_capability() in built


def test_torch_runs_the_same_library():
    """The kernels of both name spaces are registered from the one library, for CPU tensors."""
    for op in ("linf_step_", "linf_step_.tensor", "linf_project_", "linf_start", "prepare"):
        for namespace in ("roli_fast", "roli_fast_native"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{op}", "CPU")
