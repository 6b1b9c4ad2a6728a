"""The native code under AddressSanitizer and UndefinedBehaviorSanitizer: `make sanitize`.

Everything is built once more, with the flags that ship and those of the sanitizers. Then the contract of the
ops, with its odd sizes and strides and its memory of any alignment, runs on every instruction set of this
machine and on the emulated CUDA kernels, and the tests of the numpy face on theirs.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from roli_fast import _C

from ..package_copy import COMPILER, ROOT, compile_emulated, contract, cpu_library, package_copy, pytest_on
from .test_capability import runs_here

FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1"]
CAPABILITIES = _C.build_config()["cpu_capabilities"]


def runtime(library):
    """The compiler's file of this name; Python, which has neither, must load it first."""
    done = subprocess.run([COMPILER, f"-print-file-name={library}"], capture_output=True, text=True)
    return Path(done.stdout.strip())


# libstdc++ with it: the sanitizer looks for what throws exceptions when it is loaded.
RUNTIMES = [runtime("libasan.so"), runtime("libstdc++.so.6")]
pytestmark = [
    pytest.mark.slow,  # two to four minutes of the fifteen that all tests may take
    pytest.mark.skipif(
        not all(library.is_absolute() for library in RUNTIMES), reason=f"{COMPILER} has no libasan.so"
    ),
]


@pytest.fixture(scope="module")
def checked(python):
    """Runs Python such that a finding ends it; returns what it printed, stderr included."""
    environment = {
        "LD_PRELOAD": " ".join(map(str, RUNTIMES)),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python leaves its memory to the end of the process
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }

    def run(*command, env=None, **options):
        done = python(*command, env=environment | (env or {}), timeout=1800, **options)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """The folder in which CMakeLists.txt was followed, with the sanitizers."""
    import ninja
    import pybind11

    folder = tmp_path_factory.mktemp("build")
    configure = [
        *(sys.executable, "-m", "cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None"),
        f"-DCMAKE_MAKE_PROGRAM={Path(ninja.BIN_DIR) / 'ninja'}",
        f"-DCMAKE_CXX_FLAGS=-O1 {' '.join(FLAGS)}",  # kernels have their own -O3, which comes later
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
    ]
    for command in (configure, [sys.executable, "-m", "cmake", "--build", folder]):
        environment = os.environ | {"ROLI_FAST_CUDA": "0"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def package(build, tmp_path_factory):
    package = package_copy(tmp_path_factory.mktemp("sanitized"))
    cpu_library(package).symlink_to(build / cpu_library(package).name)
    (module,) = build.glob("_C.*")
    (package / "roli_fast" / module.name).unlink()
    (package / "roli_fast" / module.name).symlink_to(module)
    return package


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    package = package_copy(tmp_path_factory.mktemp("emulated"))
    compile_emulated(cpu_library(package), *FLAGS)
    return package


@pytest.fixture(params=[*CAPABILITIES, "emulated CUDA"])
def kernels(request):
    """A package whose kernels are checked, and the environment that chooses them."""
    if request.param == "emulated CUDA":
        package = request.getfixturevalue("emulated")
        return package, {"PYTHONPATH": str(package)}
    if not runs_here(request.param):
        pytest.skip(f"this processor has no {request.param}")
    package = request.getfixturevalue("package")
    return package, {"PYTHONPATH": str(package), "ROLI_FAST_CPU_CAPABILITY": request.param}


def assert_clean(code, output, at_least):
    """`-s` in the calls, or else pytest keeps a finding to itself."""
    assert code == 0, output
    assert int(re.search(r"(\d+) passed", output)[1]) > at_least, output


def test_contract(kernels, checked):
    package, environment = kernels
    values = "tests/ops/test_contract.py::test_agrees_with_the_reference"  # long, and no matter of sanitizers
    command = contract("ops/test_contract.py", "-s", "--deselect", values)
    assert_clean(*checked(*command, env=environment, cwd=package), 150)


def test_guards(package, checked):
    """The checks of overlaps and arguments, which are the same for all kernels."""
    environment = {"PYTHONPATH": str(package)}
    for tests, at_least in (("ops/test_overlap.py", 50), ("ops/test_checks.py", 100)):
        assert_clean(*checked(*contract(tests, "-s"), env=environment, cwd=package), at_least)


def test_numpy(package, checked):
    command = pytest_on("numpy_face", "-s")
    assert_clean(*checked(*command, env={"PYTHONPATH": str(package)}, cwd=package), 100)


# That a finding would be one


POISONED = """
import ctypes
import {importing}
adv, grad, clean = ({ones} for _ in range(3))
ctypes.CDLL(None).__asan_poison_memory_region(ctypes.c_void_p({address} + 96), ctypes.c_size_t(8))
{module}.linf_step_(adv, grad, clean, 0.1, 0.1)
print("survived")
"""
ON_TENSORS = POISONED.format(
    importing="torch, roli_fast.ops", module="roli_fast.ops", ones="torch.ones(64)", address="grad.data_ptr()"
)
ON_ARRAYS = POISONED.format(
    importing="numpy, roli_fast.numpy",
    module="roli_fast.numpy",
    ones="numpy.ones(64, 'f')",
    address="grad.ctypes.data",
)


def assert_found(code, output, finding):
    assert code != 0
    assert finding in output
    assert "survived" not in output


def test_kernels_are_checked(kernels, checked):
    """An element that may not be read is found to be read, by the library that the contract runs on."""
    package, environment = kernels
    found = checked("-c", ON_TENSORS, env=environment, cwd=package)
    assert_found(*found, "AddressSanitizer: use-after-poison")
    assert b"__ubsan_handle" in cpu_library(package).read_bytes()


def test_the_numpy_face_is_checked(package, checked):
    found = checked("-c", ON_ARRAYS, env={"PYTHONPATH": str(package)}, cwd=package)
    assert_found(*found, "AddressSanitizer: use-after-poison")


BUGS = """
#include <cstdint>
#include <cstdlib>
extern "C" {
float past_the_end(int n) {
  float* x = static_cast<float*>(std::calloc(n, sizeof(float)));
  return x[n];
}
float misaligned(int n) {
  const volatile char* x = static_cast<char*>(std::calloc(n, sizeof(float)));
  return *reinterpret_cast<const volatile float*>(x + 1);
}
int overflow(int n) {
  return n + INT32_MAX;
}
}
"""
FINDINGS = {
    "past_the_end": "AddressSanitizer: heap-buffer-overflow",
    "misaligned": "runtime error: load of misaligned address",
    "overflow": "runtime error: signed integer overflow",
}


@pytest.fixture(scope="module")
def bugs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bugs")
    (folder / "bugs.cpp").write_text(BUGS)
    command = [COMPILER, "-O1", *FLAGS, "-shared", "-fPIC", "bugs.cpp", "-o", "bugs.so"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "bugs.so"


@pytest.mark.parametrize("bug", FINDINGS)
def test_bugs_are_found(bug, bugs, checked):
    code = f"import ctypes; bug = ctypes.CDLL('{bugs}').{bug}; bug(5); print('survived')"
    assert_found(*checked("-c", code), FINDINGS[bug])
