"""The wheel works outside the checkout, and the package installs without a compiler."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROBE = """
import importlib, json, pkgutil, sys, torch
# An editable install would lend its own modules to those that are missing.
sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in finder.__module__]
import roli_fast
names = [m.name for m in pkgutil.walk_packages(roli_fast.__path__, "roli_fast.") if "_C" not in m.name]
on_numpy = None
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        if name != "roli_fast.numpy":
            raise
        on_numpy = str(error)
native = roli_fast.backends()["cpu"].missing is None
adv = torch.full((2, 3), 0.5)
roli_fast.ops.linf_step_(adv, torch.ones(2, 3), torch.full((2, 3), 0.5), 0.25, 0.125)
built = importlib.import_module("roli_fast._C").build_config()["cuda"] if native else "nothing"
print(json.dumps({
    "file": roli_fast.__file__,
    "names": names,
    "numpy_missing": on_numpy,
    "cpu_missing": roli_fast.backends()["cpu"].missing,
    "default": [name for name, b in roli_fast.backends().items() if "cpu" in b.default_for],
    "adv": adv.unique().tolist(),
    "built": built.split()[0],
}))
"""


def source(to: Path) -> Path:
    """A copy of the sources: a build must not touch the checkout, nor find what was built in it."""
    for name in ("roli_fast", "csrc", "cmake", "kernels"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "setup.py", "CMakeLists.txt", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, to / name)
    return to


def installed(tmp_path: Path, **switches: str) -> Path:
    """The folder into which a wheel built from the sources was installed."""
    environment = {**os.environ, "TORCH_CUDA_ARCH_LIST": "9.0", **switches}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    (tmp_path / "source").mkdir()
    target = tmp_path / "site"
    options = ["--no-deps", "--no-build-isolation", "--no-compile", "--target", str(target)]
    command = [*pip, "install", *options, str(source(tmp_path / "source"))]
    subprocess.run(command, check=True, env=environment)
    return target


def probe(target: Path, tmp_path: Path) -> dict:
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("native", "cuda"),
    [
        pytest.param(
            "1", os.environ.get("ROLI_FAST_CUDA", ""), marks=pytest.mark.slow, id="cuda where it can"
        ),
        pytest.param("0", "0", id="no compiler"),
    ],
)
def test_the_wheel_works_outside_the_checkout(tmp_path, native, cuda):
    target = installed(tmp_path, ROLI_FAST_NATIVE=native, ROLI_FAST_CUDA=cuda)
    found = probe(target, tmp_path)
    assert Path(found["file"]).is_relative_to(target)
    expected = {"ops", "engine", "attacks", "cli.main", "kernels", "kernels.linf", "numpy"}
    assert {f"roli_fast.{name}" for name in expected} <= set(found["names"])
    assert found["adv"] == [0.625]
    assert (target / "roli_fast" / "py.typed").exists()
    if native == "1":
        assert found["cpu_missing"] is found["numpy_missing"] is None
        assert found["default"] == ["cpu"]
        assert found["built"] == "nvcc" or cuda == "0"
        assert (target / "roli_fast" / "lib" / "libroli_fast_cuda.so").exists() == (found["built"] == "nvcc")
    else:
        assert "ROLI_FAST_NATIVE=0" in found["cpu_missing"]
        assert "ROLI_FAST_NATIVE=0" in found["numpy_missing"]
        assert found["default"] == ["reference"]
        assert not list(target.rglob("*.so"))


def test_another_value_of_the_switch_is_refused(tmp_path):
    environment = {**os.environ, "ROLI_FAST_NATIVE": "maybe"}
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "ROLI_FAST_NATIVE: got 'maybe', accepted: 0" in done.stderr
