"""Everything that a GPU can show, in one command: ``make gpu``, or ``python tools/gpu.py ops attacks``.

Builds the package into the Python that runs this, without the network; runs the tests marked ``gpu``, the
memory checker where it is there, and the benchmarks; writes one JSON and its pictures, and a summary last. A
step that fails does not keep the others from running, and a run of some parts leaves in the JSON what earlier
ones found of the others. ``--device cpu --quick`` does the same on tiny shapes, to see that it works.
"""

import argparse
import datetime
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 590.0  # seconds for all steps together

# Seconds of a step at most, so that the benchmarks have their share.
LIMITS = {"tests": 300.0, "memory checker": 60.0}


@dataclass(frozen=True)
class Part:
    """What belongs together and can be chosen. quick: tests that are enough to see that the script works."""

    tests: tuple[str, ...]
    quick: tuple[str, ...]
    benchmarks: tuple[str, ...] = ()
    kernels: bool = False  # whether it is about kernels, whose memory accesses are looked at


PARTS = {
    "ops": Part(
        tests=("tests/gpu", "tests/ops"),
        quick=("tests/ops/test_prepare.py",),
        benchmarks=("test_ops",),
        kernels=True,
    ),
    "attacks": Part(
        tests=("tests/attacks", "tests/engine", "tests/speed"), quick=("tests/engine/test_input_gradient.py",)
    ),
}


class StepError(Exception):
    """A step has failed; the message says how. found: what it has found nevertheless."""

    def __init__(self, message: str, found: Any = None):
        super().__init__(message)
        self.found = found


class Run:
    """One run: where it happens, what is left of its time, and what it has found."""

    def __init__(self, device: str, quick: bool):
        self.device, self.quick = device, quick
        self.started = perf_counter()
        self.outcomes: list[tuple[str, str, float]] = []

    def command(self, *command: object, check: bool = True, limit: float = BUDGET, **environment: str) -> str:
        """Runs a command in the repository and returns what it printed, which is shown when it fails."""
        left = min(limit, BUDGET - (perf_counter() - self.started))
        try:
            done = subprocess.run(
                [str(part) for part in command],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=max(left, 1.0),
            )
        except subprocess.TimeoutExpired as error:
            said = error.stdout or b""  # bytes, whatever was asked for
            print(said if isinstance(said, str) else said.decode(errors="replace"))
            raise StepError(f"out of time: {left:.0f} s, of {BUDGET:.0f} s in all") from error
        if check and done.returncode != 0:
            print(done.stdout)
            raise StepError(f"exit code {done.returncode}")
        return done.stdout

    def step(self, name: str, work: Callable[[], Any]) -> Any:
        """Does the work and notes how it went; returns what it found."""
        print(f"== {name}", flush=True)
        start = perf_counter()
        try:
            found, outcome = work(), "ok"
        except StepError as failure:
            found, outcome = failure.found, f"FAILED: {failure}"
        self.outcomes.append((name, outcome, perf_counter() - start))
        print(f"   {outcome}, {self.outcomes[-1][2]:.0f} s", flush=True)
        return found

    @property
    def failed(self) -> bool:
        return any(outcome != "ok" for _, outcome, _ in self.outcomes)


# Steps


def build(run: Run) -> None:
    """For this machine's GPU alone, unless TORCH_CUDA_ARCH_LIST says otherwise."""
    major, minor = torch.cuda.get_device_capability()
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--editable")
    run.command(
        *(sys.executable, "-m", "pip", "install", "--quiet", *options, ROOT),
        ROLI_FAST_CUDA="1",
        TORCH_CUDA_ARCH_LIST=os.environ.get("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}"),
    )


def test(run: Run, part: Part) -> dict[str, Any]:
    paths = part.quick if run.quick else part.tests
    marked = "gpu" if run.device == "cuda" else "not gpu and not slow"
    workers = str(os.cpu_count() or 1)
    parallel = ("-n", workers) if importlib.util.find_spec("xdist") and not run.quick else ()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        output = run.command(
            *(sys.executable, "-m", "pytest", "-q", "-m", marked, *parallel, f"--junitxml={report}", *paths),
            check=False,
            limit=LIMITS["tests"],
        )
        if not report.exists():
            print(output)
            raise StepError("pytest did not run")
        found = _read_report(report)
    counts = f"{found['passed']} passed, {len(found['failed'])} failed, {found['skipped']} skipped"
    print(f"   {counts}")
    if found["failed"] or not found["passed"]:
        print(output)
        raise StepError(counts, found)
    return found


def _read_report(report: Path) -> dict[str, Any]:
    cases = list(ElementTree.parse(report).iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    return {
        "passed": len(cases) - len(bad) - len(skipped),
        "failed": [f"{case.get('classname')}::{case.get('name')}" for case in bad],
        "skipped": len(skipped),
    }


def check_memory(run: Run) -> str:
    """Under NVIDIA's checker, on small shapes."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        return "not run: compute-sanitizer is not there"
    output = run.command(
        *(sanitizer, "--tool", "memcheck", "--error-exitcode", "9"),
        *(sys.executable, "tests/gpu/small_shapes.py"),
        check=False,
        limit=LIMITS["memory checker"],
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",  # else all tensors lie in one allocation
    )
    if "Device not supported" in output:
        return "not run: compute-sanitizer does not support this device"
    if "ERROR SUMMARY: 0 errors" not in output or not re.search(r"^\d+ calls$", output, re.M):
        print(output)
        raise StepError("compute-sanitizer reports errors, or the script did not end")
    return "no errors"


def benchmark(run: Run, suite: str) -> dict[str, Any]:
    """A form whose contenders disagree fails; the others' times are kept."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        output = run.command(
            *(sys.executable, "-m", "pytest", f"benchmarks/{suite}.py", "-q", "--device", run.device),
            *("--benchmark-columns=median", f"--benchmark-json={report}"),
            check=False,
            ROLI_FAST_BENCH_QUICK="1" if run.quick else "0",
        )
        measured = json.loads(report.read_text()) if report.exists() and report.stat().st_size else None
    summary = output.rfind("\n", 0, max(output.find(" ours, and its time"), 0))
    failed = re.search(r"\d+ (?:failed|errors?)\b", output)
    print(output if failed or not measured else output[summary + 1 :])
    if failed or not measured:
        raise StepError(failed[0] if failed else "no results", measured)
    return measured


# The whole


def run_part(run: Run, name: str) -> dict[str, Any]:
    part = PARTS[name]
    found = {"tests": run.step(f"{name}: tests", lambda: test(run, part))}
    found["benchmarks"] = {
        suite: run.step(f"{name}: {suite}", lambda suite=suite: benchmark(run, suite))
        for suite in part.benchmarks
    }
    if part.kernels and run.device == "cuda":
        found["memory"] = run.step(f"{name}: memory checker", lambda: check_memory(run))
    return found


def publish(run: Run, parts: dict[str, Any], folder: Path) -> None:
    """The JSON, and a picture of each benchmark."""
    from roli_fast.speed import machine

    slug = machine.slug(run.device)
    path = folder / f"gpu-{slug}.json"
    earlier = json.loads(path.read_text())["parts"] if path.exists() else {}
    steps = [{"step": step, "outcome": o, "seconds": round(s, 1)} for step, o, s in run.outcomes]
    about = {
        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {name: machine.version(name) for name in ("torch", "triton", "roli-fast")},
        "commit_info": machine.commit(),
    }
    result = {"parts": earlier | {name: about | {"steps": steps} | part for name, part in parts.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1))
    print(f"== results\n   {path}", flush=True)
    for part in parts.values():
        for suite, measured in part["benchmarks"].items():
            if measured:
                from benchmarks import plot

                picture = folder / f"gpu-{slug}-{suite.removeprefix('test_')}.png"
                print(f"   {plot.draw(measured, picture)}")


def summarize(run: Run, parts: dict[str, Any]) -> None:
    print("== summary")
    for name, part in parts.items():
        for measured in part["benchmarks"].values():
            for line in _headlines(measured["benchmarks"] if measured else []):
                print(f"   {name}: {line}")
    for step, outcome, seconds in run.outcomes:
        print(f"   {outcome:<6} {step} ({seconds:.0f} s)")


def _headlines(cases: list[dict[str, Any]]) -> list[str]:
    """The copy bandwidth, and what ours reaches of it in each form on the largest size, beside its rivals."""
    sizes = list(dict.fromkeys(case["params"]["size"] for case in cases))
    by = {
        (c["params"]["form"], c["params"]["contender"]): c for c in cases if c["params"]["size"] == sizes[-1]
    }
    copies = [case["extra_info"]["effective_gb_per_s"] for (_, who), case in by.items() if who == "copy"]
    lines = [f"copy bandwidth {max(copies):.0f} GB/s, at {sizes[-1]}"] if copies else []
    for (form, who), case in by.items():
        if who != "ours":
            continue
        share = 1 / case["extra_info"]["ratio_to_copy"]["median"]
        rivals = (
            f"{rival} {other['extra_info']['ratio_to_ours']['median']:.2f}"
            for (of, rival), other in by.items()
            if of == form and rival not in ("ours", "copy")
        )
        lines.append(f"{form}: {share:.0%} of copy bandwidth; times as fast as rivals: {', '.join(rivals)}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="Everything that a GPU can show, in one command.")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="tiny shapes and few tests: does it work?")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="where results go")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"part: got {', '.join(sorted(unknown))}, accepted: {', '.join(PARTS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu --quick shows that the script works")

    sys.path.insert(0, str(ROOT))
    run = Run(arguments.device, arguments.quick)
    if run.device == "cuda":
        run.step("build", lambda: build(run))
    parts: dict[str, Any] = {}
    try:
        for name in arguments.parts or PARTS:
            parts[name] = run_part(run, name)
    finally:  # also of a run that is interrupted
        try:
            publish(run, parts, arguments.out)
        finally:
            summarize(run, parts)
    return int(run.failed)


if __name__ == "__main__":
    sys.exit(main())
