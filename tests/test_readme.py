"""What the README shows, runs."""

import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_examples_run_one_after_the_other(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) == 7
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["checked"].in_box.all()
    assert (namespace["adv"] - namespace["images"]).abs().max() <= 8 / 255 + 1e-6
    assert abs(namespace["stepped"] - namespace["pixels"] / 255).max() <= 4 / 255 + 1e-6
    assert 0 <= namespace["robust"].value <= 1
    assert (tmp_path / "autoattack" / "log.txt").exists()
