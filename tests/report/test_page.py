"""The page is one file, whole, readable without its pictures, and says what the numbers say."""

import base64
import dataclasses
import io
import json
import re
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image

from roli_fast.report import compare, read_run, write_report
from roli_fast.report.compare import pairs
from roli_fast.report.sections import _arguments
from roli_fast.report.write import _slugs

from .cases import NAMES, blobs, make_run

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Elements by their names, and the text; fails where they do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def page(written):
    return Page(written.read_text())


@pytest.fixture(scope="module")
def numbers(written):
    return json.loads((written.parent / "report.json").read_text())


def test_it_is_well_formed_and_needs_nothing_from_elsewhere(written, page):
    text = written.read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|file:|//|url\(|@import", re.sub(r"base64,[^\"]*", "", text))
    assert not page.all("script")
    for tag, attributes in page.found:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#")), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    (policy,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'")
    ids = [a["id"] for _, a in page.found if "id" in a]
    assert len(set(ids)) == len(ids)
    assert {a["href"][1:] for a in page.all("a")} <= set(ids)


def test_every_picture_is_a_file_and_has_an_alternative_text(written, page):
    saved = {path.read_bytes() for path in (written.parent / "pictures").glob("*.png")}
    shown = page.all("img")
    assert len(shown) == len(page.all("figure")) > 20
    alternatives = {image["alt"] for image in shown}
    assert len(alternatives) == len(shown)
    for image in shown:
        assert len(image["alt"]) > 40
        data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        assert data in saved
        opened = Image.open(io.BytesIO(data))
        assert (str(opened.width), str(opened.height)) == (image["width"], image["height"])


def test_tables_scroll_and_have_names(page):
    boxes = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert len(boxes) == len(page.all("table"))
    assert all(box["tabindex"] == "0" and box["role"] == "region" and box["aria-label"] for box in boxes)


def test_all_that_is_asked_for_is_there(page):
    for word in ("Arguments", "Learning", "Robustness and cost", "Can these numbers be believed?",
                 "Adversarial examples", "Transfer", "Comparison", "Sensitivity", "Advice",
                 "accuracy near zero at eps = 1", "does not rise with eps", "does not rise with restarts",
                 "broken by Square alone", "neither zero nor NaN", "--init", "abc and changes",
                 "RoLI <full> & more minus ranli", "transferred robustness"):  # fmt: skip
        assert word in page.text, word
    alternatives = " ".join(image["alt"] for image in page.all("img"))
    for word in ("Learning curves of", "Training loss of", "Accuracy against eps", "Cost of", "Test image",
                 "Robust accuracy against cost", "Differences in accuracy", "Accuracies of all"):  # fmt: skip
        assert word in alternatives


def test_names_and_classes_are_escaped(written):
    text = written.read_text()
    assert "RoLI &lt;full&gt; &amp; more" in text
    assert "<full>" not in text


def test_all_arguments_that_were_given_are_shown(made):
    run = read_run(made / "roli")
    run.about["arguments"] |= {"seed": 0, "min_lr": 0.0, "resize": False, "model_kwargs": [], "std": None}
    shown = "".join(_arguments(run))
    assert all(option in shown for option in ("--init", "--seed", "--min-lr"))
    assert not any(option in shown for option in ("--resize", "--model-kwargs", "--std"))


def test_the_page_says_what_the_numbers_say(page, numbers):
    assert list(numbers["runs"]) == list(NAMES)
    for run in numbers["runs"].values():
        measured = run["measured"]
        for rate in (measured["points"][0]["alone"], measured["robust"]):
            shown = f"{rate['value']:.1%} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"
            assert shown in page.text
            assert len(rate["right"]) == measured["images"] == 6
        for check in run["checks"]:
            verdict = "passed" if check["passed"] else "FAILED"
            assert f"{verdict}: {check['name']}" in page.text
            assert check["measured"] in page.text
            assert (check["means"] in page.text) or check["passed"]
    expected = {f"{NAMES[0]} minus ranli", f"linear minus {NAMES[0]}"}
    assert {gap["name"] for gap in numbers["comparison"]["gaps"]} == expected


@pytest.mark.slow
def test_a_single_run_of_the_python_api(made, splits, tmp_path, quick):
    make_run(tmp_path / "run", splits, probed=False, attack="none", epochs=1)
    path = write_report([read_run(tmp_path / "run")], splits, tmp_path, images=4, data="blobs")
    page = Page(path.read_text())
    assert "Comparison" not in page.text
    assert "blobs; 4 of them" in page.text
    assert "not attacked" in page.text
    assert json.loads((tmp_path / "report.json").read_text())["comparison"] is None


def test_who_is_set_against_whom(made):
    roli, ranli, linear = (read_run(made / name) for name in ("roli", "ranli", "linear"))
    lora = dataclasses.replace(roli, name="lora", method="lora")
    finetune = dataclasses.replace(roli.stages["finetune"], recipe=roli.recipe | {"seed": 1})
    seed = dataclasses.replace(roli, name="seed", stages=roli.stages | {"finetune": finetune})

    def names(runs):
        return [(a.name, b.name) for a, b in pairs(runs)]

    assert names([linear, ranli, roli, lora]) == [("roli", "ranli"), ("lora", "linear")]
    assert names([linear, ranli, roli, seed]) == [("roli", "ranli"), ("seed", "linear")]
    assert names([ranli, seed]) == [("seed", "ranli")]
    assert names([linear, roli, lora]) == [("roli", "linear"), ("lora", "linear")]
    assert compare([roli], {}) is None


def test_no_two_runs_share_the_names_of_their_pictures():
    slugs = _slugs(["run-1", "run_1", "Run 1", "comparison", "..."])
    assert len(set(slugs.values())) == 5
    assert "comparison" not in slugs.values()
    assert slugs["run-1"] == "run-1"


@pytest.fixture
def measured_nothing(monkeypatch):
    """Refusals come before work."""
    monkeypatch.setattr(sys.modules["roli_fast.report.write"], "measure", None)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"images": 0}, ValueError, "images: got 0, accepted: 1 or more"),
        (
            {"folder": "/dev/null/out"},
            OSError,
            "folder: got /dev/null/out, accepted: one that can be written",
        ),
        ({"splits": "rgb"}, ValueError, "roli for 1 channels, accepted: 3, as the images have"),
        ({"splits": "two"}, ValueError, "roli with 3 classes, accepted: 2, as the data have"),
        ({"matplotlib": None}, ImportError, r"pip install 'roli-fast\[demo\]'"),
    ],
)
def test_what_is_refused_before_anything_is_attacked(
    how, error, message, made, splits, tmp_path, monkeypatch, measured_nothing
):
    if "matplotlib" in how:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    other = blobs(6)
    if how.get("splits") == "rgb":
        other.images = other.images.expand(-1, 3, -1, -1)
        splits = type(splits)(other, other, other)
    if how.get("splits") == "two":
        other.classes = ("a", "b")
        splits = type(splits)(other, other, other)
    runs = [read_run(made / "roli")]
    with pytest.raises(error, match=message):
        write_report(runs, splits, how.get("folder", tmp_path), images=how.get("images", 4))
