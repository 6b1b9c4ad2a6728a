"""What a run's folder says, and which are none."""

import csv
import dataclasses
import json
import shutil
import sys

import pytest

from roli_fast.data import Splits
from roli_fast.report import read_run, write_report
from roli_fast.report.runs import check_comparable


def test_a_run_is_read_whole(made):
    run = read_run(made / "roli")
    assert (run.name, run.kind, run.method, run.title) == ("roli", "RoLI", "full", "RoLI, full")
    assert list(run.stages) == ["probe", "finetune"]
    result = json.loads((made / "roli" / "result.json").read_text())
    for name, stage in run.stages.items():
        with (made / "roli" / name / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["val_robust"] for row in stage.history] == [float(row["val_robust"]) for row in rows]
        assert dataclasses.asdict(stage.cost) == pytest.approx(result["stages"][name]["cost"])
        assert stage.history[stage.best]["epoch"] == result["stages"][name]["best"]["epoch"]
        assert stage.recipe["eps"] == 0.1
    assert dataclasses.asdict(run.cost) == pytest.approx(result["cost"])
    assert run.test == result["test"]
    assert run.model_file.exists()


def renamed(file, old, new):
    file.write_text(file.read_text().replace(old, new))


def metrics(folder):
    return folder / "finetune" / "metrics.csv"


def with_cell(folder, column, value):
    """In the first epoch's row."""
    head, first, *others = metrics(folder).read_text().splitlines()
    cells = first.split(",")
    cells[head.split(",").index(column)] = value
    metrics(folder).write_text("\n".join([head, ",".join(cells), *others]))


def test_kinds_of_runs(made):
    assert read_run(made / "ranli").title == "RanLI, full"
    assert read_run(made / "linear").title == "linear probing"
    assert read_run(made / "linear", "by another name").name == "by another name"


def broken(made, tmp_path, change):
    folder = tmp_path / "run"
    shutil.copytree(made / "roli", folder)
    change(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shutil.rmtree(f), "run, which holds no run, accepted: a folder of roli-fast train"),
        (lambda f: (f / "result.json").unlink(), "run, which is unfinished, accepted: a finished run"),
        (lambda f: shutil.rmtree(f / "finetune"), "which is unfinished"),
        (lambda f: (f / "result.json").write_text("{"), r"result\.json, which cannot be read"),
        (lambda f: renamed(f / "result.json", '"value"', '"share"'), r"result\.json, which cannot be read"),
        (lambda f: metrics(f).write_text("epoch\nx\n"), r"metrics\.csv, which cannot be read"),
        (lambda f: metrics(f).unlink(), r"metrics\.csv, which cannot be read"),
        (lambda f: renamed(metrics(f), "val_clean", "clean"), r"metrics\.csv, .*KeyError: 'val_clean'"),
        (lambda f: metrics(f).write_text(""), r"metrics\.csv, .*: 0 epochs, where epoch \d was the best"),
        (lambda f: with_cell(f, "train_accuracy", "nan"), "train_accuracy is nan in epoch 1"),
        (lambda f: with_cell(f, "val_clean", "1.5"), r"val_clean is 1\.5 in epoch 1"),
        (lambda f: with_cell(f, "train_loss", ""), "train_loss is None in epoch 1"),
        (lambda f: renamed(f / "finetune" / "recipe.json", '"linf"', "3"), r"recipe\.json, .*norm: got 3"),
        (
            lambda f: (f / "finetune" / "best.safetensors").write_bytes(b"no"),
            r"best\.safetensors, which cannot",
        ),
        (lambda f: (f / "args.json").write_text("[1]"), r"args\.json, which cannot be read"),
    ],
)
def test_what_is_no_finished_run(change, message, made, tmp_path):
    with pytest.raises(ValueError, match=message) as refused:
        read_run(broken(made, tmp_path, change))
    assert "\n" not in str(refused.value)


def test_what_cannot_be_compared(made):
    run = read_run(made / "roli")
    finetune = dataclasses.replace(run.stages["finetune"], recipe=run.recipe | {"eps": 0.2})
    other = dataclasses.replace(run, name="other", stages={"finetune": finetune})
    with pytest.raises(ValueError, match=r"roli with linf, eps 0.1 and other with linf, eps 0.2, accepted: "):
        check_comparable([run, other])
    with pytest.raises(ValueError, match="roli, roli, accepted: each once"):
        check_comparable([run, run])
    with pytest.raises(ValueError, match="runs: got none"):
        check_comparable([])


def test_a_run_on_other_images_is_refused(made, splits, tmp_path, monkeypatch):
    """Its training images may be among those that test."""
    monkeypatch.setattr(sys.modules["roli_fast.report.write"], "measure", None)
    other = Splits(*(part.select(range(1, len(part))) for part in splits))
    with pytest.raises(ValueError, match="runs: got roli, which trained on other images, or other views of"):
        write_report([read_run(made / "roli")], other, tmp_path / "report")
    assert not (tmp_path / "report").exists()
