"""The command line as a user meets it."""

import functools
import json
import sys

import pytest

import roli_fast
from roli_fast.attacks import AutoAttack
from roli_fast.cli import demo
from roli_fast.cli.main import main
from roli_fast.data import Splits, digits

from ..report.cases import shorten


def test_demo(tmp_path, capsys, monkeypatch):
    """The whole story on a part of the digits, cut short; it takes the place of an earlier one."""
    splits = digits()
    some = Splits(*(images.select(range(0, len(images), 5)) for images in splits))
    monkeypatch.setattr(demo, "digits", lambda: some)
    monkeypatch.setattr(demo, "_AUTOATTACKED", 4)
    monkeypatch.setattr(demo, "_REPORTED", 4)
    monkeypatch.setattr(demo, "_QUERIES", 5)
    shorten(monkeypatch)
    monkeypatch.setattr(demo, "AutoAttack", functools.partial(AutoAttack, steps=2))
    earlier = tmp_path / "out" / "roli" / "finetune" / "recipe.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("{}")
    assert main(["demo", "--epochs", "1", "--output", str(tmp_path / "out")]) == 2  # whose run is that?
    assert "whose roli is no demo's" in capsys.readouterr().err
    assert earlier.exists()
    (tmp_path / "out" / ".roli-fast-demo").touch()
    assert main(["demo", "--epochs", "1", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "demo.json").read_text())
    picture = tmp_path / "out" / "demo.png"
    assert picture.stat().st_size > 10_000
    page = tmp_path / "out" / "report" / "report.html"
    assert page.stat().st_size > 100_000
    for path in (picture, page):
        assert str(path) in shown.replace("\n", "")
    stages = {"Linear": ["finetune"], "RanLI Full-FT": ["finetune"], "RoLI Full-FT": ["probe", "finetune"]}
    assert {name: list(arm["stages"]) for name, arm in results["arms"].items()} == stages
    for name, arm in results["arms"].items():
        assert arm["clean"]["images"] == arm["pgd20"]["images"] == (some.test.labels >= 5).sum()
        assert arm["autoattack"]["images"] == 4
        for accuracy in (arm["clean"], arm["pgd20"], arm["autoattack"]):
            low, high = accuracy["interval"]
            assert low <= accuracy["value"] <= high
        assert arm["pgd20"]["value"] <= arm["clean"]["value"]
        assert name in shown
    moved = {name: arm["stages"]["finetune"]["weight_gradients"] for name, arm in results["arms"].items()}
    assert moved["Linear"] == 0 < moved["RanLI Full-FT"] == moved["RoLI Full-FT"]
    assert "RoLI minus RanLI Full-FT, PGD-20: " in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--epochs", "0"], "--epochs: got '0', accepted: 1 or more"),
        (["demo", "--seed", "-1"], "--seed: got '-1', accepted: 0 or more"),
        (["demo", "--output", "/dev/null/out"], "--output: "),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert message in shown.err


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["demo", "--epochs", "many"]])
def test_unknown_arguments_exit_with_2_in_one_line(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"roli-fast {roli_fast.__version__}\n"


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["demo"]) == 2
    assert "pip install 'roli-fast[demo]'" in capsys.readouterr().err


DOCTOR = "import sys; from roli_fast.cli.main import main; sys.exit(main(['doctor']))"


def test_doctor_in_one_screen(fresh):
    done = fresh(DOCTOR)
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert shown.count("\n") <= 40
    for word in (
        "python",
        "torch",
        "timm",
        "cuda",
        "none: ",
        "avx2",
        "cpu capability in use",
        "backends",
        "default for",
    ):
        assert word in shown


def test_a_backend_that_does_not_exist_is_a_users_mistake(fresh):
    code = "import sys; from roli_fast.cli.main import main; sys.exit(main(['demo']))"
    done = fresh(code, env={"ROLI_FAST_BACKEND": "nonsense"})
    assert done.returncode == 2
    assert (
        done.stderr
        == "roli-fast demo: ROLI_FAST_BACKEND: got 'nonsense', accepted: cpu, cuda, triton, reference\n"
    )


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ROLI_FAST_BACKEND", "nonsense", ": got 'nonsense', accepted: cpu, cuda, triton, reference"),
        ("ROLI_FAST_CPU_CAPABILITY", "sse9", " is 'sse9'"),
    ],
)
def test_doctor_says_why_a_choice_cannot_run(variable, value, message, fresh):
    done = fresh(DOCTOR, env={variable: value})
    assert done.returncode == 0, done.stderr
    assert f"{variable}{message}" in done.stdout
