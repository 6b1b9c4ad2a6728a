"""The CUDA kernels on the CPU: their bodies and launchers as plain C++, under the whole contract.

What this does not show: that nvcc compiles the arithmetic to the same bits (test_static.py looks for what
would change them), and how the library meets torch's device and stream (test_device.py, on a GPU).
"""

import re
import subprocess

import pytest

from ..package_copy import COMPILER, ROOT, compile_emulated, contract, cpu_library, package_copy


@pytest.fixture(scope="module")
def complete(request):
    """Whether the whole suite runs, on optimised code: a matter of minutes."""
    return request.config.getoption("--slow")


@pytest.fixture(scope="module")
def package(tmp_path_factory, complete):
    """A folder with the package, in which the emulated CUDA kernels stand in for those of the CPU."""
    package = package_copy(tmp_path_factory.mktemp("emulated"))
    # A GPU refuses misaligned packs, so the emulation does.
    flags = ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]
    compile_emulated(cpu_library(package), *flags, *([] if complete else ["-O0", "-DROLI_FN=inline"]))
    return package


# pytest, and then which of our libraries are in its process.
RUN = """
import sys, pytest
status = pytest.main(sys.argv[1:])
print(*{line.split()[-1] for line in open("/proc/self/maps") if "libroli" in line})
sys.exit(status)
"""


def test_contract(package, python, complete):
    """The suite of the ops, or each op on every dtype, where the backend "cpu" is the emulated kernels."""
    few = "ops/test_contract.py::test_every_dtype", str(ROOT / "tests" / "ops" / "test_cross_entropy.py")
    _, _, *options = contract() if complete else contract(*few)
    output = python("-c", RUN, *options, env={"PYTHONPATH": str(package)}, cwd=package)
    assert str(cpu_library(package)) in output.splitlines()
    assert int(re.search(r"(\d+) passed", output)[1]) > (500 if complete else 10), output


DIVISION = """
#include "cuda/index.h"
#include <cstdio>
#include <random>

int main() {
  std::mt19937_64 random(0);
  for (int i = 0; i < 2000000; ++i) {
    const int64_t divisor = static_cast<int64_t>(random() >> (1 + random() % 63)) + 1;
    const int64_t n = static_cast<int64_t>(random() >> (1 + random() % 63));
    const int64_t near = n / divisor * divisor;  // where quotients change
    for (int64_t x : {n, near, near - (near > 0)}) {
      const roli::cuda::Divider by(divisor);
      if (by.quotient(x) == x / divisor && by.remainder(x) == x % divisor) continue;
      std::printf("%lld / %lld\\n", static_cast<long long>(x), static_cast<long long>(divisor));
      return 1;
    }
  }
}
"""


def test_division_by_multiplication(tmp_path):
    """For all of 63 bits, of which places beyond 2^32 are the part that no small tensor reaches."""
    (tmp_path / "division.cpp").write_text(DIVISION)
    command = [COMPILER, "-std=c++20", "-O1", f"-I{ROOT / 'csrc'}", "division.cpp", "-o", "division"]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = subprocess.run(["./division"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
