"""What the README and its pages show, runs, and leads somewhere."""

import re
from pathlib import Path

import pytest
import torch

from roli_fast.models import create_model, save_model

ROOT = Path(__file__).resolve().parents[1]


def blocks_of(page):
    found = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    assert found
    return [compile(block, page, "exec") for block in found]


def test_the_examples_run_one_after_the_other(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for block in blocks_of("README.md"):
        exec(block, namespace)
    assert namespace["checked"].in_box.all()
    assert (namespace["adv"] - namespace["images"]).abs().max() <= 8 / 255 + 1e-6
    assert 0 <= namespace["robust"].value <= 1
    assert (tmp_path / "autoattack" / "log.txt").exists()


def test_the_example_of_numpy_runs():
    namespace: dict = {}
    for block in blocks_of("docs/ops.md"):
        exec(block, namespace)
    assert abs(namespace["stepped"] - namespace["pixels"] / 255).max() <= 4 / 255 + 1e-6


PAGES = [path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_files_and_headings_that_are_there(page):
    text = (ROOT / page).read_text()
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors_of(file), f"{target}#{anchor}"


def anchors_of(page):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_example_of_the_transfer_analysis_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = create_model("small_resnet", 3, channels=(4, 4, 4, 4))
    save_model(model, "probed.safetensors")
    images = torch.rand(4, 3, 16, 16)
    namespace = {"images": images, "labels": model.eval()(images).argmax(dim=1)}
    for block in blocks_of("docs/transfer.md"):
        exec(block, namespace)
    assert len(namespace["found"].expected) > 0
