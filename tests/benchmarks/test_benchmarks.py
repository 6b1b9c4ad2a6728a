"""The benchmarks run, and their contenders compute the same."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def test_everything_runs_on_tiny_shapes(tmp_path):
    """What `make gpu` runs, here on the CPU: tests, benchmarks, one JSON, its pictures and a summary."""
    before = set((ROOT / "benchmarks" / "results").glob("*"))
    # pytest-benchmark records nothing in what it takes for a worker of pytest-xdist's.
    environment = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    done = subprocess.run(
        [sys.executable, "tools/gpu.py", "--device", "cpu", "--quick", "--out", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set((ROOT / "benchmarks" / "results").glob("*")) == before
    (result,) = tmp_path.glob("gpu-*.json")
    found = json.loads(result.read_text())
    assert [step["outcome"] for step in found["parts"]["ops"]["steps"]] == ["ok"] * 3
    assert found["parts"]["ops"]["tests"]["passed"] > 10
    assert found["parts"]["attacks"]["tests"]["failed"] == []
    cases = found["parts"]["ops"]["benchmarks"]["test_ops"]["benchmarks"]
    assert {"float32", "bf16-out-channels-last", "project", "start"} < {c["params"]["form"] for c in cases}
    assert result.with_name(f"{result.stem}-ops.png").stat().st_size > 10_000
    assert "== summary" in done.stdout

    command = [
        sys.executable,
        "tools/gpu.py",
        "attacks",
        "--device",
        "cpu",
        "--quick",
        "--out",
        str(tmp_path),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert json.loads(result.read_text())["parts"]["ops"] == found["parts"]["ops"]  # is still there


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "got nonsense, accepted: ops, attacks"),
        pytest.param(
            [],
            "torch sees no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_a_run_that_cannot_be_is_refused(arguments, message):
    done = subprocess.run(
        [sys.executable, "tools/gpu.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert message in done.stderr


def test_the_readme_shows_the_committed_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    readme = importlib.import_module("readme")
    results = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    text = readme.README.read_text()
    assert results
    assert readme.with_highlights(text, results) == text
    assert readme.results(results) == readme.ALL_RESULTS.read_text()
