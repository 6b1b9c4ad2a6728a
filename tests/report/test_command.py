"""``roli-fast report`` as a user meets it."""

import json
import shutil
import sys

import pytest

from roli_fast.cli.main import main


@pytest.mark.slow
def test_several_runs_on_one_page(made, quick, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    runs = [str(made / name) for name in ("roli", "ranli")]
    assert main(["report", *runs, "--images", "6", "--device", "cpu", "--output", str(out)]) == 0
    assert f"Report: {out / 'report.html'}" in capsys.readouterr().out
    numbers = json.loads((out / "report.json").read_text())
    assert list(numbers["runs"]) == ["roli", "ranli"]
    assert numbers["data"] == "folder: 3 classes, 30 test images"
    assert numbers["runs"]["roli"]["measured"]["images"] == 6
    assert numbers["comparison"] is not None


def test_what_the_command_asks_for(made, tmp_path, capsys, monkeypatch):
    """The data of the runs, and a folder: of a single one, its own."""
    asked = []

    def write_report(runs, splits, folder, **options):
        asked.append((folder, [run.name for run in runs], len(splits.test), options))
        return folder / "report.html"

    monkeypatch.setattr("roli_fast.cli.report.write_report", write_report)
    twin = tmp_path / "ranli"
    shutil.copytree(made / "ranli", twin)
    assert main(["report", str(twin), "--device", "cpu"]) == 0
    assert main(["report", str(made / "ranli"), str(twin), "--images", "4", "--device", "cpu"]) == 0
    (first, names, images, options), (second, twins, _, more) = asked
    assert (first, names, images) == (twin / "report", ["ranli"], 30)
    assert (options["images"], options["data"]) == (200, "folder: 3 classes, 30 test images")
    assert (second.as_posix(), twins, more["images"]) == (
        "runs/report",
        [str(made / "ranli"), str(twin)],
        4,
    )
    assert f"Report: {twin / 'report' / 'report.html'}" in capsys.readouterr().out


def copied(made, tmp_path, **changes):
    """A run with other arguments."""
    folder = tmp_path / "other"
    shutil.copytree(made / "ranli", folder)
    about = json.loads((folder / "args.json").read_text())
    about["arguments"] |= changes
    (folder / "args.json").write_text(json.dumps(about))
    return str(folder)


def of_other_eps(made, tmp_path):
    folder = copied(made, tmp_path)
    recipe = tmp_path / "other" / "finetune" / "recipe.json"
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | {"eps": 0.2}))
    return folder


def unfinished(made, tmp_path):
    folder = copied(made, tmp_path)
    (tmp_path / "other" / "result.json").unlink()
    return folder


def without_arguments(made, tmp_path):
    folder = copied(made, tmp_path)
    (tmp_path / "other" / "args.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("second", "more", "message"),
    [
        (lambda made, tmp: str(tmp), [], "which holds no run, accepted: a folder of roli-fast train"),
        (lambda made, tmp: str(tmp / "absent"), [], "which holds no run, accepted: a folder of"),
        (unfinished, [], "other, which is unfinished, accepted: a finished run: roli-fast train --resume"),
        (without_arguments, [], "other, which has no args.json, accepted: a run of roli-fast train"),
        (lambda *a: copied(*a, split_seed=3), [], "with --split-seed None and 3, accepted: runs of the same"),
        (
            lambda *a: copied(*a, dataset="digits"),
            [],
            "with --dataset folder and digits, accepted: runs of the",
        ),
        (
            of_other_eps,
            [],
            "roli with linf, eps 0.1 and other with linf, eps 0.2, accepted: runs of one norm",
        ),
        (lambda made, tmp: str(made / "roli"), [], "accepted: each once"),
        (None, ["--output", "/dev/null/out"], "folder: got /dev/null/out, accepted: one that can be written"),
        (None, ["--images", "0"], "--images: got '0', accepted: 1 or more"),
        (None, ["--device", "abacus"], "--device: got 'abacus', accepted: cpu, cuda"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    second, more, message, made, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sys.modules["roli_fast.report.write"], "measure", None)
    monkeypatch.chdir(tmp_path)
    others = [] if second is None else [second(made, tmp_path)]
    out = [] if "--output" in more else ["--output", str(tmp_path / "out")]
    assert main(["report", str(made / "roli"), *others, *more, *out]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("roli-fast report: ")
    assert message in shown.err
    assert not (tmp_path / "out").exists()


def test_data_that_have_moved(made, tmp_path, capsys):
    assert (
        main(["report", copied(made, tmp_path, data_dir="nowhere"), "--output", str(tmp_path / "out")]) == 2
    )
    shown = capsys.readouterr()
    assert "nowhere" in shown.err
    assert shown.err.count("\n") == 1


def test_without_matplotlib_the_extra_is_named(made, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(made / "roli")]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "pip install 'roli-fast[demo]'" in shown
    assert not (made / "roli" / "report").exists()
