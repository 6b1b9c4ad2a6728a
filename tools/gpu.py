"""Tests and measurements of a GPU, in one command: ``make gpu``, or ``python tools/gpu.py tests ops``.

Builds the package into the Python that runs this, without the network; runs the tests marked ``gpu``, the
memory checker where it is there, and the benchmarks; writes one JSON and its pictures, and a summary last.
Benchmarks that are scripts write a JSON of their own beside it. A step that fails, or for which no time is
left, keeps no other from running; benchmarks that did not run stay in the JSON as an earlier run has measured
them. ``--device cpu --quick`` does the same on tiny shapes, and only asks the scripts how they are used, to
see that it works.
"""

import argparse
import datetime
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CHECKING = 120.0  # seconds of the memory checker at most
GRACE = 20.0  # seconds in which a command that is out of time may write down what it has found
MOST_WORKERS = 12  # each has a context on the device, of half a GB
PUBLISHING = 10.0  # seconds that the JSON and its pictures take


@dataclass(frozen=True)
class Part:
    """What can be chosen. tests: the most important first. quick: tests that are enough to see that the
    script works. slow: whether the tests are those that take long. memory: whether accesses are looked at,
    too. scripts: modules of benchmarks that need ../shared/data, with their arguments and the file that they
    write, in which MACHINE stands for the machine's name."""

    tests: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    slow: bool = False
    benchmarks: tuple[str, ...] = ()
    memory: bool = False
    scripts: tuple[tuple[str, str], ...] = ()


FOLDERS = "gpu", "ops", "attacks", "engine", "training", "evaluation", "cli", "compat", "speed"
TESTS = tuple(f"tests/{folder}" for folder in FOLDERS)
QUICK = "tests/ops/test_prepare.py", "tests/engine/test_input_gradient.py", "tests/training/test_recipe.py"
PRICE = "price.json"
DRAWN = "test_ops", "test_attacks"
PARTS = {
    "tests": Part(tests=TESTS, quick=QUICK),
    "slow": Part(tests=TESTS, quick=QUICK[:1], slow=True),
    "ops": Part(benchmarks=("test_ops", "test_cross_entropy"), memory=True),
    "attacks": Part(benchmarks=("test_attacks",)),
    "strength": Part(
        scripts=(
            ("strength resnet-precision vit-precision", "strength-MACHINE.json"),
            ("autoattack resnet10_tin200_robust --seeds 0 --again", "autoattack-MACHINE.json"),
        )
    ),
    "training": Part(
        scripts=(
            ("stages swin_base", "stages-MACHINE.json"),  # needs no data
            ("stages resnet10", "stages-MACHINE.json"),
            ("early_stop", "early-stop-MACHINE.json"),
            ("price times", PRICE),
            ("price phases", PRICE),
            ("price removals", PRICE),
        )
    ),
}


class StepError(Exception):
    """A step has failed; the message says how. found: what it has found nevertheless."""

    def __init__(self, message: str, found: Any = None):
        super().__init__(message)
        self.found = found


@dataclass(frozen=True)
class Done:
    """A command that has ended. late: why it was ended, if it was."""

    output: str
    code: int
    late: str | None


class Run:
    """One run: where it happens, what is left of its time, and what it has found. seconds: of all steps.
    commit: of which this is a copy."""

    def __init__(self, device: str, quick: bool, seconds: float = math.inf, commit: str | None = None):
        self.device, self.quick, self.commit = device, quick, commit
        self.ends = perf_counter() + seconds - PUBLISHING
        self.outcomes: list[tuple[str, str, float]] = []

    @property
    def left(self) -> float:
        """Seconds that a command may take, after which it still has its grace."""
        return self.ends - perf_counter() - GRACE

    def command(
        self, *command: object, check: bool = True, limit: float = math.inf, **environment: str
    ) -> Done:
        """Runs a command in the repository. What it printed is shown when it fails."""
        limit = min(limit, self.left)
        if limit <= 0:
            raise StepError("no time left")
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            process = subprocess.Popen(
                [str(part) for part in command],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=output,  # no pipe: whatever the command has started may hold it open
                stderr=subprocess.STDOUT,
                preexec_fn=_heed_interrupts,
            )
            late = None if _ends(process, limit) else f"out of time: {limit:.0f} s"
            output.seek(0)
            done = Done(output.read(), process.returncode, late)
        if check and (done.late or done.code != 0):
            print(done.output)
            raise StepError(done.late or f"exit code {done.code}")
        return done

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


def _heed_interrupts() -> None:
    """Also where this script runs in the background of a shell, which has its children ignore them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _ends(process: subprocess.Popen, limit: float) -> bool:
    """Waits for a process; whether it ended by itself. Interrupted, pytest still writes its report."""
    try:
        process.wait(None if limit == math.inf else limit)
        return True
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    except BaseException:
        process.kill()
        raise
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return False


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
    marked = f"{'' if run.device == 'cuda' else 'not '}gpu and {'' if part.slow else 'not '}slow"
    chosen = ("-m", marked, *(("--slow",) if part.slow else ()))
    workers = str(min(os.cpu_count() or 1, MOST_WORKERS))
    parallel = ("-n", workers) if importlib.util.find_spec("xdist") and not run.quick else ()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = Path(folder, "outcomes")
        done = run.command(
            *(sys.executable, "-m", "pytest", "-q", *chosen, *parallel, "-p", "outcomes", *paths),
            check=False,
            OMP_NUM_THREADS="1",  # workers that share the cores would wait for each other in every loop
            PYTHONPATH=os.pathsep.join(filter(None, (str(ROOT / "tools"), os.environ.get("PYTHONPATH")))),
            ROLI_FAST_OUTCOMES=str(outcomes),
        )
        found = _read_outcomes(outcomes.read_text() if outcomes.exists() else "")
    counts = f"{found['passed']} passed, {len(found['failed'])} failed, {found['skipped']} skipped"
    print(f"   {counts}")
    wrong = done.late or (f"pytest's exit code {done.code}" if done.code not in (0, 1) else None)
    if wrong or found["failed"] or not found["passed"]:
        print(done.output)
        unfinished = f", in {found['unfinished']}" if wrong and found["unfinished"] else ""
        raise StepError("; ".join(filter(None, (wrong and f"{wrong}{unfinished}", counts))), found)
    return found


def _read_outcomes(written: str) -> dict[str, Any]:
    """Of what the plugin has written: a test has one line for its start, and one for how it went, or two."""
    lines = [line.partition(" ")[::2] for line in written.splitlines()]
    ended = {test: outcome for outcome, test in lines if outcome != "started"}
    failed = list(dict.fromkeys(test for outcome, test in lines if outcome == "failed"))
    return {
        "passed": sum(outcome == "passed" and test not in failed for test, outcome in ended.items()),
        "failed": failed,
        "skipped": sum(outcome == "skipped" for outcome in ended.values()),
        "unfinished": ", ".join(t for outcome, t in lines if outcome == "started" and t not in ended),
    }


def check_memory(run: Run) -> str:
    """Under NVIDIA's checker, on small shapes."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        return "not run: compute-sanitizer is not there"
    done = run.command(
        *(sanitizer, "--tool", "memcheck", "--error-exitcode", "9"),
        *(sys.executable, "tests/gpu/small_shapes.py"),
        check=False,
        limit=CHECKING,
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",  # else all tensors lie in one allocation
    )
    if done.late:
        print(done.output)
        raise StepError(done.late)
    if "Device not supported" in done.output:
        return "not run: compute-sanitizer does not support this device"
    if "ERROR SUMMARY: 0 errors" not in done.output or not re.search(r"^\d+ calls$", done.output, re.M):
        print(done.output)
        raise StepError("compute-sanitizer reports errors, or the script did not end")
    return "no errors"


def benchmark(run: Run, suite: str) -> dict[str, Any]:
    """A form whose contenders disagree fails; the others' times are kept, also when time runs out."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        done = run.command(
            *(sys.executable, "-m", "pytest", f"benchmarks/{suite}.py", "-q", "--device", run.device),
            *("--benchmark-columns=median", f"--benchmark-json={report}"),
            check=False,
            ROLI_FAST_BENCH_QUICK="1" if run.quick else "0",
        )
        measured = json.loads(report.read_text()) if report.exists() and report.stat().st_size else None
    # Of a run that went well, the table of the ops is enough.
    table = done.output.find(" ours, and its time")
    failed = re.search(r"\d+ (?:failed|errors?)\b", done.output)
    wrong = [*filter(None, (done.late, failed and failed[0], None if measured else "no results"))]
    if not wrong and done.code != 0:
        wrong = [f"pytest's exit code {done.code}"]
    if wrong:
        print(done.output)
        raise StepError("; ".join(wrong), measured and measured | {"whole": False})
    if table >= 0:
        print(done.output[done.output.rfind("\n", 0, table) + 1 :])
    return measured


def script(run: Run, command: str, path: Path) -> None:
    """Adds to a copy of what is committed, where the file is not there yet."""
    committed = RESULTS / path.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not run.quick and not path.exists() and committed.exists():
        shutil.copyfile(committed, path)
    module, *arguments = command.split()
    aim = ("--help",) if run.quick else ("--out", path)
    about = {"ROLI_FAST_COMMIT": run.commit} if run.commit else {}
    run.command(sys.executable, "-m", f"benchmarks.{module}", *arguments, *aim, **about)


# The whole


def run_part(run: Run, name: str, folder: Path) -> dict[str, Any]:
    from roli_fast.speed import machine

    part, found = PARTS[name], {}
    if part.tests:
        found["tests"] = run.step(name, lambda: test(run, part))
    if part.benchmarks:
        found["benchmarks"] = {
            suite: run.step(f"{name}: {suite}", lambda suite=suite: benchmark(run, suite))
            for suite in part.benchmarks
        }
    if part.memory and run.device == "cuda":
        found["memory"] = run.step(f"{name}: memory checker", lambda: check_memory(run))
    for command, file in part.scripts:
        path = folder / file.replace("MACHINE", machine.slug(run.device))
        run.step(f"{name}: {command}", lambda command=command, path=path: script(run, command, path))
    return found


def publish(run: Run, parts: dict[str, Any], folder: Path) -> None:
    """The JSON, and a picture of each benchmark."""
    from roli_fast.speed import machine

    slug = machine.slug(run.device)
    path, committed = (where / f"gpu-{slug}.json" for where in (folder, RESULTS))
    found = next((file for file in (path, committed) if file.exists()), None)
    earlier = json.loads(found.read_text())["parts"] if found else {}
    steps = [{"step": step, "outcome": o, "seconds": round(s, 1)} for step, o, s in run.outcomes]
    about = {
        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {name: machine.version(name) for name in ("torch", "triton", "roli-fast")},
        "commit_info": {"id": run.commit, "dirty": None} if run.commit else machine.commit(),
    }
    for name, part in parts.items():
        before = earlier.get(name, {}) if part else {}  # scripts write what they find themselves
        earlier[name] = _on_top(before, about | {"steps": steps} | part)
    result = {"parts": earlier}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1))
    print(f"== results\n   {path}", flush=True)
    for name in parts:
        for suite, measured in earlier[name].get("benchmarks", {}).items():
            if measured and suite in DRAWN:
                _draw(measured, folder / f"gpu-{slug}-{suite.removeprefix('test_')}.png")


def _on_top(earlier: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """What was found; earlier benchmarks in the place of those that a run did not reach, and all of an
    earlier run in the place of one that found nothing."""
    measured = part.get("benchmarks", {})
    if earlier and not any((part.get("tests"), part.get("memory"), *measured.values())):
        return earlier
    if measured:
        before = earlier.get("benchmarks", {})
        part |= {
            "benchmarks": {suite: _joined(before.get(suite), found) for suite, found in measured.items()}
        }
    if "memory" in part:
        part |= {"memory": part["memory"] or earlier.get("memory")}
    return part


def _joined(before: dict[str, Any] | None, found: dict[str, Any] | None) -> dict[str, Any] | None:
    """A suite's results. What a run that did not end well has not measured stays as it was, with a note."""
    if not found:
        return before
    if found.pop("whole", True) or not before:
        return found
    cases = {case["name"]: case for case in (*before["benchmarks"], *found["benchmarks"])}
    kept = len(cases) - len(found["benchmarks"])
    of = f"{before['datetime'][:10]} at {str(before['commit_info']['id'])[:10]}"
    note = f"{kept} of {len(cases)} cases are of {of}, or as an earlier note says."
    return found | {"benchmarks": [*cases.values()], "notes": [*before.get("notes", []), note]}


def _draw(measured: dict[str, Any], picture: Path) -> None:
    try:
        from benchmarks import plot
    except ImportError as error:
        print(f"   no picture ({error}): benchmarks/plot.py draws it from the JSON, elsewhere too")
    else:
        print(f"   {plot.draw(measured, picture)}")


def summarize(run: Run, parts: dict[str, Any]) -> None:
    from benchmarks import headlines

    print("== summary")
    for name, part in parts.items():
        for suite, measured in part.get("benchmarks", {}).items():
            for line in headlines.lines(suite, measured["benchmarks"] if measured else []):
                print(f"   {name}: {line}")
        for test in (part.get("tests") or {"failed": []})["failed"]:
            print(f"   {name}: FAILED {test}")
    for step, outcome, seconds in run.outcomes:
        print(f"   {outcome:<6} {step} ({seconds:.0f} s)")


def main() -> int:
    parser = argparse.ArgumentParser(description="Everything that a GPU can show, in one command.")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="tiny shapes and few tests: does it work?")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results go")
    parser.add_argument("--seconds", type=float, default=math.inf, help="for all of it; default: no limit")
    parser.add_argument("--commit", help="of which this is a copy; default: git's")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"part: got {', '.join(sorted(unknown))}, accepted: {', '.join(PARTS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --device cpu --quick shows that the script works")

    sys.path.insert(0, str(ROOT))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that it publishes
    run = Run(arguments.device, arguments.quick, arguments.seconds, arguments.commit)
    if run.device == "cuda":
        run.step("build", lambda: build(run))
    parts: dict[str, Any] = {}
    try:
        for name in arguments.parts or PARTS:
            parts[name] = run_part(run, name, arguments.out)
    finally:  # also of a run that is interrupted
        try:
            publish(run, parts, arguments.out)
        finally:
            summarize(run, parts)
    return int(run.failed)


if __name__ == "__main__":
    sys.exit(main())
