"""The benchmarks run, and their contenders compute the same."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_quick_run():
    before = set((ROOT / "benchmarks" / "results").glob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks", "-q", "--benchmark-columns=median"],
        cwd=ROOT,
        env={**os.environ, "ROLI_FAST_BENCH_QUICK": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "bf16-out-channels-last" in done.stdout
    assert set((ROOT / "benchmarks" / "results").glob("*")) == before


def test_the_readme_shows_the_committed_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    readme = importlib.import_module("readme")
    results = sorted((ROOT / "benchmarks" / "results").glob("linf-*.json"))
    text = readme.README.read_text()
    assert results
    assert readme.with_tables(text, results) == text
