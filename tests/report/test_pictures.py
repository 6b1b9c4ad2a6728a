"""Pictures and files of runs with any name: told apart, whole, and as they are called."""

import dataclasses
import json
import sys

import pytest

from roli_fast.report import compare, measure, pictures, read_run, write_report
from roli_fast.report.pictures import labels, style

from .cases import CLASSES, EPS, images, linear, shorten

LONG = "ranli_seed1_a_very_long_name_without_any_break_whatsoever_for_a_phone"
SWEEP = [
    f"{k}_{m}_eps0.1_seed0" for m in ("full", "lora", "adapter", "bias", "vpt") for k in ("roli", "ranli")
]
ODD = [r"$x$\foo$", "_roli", "a[/b]", "/".join(["abcdefghi"] * 30)]


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        return measure(linear(), [images(6)], eps=EPS, classes=CLASSES)


def runs_called(made, names):
    """RoLI and RanLI in turn."""
    runs = [read_run(made / kind) for kind in ("roli", "ranli")]
    return [dataclasses.replace(runs[n % 2], name=name) for n, name in enumerate(names)]


@pytest.mark.parametrize(
    "names",
    [
        SWEEP,
        ["linear_probe_rounds", *SWEEP],
        ["x" * 67 + str(n) + "y" * 20 for n in range(12)],
        ["one name of spaces_", "one name of spaces__", "roli"],
        ["roli", "roli_with_something_that_is_long"],
        ODD,
    ],
)
def test_labels_are_short_and_no_two_alike(names):
    found = labels(names)
    assert list(found) == names
    assert len(set(found.values())) == len(names)
    assert max(map(len, found.values())) <= 26


def test_labels_keep_what_tells_runs_apart():
    found = labels([f"cifar10_{k}_lr1e-3_seed0" for k in ("roli_full", "ranli_full", "linear")])
    assert [*found.values()] == ["…roli_full…", "…ranli_full…", "…linear…"]
    assert labels(["roli", "ranli"]) == {"roli": "roli", "ranli": "ranli"}


def test_runs_look_different_with_and_without_colour_or_line():
    looks = [style(number) for number in range(12)]
    for keys in (("color", "marker"), ("color", "linestyle"), ("marker", "linestyle")):
        assert len({tuple(look[key] for key in keys) for look in looks}) == 12, keys


@pytest.mark.parametrize("names", [["linear_probe_rounds", *SWEEP], [LONG, *ODD]])
def test_nothing_is_cut_off(names, made, found, monkeypatch):
    """Every text lies inside the figure, axes keep most of it, and the legend has all runs."""
    drawn = []
    monkeypatch.setattr(pictures, "_picture", lambda figure, *_: drawn.append(figure))
    runs, numbers = runs_called(made, names), dict.fromkeys(names, found.numbers)
    comparison = compare(runs, dict.fromkeys(names, found))
    pictures.accuracies(runs, numbers)
    pictures.gaps(runs, comparison)
    pictures.against_eps(numbers)
    pictures.against_cost(runs, dict.fromkeys(names, found.numbers.robust))
    for figure in drawn:
        figure.draw_without_rendering()
        (legend,) = figure.legends
        texts = [*legend.get_texts(), *figure.axes[0].get_yticklabels()]
        for box in (legend.get_window_extent(), *(text.get_window_extent() for text in texts)):
            assert box.x0 >= -1
            assert box.x1 <= figure.bbox.width + 1
            assert box.y1 <= figure.bbox.height + 1
        axes = figure.axes[0].get_window_extent()
        assert axes.width > 0.45 * figure.bbox.width
        assert axes.height > 1.5 * figure.dpi
    shown = [text.get_text().strip() for text in drawn[2].legends[0].get_texts()]
    assert shown == [label.strip() for label in labels(names).values()]


@pytest.fixture
def measured(monkeypatch, found):
    """At once, whatever the model."""

    def measure(*_, tell, **__):
        tell("something")
        return found

    monkeypatch.setattr(sys.modules["roli_fast.report.write"], "measure", measure)
    monkeypatch.setattr(pictures, "_DPI", 80)


def test_any_name_gets_its_page(made, splits, tmp_path, measured, capsys):
    page = write_report(runs_called(made, ODD), splits, tmp_path, images=4, progress=True)
    text = page.read_text()
    assert all(name in text for name in ODD)
    assert list(json.loads((tmp_path / "report.json").read_text())["runs"]) == ODD


@pytest.mark.slow
def test_pictures_of_an_earlier_report_go_and_no_others(made, splits, tmp_path, measured):
    def files():
        return {path.name for path in (tmp_path / "pictures").iterdir()}

    write_report(runs_called(made, ["old", "older"]), splits, tmp_path, images=4)
    before = files()
    (tmp_path / "pictures" / "mine.png").write_bytes(b"a photograph")
    write_report(runs_called(made, ["new"]), splits, tmp_path, images=4)
    assert any(name.startswith("old-") for name in before)
    assert "mine.png" in files()
    assert all(name.startswith("new-") for name in files() - {"mine.png"})


def test_an_earlier_report_stays_until_there_is_a_new_one(made, splits, tmp_path, measured, monkeypatch):
    write_report(runs_called(made, ["old"]), splits, tmp_path, images=4)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    monkeypatch.setattr(sys.modules["roli_fast.report.write"], "measure", None)
    with pytest.raises(TypeError):
        write_report(runs_called(made, ["new"]), splits, tmp_path, images=4)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
