"""``roli-fast bench`` as a user meets it."""

import dataclasses
import json
import sys

import pytest

from roli_fast.attacks import PGD
from roli_fast.cli import bench
from roli_fast.cli.main import main
from roli_fast.cli.options import number
from roli_fast.speed import peers


def twin(model, settings, images):
    attack = PGD(**dataclasses.asdict(settings))
    return lambda images, labels: attack(model, images, labels)


@pytest.fixture
def one_peer(monkeypatch):
    """Two peers: one that is here, one that is not."""
    known = {"twin": peers.Peer("json", "twin", twin), "absent": peers.Peer("no_such_module", "absent", twin)}
    monkeypatch.setattr(peers, "PEERS", known)
    monkeypatch.setattr(bench, "PEERS", known)


TINY = ["--models", "test_resnet:4x3x32x32", "--steps", "2", "--rounds", "2", "--batches", "1"]


def test_a_run(one_peer, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    options = ["--norms", "linf", "l2", "--eps", "8/255", "0.5", "--precisions", "fp32", "--output", str(out)]
    assert main(["bench", *TINY, *options]) == 0
    shown = capsys.readouterr().out
    assert "without absent: not installed (pip install absent)" in shown
    for word in ("test_resnet 4x3x32x32", "linf", "l2", "each at its best", "twin", "robust", "MiB"):
        assert word in shown
    assert "Labels: the model's own predictions" in shown
    saved = json.loads((out / "bench.json").read_text())
    assert saved["missing"] == {"absent": "not installed (pip install absent)"}
    assert saved["machine"]["versions"]["torch"]
    assert {"id", "dirty"} == set(saved["commit"])
    norms = [comparison["settings"] for comparison in saved["comparisons"]]
    assert norms == [
        {"norm": "linf", "eps": 8 / 255, "step_size": 2 / 255, "steps": 2},
        {"norm": "l2", "eps": 0.5, "step_size": 0.125, "steps": 2},
    ]
    assert {entry["contender"] for entry in saved["comparisons"][0]["entries"]} == {"ours", "twin"}
    assert (out / "bench.png").stat().st_size > 10_000


def test_without_matplotlib_it_says_so_and_goes_on(one_peer, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", *TINY, "--peers", "--precisions", "fp32", "--output", str(tmp_path)]) == 0
    assert "No picture: it needs matplotlib (pip install 'roli-fast[demo]')" in capsys.readouterr().out
    assert not (tmp_path / "bench.png").exists()
    assert (tmp_path / "bench.json").exists()


def test_quick_yields_to_what_is_asked_for(one_peer, tmp_path, capsys):
    assert main(["bench", "--quick", *TINY, "--precisions", "fp32", "--output", str(tmp_path)]) == 0
    (comparison,) = json.loads((tmp_path / "bench.json").read_text())["comparisons"]
    assert comparison["shape"] == [4, 3, 32, 32]
    assert comparison["settings"]["steps"] == 2
    assert "--quick shows that it runs, not how fast" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.5/255", 0.5 / 255), ("1e-3", 1e-3)])
def test_sizes_may_be_fractions(text, value):
    assert number("--eps")(text) == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eps", "8/0"], "--eps: got '8/0', accepted: a number above 0, such as 0.5 or 8/255"),
        (["--step-size", "0"], "--step-size: got '0', accepted: a number above 0"),
        (["--eps", "nan"], "--eps: got 'nan', accepted: a number above 0"),
        (["--eps", "inf"], "--eps: got 'inf', accepted: a number above 0"),
        (["--eps", "8"], "--eps: got 8, accepted: at most 1 in linf"),
        (["--eps", "8/"], "--eps: got '8/', accepted: a number above 0"),
        (["--eps", "8/255", "0.5"], "--eps: got 2, accepted: one for each of --norms linf"),
        (["--norms", "l7"], "--norms: got 'l7', accepted: linf, l2"),
        (["--norms", "l2", "l2"], "--norms: got l2 l2, accepted: each once"),
        (["--precisions", "fp8"], "--precisions: got 'fp8', accepted: fp32, tf32, bf16, fp16"),
        (["--peers", "nobody"], "--peers: got 'nobody', accepted: torchattacks, foolbox, art, cleverhans"),
        (["--rounds", "1"], "--rounds: got '1', accepted: 2 or more"),
        (["--steps", "-3"], "--steps: got '-3', accepted: 1 or more"),
        (["--batch-size", "1"], "--batch-size: got '1', accepted: 2 or more"),
        (["--device", "abacus"], "--device: got 'abacus', accepted: cpu, cuda"),
        (["--device", "cuda:99"], "--device: got 'cuda:99', but torch sees"),
        (["--device", "meta"], "--device: got 'meta', accepted: cpu, cuda"),
        (["--models", "resnet18:64"], "--models: got 'resnet18:64', accepted: NAME, or NAME:NxCxHxW"),
        (["--models", "resnet18:1x3x8x8"], "accepted: NAME, or NAME:NxCxHxW with N of at least 2"),
        (["--models", "nonsense"], "--models nonsense: model: got 'nonsense', accepted: a name of timm"),
        (["--models", "test_vit", "--size", "33"], "--models test_vit: "),
        (["--models", "a", "b", "--checkpoint", "x"], "--checkpoint: got several models, accepted: one"),
        (["--checkpoint", "no-such-file"], "--checkpoint: no-such-file is no file"),
        (["--output", "/dev/null/out"], "--output: "),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    out = [] if "--output" in arguments else ["--output", str(tmp_path)]
    peers = [] if "--peers" in arguments else ["--peers"]
    assert main(["bench", "--quick", *peers, *arguments, *out]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("roli-fast bench: ")
    assert message in shown.err
