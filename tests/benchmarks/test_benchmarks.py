"""The benchmarks run, and their contenders compute the same."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ..selection import slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
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
    assert {step["outcome"] for step in found["parts"]["ops"]["steps"]} == {"ok"}
    assert "training: price removals" in {step["step"] for step in found["parts"]["ops"]["steps"]}
    assert found["parts"]["tests"]["tests"]["passed"] > 10
    assert found["parts"]["slow"]["tests"]["passed"] > 0
    assert [found["parts"][part]["tests"]["failed"] for part in ("tests", "slow")] == [[], []]
    cases = found["parts"]["ops"]["benchmarks"]["test_ops"]["benchmarks"]
    assert {"float32", "bf16-out-channels-last", "project", "start"} < {c["params"]["form"] for c in cases}
    assert result.with_name(f"{result.stem}-ops.png").stat().st_size > 10_000
    losses = found["parts"]["ops"]["benchmarks"]["test_cross_entropy"]["benchmarks"]
    assert {case["params"]["shape"] for case in losses} >= {"64x10", "64x21843"}
    attacks = found["parts"]["attacks"]["benchmarks"]["test_attacks"]["benchmarks"]
    assert len({case["params"]["contender"] for case in attacks}) == 15
    for case in attacks:
        about = case["extra_info"]
        assert about["images_per_s"] == pytest.approx(2 / case["stats"]["median"], rel=1e-6)
        assert about["ratio_to"]["ours-bf16"]["median"] > 0
        assert (about["robust_accuracy"] is None) == case["params"]["contender"].startswith("alone")
    assert result.with_name(f"{result.stem}-attacks.png").stat().st_size > 10_000
    assert "== summary" in done.stdout
    assert re.search(r"ops: 64x10: [\d.]+ us; times as fast as rivals: torch [\d.]+, ", done.stdout)
    assert re.search(r"test-resnet-2: ours-bf16 [\d.]+ ms, \d+ images/s, robust", done.stdout)

    tables(result)


def tables(result):
    """Of ops and of attacks, in the README and on the results' own page."""
    readme = importlib.import_module("benchmarks.readme")
    shown = readme.with_highlights(readme.README.read_text(), [result])
    assert (
        "| | ours in bf16 | ours in tf32 | ours in fp32 | torchattacks', autocast | torchattacks' | RoLI"
        in shown
    )
    assert re.search(r"\| test_resnet, 2x3x32x32, PGD-2 \|( \d+ \|){6}\n", shown)
    assert re.search(r"\| test_resnet, 2x3x32x32, PGD-2 and weights \|.*\| \d+ \|\n", shown)
    every = readme.results([result])
    assert "# Measured speed of the ops" in every
    assert "| test_resnet, 2x3x32x32, PGD-2 | ours in bf16, no CUDA graph |" in every
    assert f"({result.stem}-attacks.png)" in every


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("gpu")


def test_a_form_is_measured(tool, monkeypatch):
    """One of all that the test above runs."""
    for name in [name for name in os.environ if "XDIST" in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k keep-best")
    cases = tool.benchmark(tool.Run("cpu", quick=True), "test_ops")["benchmarks"]
    assert {case["params"]["form"] for case in cases} == {"keep-best"}
    contenders = {case["params"]["contender"] for case in cases}
    assert {"ours", "reference", "expression", "compiled", "copy"} <= contenders
    assert all(case["stats"]["median"] > 0 for case in cases)


def published(tool, folder, name, part, commit=None):
    tool.publish(tool.Run("cpu", quick=True, commit=commit), {name: part}, folder)
    (result,) = folder.glob("gpu-*.json")
    return json.loads(result.read_text())["parts"]


def test_what_was_found_stays_until_it_is_found_anew(tool, tmp_path, monkeypatch):
    """In other parts, and in place of what a run had no time for."""
    monkeypatch.setattr(tool, "_draw", lambda *_: None)
    published(tool, tmp_path, "tests", {"tests": "they passed"}, commit="abc")

    def measured(**cases):
        found = [{"name": name, "stats": value} for name, value in cases.items()]
        return {"benchmarks": found, "datetime": "2020-02-02", "commit_info": {"id": "abc"}}

    def of(suite):
        return {case["name"]: case["stats"] for case in suite["benchmarks"]}

    first = {"one": measured(a=1, b=1), "two": measured(a=2)}
    published(tool, tmp_path, "ops", {"benchmarks": first, "memory": "no errors"})
    cut = {"one": measured(b=3) | {"whole": False}, "two": None}
    parts = published(tool, tmp_path, "ops", {"benchmarks": cut, "memory": None})
    suites = parts["ops"]["benchmarks"]
    assert [of(suites[name]) for name in ("one", "two")] == [{"a": 1, "b": 3}, {"a": 2}]
    assert suites["one"]["notes"] == ["1 of 2 cases are of 2020-02-02 at abc, or as an earlier note says."]
    assert parts["ops"]["memory"] == "no errors"
    parts = published(tool, tmp_path, "ops", {"benchmarks": {"one": measured(c=4)}, "memory": None})
    assert of(parts["ops"]["benchmarks"]["one"]) == {"c": 4}
    assert published(tool, tmp_path, "training", {})["training"]["steps"] == []
    assert (parts["tests"]["tests"], parts["tests"]["commit_info"]["id"]) == ("they passed", "abc")
    assert published(tool, tmp_path, "tests", {"tests": None})["tests"] == parts["tests"]


def test_what_has_no_time_left_is_not_begun(tool):
    run = tool.Run("cpu", quick=True, seconds=tool.GRACE + tool.PUBLISHING)
    with pytest.raises(tool.StepError, match="no time left"):
        run.command(sys.executable, "-c", "pass")


def test_a_script_adds_to_what_is_committed(tool, tmp_path, monkeypatch):
    """In a folder of its own, and there to what an earlier part has added."""
    (tmp_path / "committed").mkdir()
    (tmp_path / "committed" / "price.json").write_text("1")
    monkeypatch.setattr(tool, "RESULTS", tmp_path / "committed")
    run, path = tool.Run("cpu", quick=False), tmp_path / "out" / "price.json"
    run.commit = "abc"
    asked = []

    def command(*words, **environment):
        asked.append((words, path.read_text()))
        assert environment == {"ROLI_FAST_COMMIT": "abc"}

    monkeypatch.setattr(run, "command", command)
    tool.script(run, "price times", path)
    path.write_text("2")
    tool.script(run, "price phases", path)
    assert [(command[2:], there) for command, there in asked] == [
        (("benchmarks.price", "times", "--out", path), "1"),
        (("benchmarks.price", "phases", "--out", path), "2"),
    ]


def test_all_gpu_tests_and_benchmarks_are_in_some_part(tool):
    measured = {f"{suite}.py" for part in tool.PARTS.values() for suite in part.benchmarks}
    assert measured == {path.name for path in (ROOT / "benchmarks").glob("test_*.py")}
    marked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(
            r"^pytestmark = .*mark\.gpu|^@pytest\.mark\.gpu|marks=.*mark\.gpu", path.read_text(), re.M
        )
    }
    assert "tests/cli/test_gpu.py" in marked
    run = tuple(f"{folder}/" for part in tool.PARTS.values() for folder in part.tests)
    assert {path for path in marked if not path.startswith(run)} == set()


TESTS_THAT_TAKE_LONG = """
import os, time
def test_of_triton(): pass
def test_right(): pass
def test_wrong(): assert False
def test_long(): time.sleep(600)
def test_on_triton(): pass
"""


@pytest.mark.parametrize("stubborn", [True, *slow(False)])
def test_tests_that_run_out_of_time_are_named(tool, tmp_path, monkeypatch, stubborn):
    """Also where pytest does not heed the interrupt, as in a kernel that never ends."""
    suite = tmp_path / "test_suite.py"
    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)" if stubborn else ""
    suite.write_text(ignore + TESTS_THAT_TAKE_LONG)
    monkeypatch.setattr(tool, "GRACE", 1.0 if stubborn else 60.0)
    part = tool.Part(tests=(), quick=(str(suite),))
    with pytest.raises(tool.StepError, match=r"out of time: .*test_long; 1 passed, 1 failed, 0") as caught:
        tool.test(tool.Run("cpu", quick=True, seconds=12 + tool.GRACE + tool.PUBLISHING), part)
    assert [name.rpartition("::")[2] for name in caught.value.found["failed"]] == ["test_wrong"]


def test_the_peers_loops_spend_what_they_should():
    """Forwards and backwards, and who has a gradient afterwards."""
    loops = importlib.import_module("benchmarks.baselines.loops")
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    passes = {
        loops.torchattacks_pgd: (7, 7, False),
        loops.foolbox_pgd: (7, 7, True),
        loops.roli_pgd: (8, 7, True),
        loops.roli_batch: (9, 8, True),
    }
    for loop, expected in passes.items():
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
        forwards, backwards = [], []

        def count(_, __, output, forwards=forwards, backwards=backwards):
            forwards.append(output)
            if output.requires_grad:
                output.register_hook(lambda _: backwards.append(1))

        model.register_forward_hook(count)
        adv = loop(model, images, labels, 8 / 255, 2 / 255, 7).detach()
        assert (len(forwards), len(backwards), model[1].weight.grad is not None) == expected
        assert (adv - images).abs().max() <= 8 / 255 + 1e-6
        assert adv.min() >= 0
        assert adv.max() <= 1
        before, after = (torch.nn.functional.cross_entropy(model(x), labels) for x in (images, adv))
        assert after > before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "got nonsense, accepted: tests, slow, ops, attacks, strength, training"),
        pytest.param(
            [],
            "torch sees no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_a_run_that_cannot_be_is_refused(tool, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        tool.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_readme_shows_the_committed_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    readme = importlib.import_module("readme")
    results = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    text = readme.README.read_text()
    assert results
    assert readme.with_highlights(text, results) == text
    assert readme.results(results) == readme.ALL_RESULTS.read_text()


def test_the_readmes_first_table_says_what_was_measured():
    result = json.loads((ROOT / "benchmarks" / "results" / "gpu-nvidia-h200.json").read_text())
    seconds = {
        (case["params"]["case"], case["params"]["contender"]): case["stats"]["median"]
        for case in result["parts"]["attacks"]["benchmarks"]["test_attacks"]["benchmarks"]
    }

    def times(case, rival, ours):
        return f"{seconds[case, rival] / seconds[case, ours]:.1f}"

    text = (ROOT / "README.md").read_text()
    resnet, swin = "resnet18-128", "swin-b-64"
    assert (
        f"{times(resnet, 'torchattacks-autocast', 'ours-bf16')} times as fast as torchattacks' loop, both in "
        f"bfloat16; {times(resnet, 'torchattacks', 'ours-tf32')} times, both with TF32"
    ) in text
    assert (
        f"{times(swin, 'torchattacks-autocast', 'ours-bf16')} times, both in bfloat16; "
        f"{times(swin, 'torchattacks', 'ours-fp32')} times with the same float32 products; "
        f"{times(swin, 'torchattacks', 'ours-tf32')} times where ours alone uses TF32"
    ) in text
    assert f"takes {times('resnet18-1024', 'ours-fp32', 'torchattacks')} times as long by default" in text
