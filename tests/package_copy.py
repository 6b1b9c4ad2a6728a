"""A copy of the package with native code built in another way, and the contract of the ops under it."""

import os
import shutil
import subprocess
from pathlib import Path

import torch

import roli_fast

ROOT = Path(__file__).resolve().parents[1]
TORCH = Path(torch.__file__).parent
COMPILER = os.environ.get("CXX", "c++")


def package_copy(folder: Path) -> Path:
    """The folder, with the package in it, without the libraries of its ops."""
    source = Path(roli_fast.__file__).parent
    shutil.copytree(source, folder / "roli_fast", ignore=shutil.ignore_patterns("lib", "__pycache__"))
    shutil.copytree(ROOT / "kernels", folder / "roli_fast" / "kernels", dirs_exist_ok=True)
    (folder / "roli_fast" / "lib").mkdir()
    return folder


def cpu_library(package: Path) -> Path:
    """Where a copy has the library whose kernels run in the name of the backend "cpu"."""
    return package / "roli_fast" / "lib" / "libroli_fast_cpu.so"


def compile_emulated(library: Path, *flags: str) -> None:
    """The CUDA kernels' bodies and launchers, in the place of the CPU kernels."""
    sources = [ROOT / "tests" / "gpu" / "emulated.cpp", *sorted((ROOT / "csrc" / "cuda").glob("*.cu"))]
    command = [
        *(
            COMPILER,
            "-std=c++20",
            "-O1",
            "-ffp-contract=off",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-shared",
            "-fPIC",
        ),
        *(*flags, f"-I{ROOT / 'csrc'}", "-isystem", f"{TORCH / 'include'}"),
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        *("-x", "c++", "-", "-o", str(library)),
        *(f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu"),
    ]
    # As one file: the headers, torch's among them, are then read once and not for each.
    whole = "".join(f'#include "{source}"\n' for source in sources)
    done = subprocess.run(command, input=whole, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def pytest_on(tests: str, *options: str) -> list[str]:
    """Arguments of Python for these tests, run in a copy."""
    options = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider", *options)
    return ["-m", "pytest", "-q", *options, str(ROOT / "tests" / tests)]


def contract(tests: str = "ops", *options: str) -> list[str]:
    """Those for the tests of the ops that run the library of a copy."""
    return pytest_on(tests, "-k", "(cpu or torch.ops) and not cuda and not compile and not choice", *options)
