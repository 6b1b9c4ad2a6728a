"""The default backend, fixed at import by ROLI_FAST_BACKEND and by what was built."""

import os
import shutil
from pathlib import Path

import pytest
import torch

import roli_fast

from ..selection import slow

TESTS = Path(__file__).parent.parent

# What runs: torch.ops.roli_fast, roli_fast.ops, and roli_fast.ops inside a block for the kernels.
REPORT = f"""
import json, sys
sys.path.append({str(TESTS)!r})
import torch
import roli_fast
from ops.cases import is_reference

image, seed, report = torch.zeros(2, 3), torch.tensor([0, 0]), {{}}
report["torch.ops"] = is_reference(lambda: torch.ops.roli_fast.linf_start(image, 0.1, seed))
report["torch.ops tensor"] = is_reference(
    lambda: torch.ops.roli_fast.linf_start.tensor(image, torch.tensor(0.1), seed)
)
report["ops"] = is_reference(lambda: roli_fast.ops.linf_start(image, 0.1, seed))
try:
    with roli_fast.backend("cpu"):
        report["block"] = is_reference(lambda: roli_fast.ops.linf_start(image, 0.1, seed))
except RuntimeError as error:
    report["block"] = str(error)
def is_triton(function):
    function()  # the first call imports and compiles
    return "roli_fast.kernels" in sys.modules

report["triton"] = [
    is_triton(lambda: torch.ops.roli_fast.linf_start(image, 0.1, seed)),
    is_triton(lambda: roli_fast.ops.linf_start(image, 0.1, seed)),
    report["ops"],
]
try:
    torch.ops.roli_fast.linf_project_(image, torch.zeros(3, 3), 0.1)
except (RuntimeError, ValueError) as error:
    report["error"] = str(error)
report["default"] = [name for name, b in roli_fast.backends().items() if "cpu" in b.default_for]
report["missing"] = roli_fast.backends()["cpu"].missing
report["file"] = roli_fast.__file__
print(json.dumps(report))
"""


@pytest.mark.slow  # ops/test_choice.py shows it of the process that it runs in
def test_the_default_is_native(answer):
    report = answer(REPORT)
    assert not any(report[way] for way in ("torch.ops", "torch.ops tensor", "ops", "block"))
    assert report["default"] == ["cpu"]


def test_the_reference_as_default(answer):
    report = answer(REPORT, env={"ROLI_FAST_BACKEND": "reference"})
    assert all(report[way] for way in ("torch.ops", "torch.ops tensor", "ops"))
    assert report["block"] is False  # the kernels are still there for who asks
    assert report["default"] == ["reference"]
    assert "clean" in report["error"]


@pytest.mark.slow
def test_native_by_name(answer):
    report = answer(REPORT, env={"ROLI_FAST_BACKEND": "cpu"})
    assert not any(report[way] for way in ("torch.ops", "torch.ops tensor", "ops", "block"))


@pytest.mark.slow
def test_triton_as_default_where_it_is_interpreted(answer):
    report = answer(REPORT, env={"ROLI_FAST_BACKEND": "triton", "TRITON_INTERPRET": "1"})
    assert report["default"] == ["triton"]
    assert report["triton"] == [True, True, False]
    assert report["block"] is False


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["cuda", *slow("triton")])
def test_a_default_that_cannot_run_is_an_import_error(fresh, name):
    environment = {"ROLI_FAST_BACKEND": name, "TRITON_INTERPRET": "0"}
    done = fresh("import roli_fast.ops", env=environment)
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith(f"ImportError: ROLI_FAST_BACKEND={name} cannot run: torch ")


def test_an_unknown_default_is_an_import_error(fresh):
    done = fresh("import roli_fast.ops", env={"ROLI_FAST_BACKEND": "nonsense"})
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: ROLI_FAST_BACKEND: got 'nonsense', accepted: ")
    assert all(name in message for name in roli_fast.backends())


def installed(folder, damage=False):
    """The package as it is installed without a compiler, or with a library that does not load."""
    source = Path(roli_fast.__file__).parent
    shutil.copytree(source, folder / "roli_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for library in source.rglob("libroli_fast*.so") if damage else ():
        damaged = folder / "roli_fast" / library.relative_to(source)
        damaged.parent.mkdir(exist_ok=True)
        damaged.write_bytes(b"no library")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def test_without_the_library(answer, fresh, tmp_path):
    environment = installed(tmp_path)
    report = answer(REPORT, env=environment, cwd=tmp_path)
    assert report["file"].startswith(str(tmp_path))
    assert all(report[way] for way in ("torch.ops", "torch.ops tensor", "ops"))
    assert report["default"] == ["reference"]
    assert "not built" in report["missing"]
    assert "ROLI_FAST_NATIVE" in report["missing"]
    assert "'cpu' cannot run" in report["block"]
    assert report["missing"] in report["block"]

    done = fresh("import roli_fast.ops", env=environment | {"ROLI_FAST_BACKEND": "cpu"}, cwd=tmp_path)
    assert done.returncode != 0
    assert "ImportError: ROLI_FAST_BACKEND=cpu cannot run: not built" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")
def test_without_the_cuda_library(answer, tmp_path):
    source = Path(roli_fast.__file__).parent
    ignored = shutil.ignore_patterns("libroli_fast_cuda.so", "__pycache__")
    shutil.copytree(source, tmp_path / "roli_fast", ignore=ignored)
    code = "import json, roli_fast; print(json.dumps(roli_fast.backends()['cuda'].missing))"
    missing = answer(code, env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert missing.startswith("not built: ")


def test_with_a_library_that_does_not_load(answer, tmp_path):
    """As after an upgrade of torch that it was not built for: it says so, and the reference runs."""
    report = answer(REPORT, env=installed(tmp_path, damage=True), cwd=tmp_path)
    assert "does not load" in report["missing"]
    assert report["default"] == ["reference"]
    assert report["ops"]
