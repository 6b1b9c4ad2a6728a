"""``roli-fast train`` and ``roli-fast eval`` as a user meets them."""

import json

import numpy
import pytest
import torch
from PIL import Image

from roli_fast.cli.main import main
from roli_fast.models import create_model, load_model, save_model
from roli_fast.training import paper_settings

TINY = ["--model", "small_resnet", "--model-kwargs", "channels=(8,8,8,8)", "--attack-precision", "fp32"]
QUICK = ["--epochs", "2", "--probe-epochs", "1", "--steps", "1", "--val-steps", "2", "--eps", "8/255"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Class folders of 8x8 pixels: 20 images of each of three classes."""
    root, rng = tmp_path_factory.mktemp("data"), numpy.random.default_rng(0)
    for c, name in enumerate(("left", "middle", "right")):
        (root / name).mkdir()
        for number in range(20):
            pixels = rng.integers(0, 100, (8, 8, 3), numpy.uint8)
            pixels[:, 3 * c : 3 * c + 2] += 130
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """The folder of a run of both stages."""
    out = tmp_path_factory.mktemp("runs") / "run"
    data = ["--dataset", "folder", "--data-dir", str(images), "--workers", "0"]
    assert main(["train", *TINY, *QUICK, *data, "--output", str(out), "--lr", "0.01"]) == 0
    return out


def test_a_run_of_both_stages(trained):
    args = json.loads((trained / "args.json").read_text())
    assert args["finetuning"]["eps"] == pytest.approx(8 / 255)
    assert args["finetuning"]["lr"] == 0.01
    assert args["probing"]["epochs"] == 1
    assert args["probing"]["lr"] == pytest.approx(paper_settings("cifar10", "linear", probed=True)["lr"])
    assert args["arguments"]["dataset"] == "folder"
    result = json.loads((trained / "result.json").read_text())
    assert set(result["stages"]) == {"probe", "finetune"}
    assert result["test"]["images"] == 12
    assert 0 <= result["test"]["robust"]["accuracy"] <= result["test"]["clean"]["accuracy"] <= 1
    assert result["cost"]["forwards"] == sum(s["cost"]["forwards"] for s in result["stages"].values())
    for stage, epochs in (("probe", 1), ("finetune", 2)):
        assert len((trained / stage / "metrics.csv").read_text().splitlines()) == 1 + epochs
    probed = load_model(trained / "probe" / "best.safetensors").state_dict()
    finetuned = load_model(trained / "finetune" / "best.safetensors").state_dict()
    moved = {name for name in probed if not torch.equal(probed[name], finetuned[name])}
    assert any("head" in name for name in moved)
    assert any("backbone" in name for name in moved)


def test_probing_leaves_the_backbone_and_finetuning_begins_with_its_head(trained, tmp_path, images):
    """The same seed gives the probe the same start: its backbone is what it began with."""
    torch.manual_seed(0)
    start = create_model("small_resnet", 3, channels=(8, 8, 8, 8)).state_dict()
    probed = load_model(trained / "probe" / "best.safetensors").state_dict()
    moved = {name for name in probed if not torch.equal(probed[name], start[name])}
    assert moved == {name for name in probed if "head" in name}


def test_resume_finds_it_finished_and_changes_nothing(trained, images, capsys):
    before = (trained / "finetune" / "last.pt").read_bytes()
    data = ["--dataset", "folder", "--data-dir", str(images), "--workers", "0", "--lr", "0.01"]
    assert main(["train", *TINY, *QUICK, *data, "--output", str(trained), "--resume"]) == 0
    assert (trained / "finetune" / "last.pt").read_bytes() == before
    shown = capsys.readouterr().out
    assert "1/1" in shown
    assert "Test images: clean" in shown
    assert main(["train", *TINY, *QUICK, *data, "--output", str(trained)]) == 2
    assert "which has a run, accepted: a new folder, or --resume" in capsys.readouterr().err
    assert main(["train", *TINY, *QUICK, *data, "--output", str(trained), "--resume", "--seed", "3"]) == 2
    assert "--resume: got --seed 3 (was 0), accepted: the run's own arguments" in capsys.readouterr().err


def test_eval_of_a_run(trained, images, tmp_path, capsys):
    out = tmp_path / "eval"
    command = ["eval", str(trained), "--workers", "0", "--out", str(out), "--save-adversarial"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    for name in ("left", "middle", "right", "all", "PGD-10"):
        assert name in shown
    found = json.loads((out / "eval.json").read_text())
    assert found["eps"] == pytest.approx(8 / 255)  # the run's
    pgd = found["accuracies"]["pgd"]
    assert pgd["images"] == 12
    low, high = pgd["interval"]
    assert low <= pgd["accuracy"] <= high
    assert sum(c["accuracy"] * c["images"] for c in pgd["classes"].values()) == pytest.approx(
        pgd["accuracy"] * 12
    )
    assert list((out / "pgd").glob("batch-*.safetensors"))
    assert main([*command, "--attacks"]) == 0  # clean alone
    assert list(json.loads((out / "eval.json").read_text())["accuracies"]) == ["clean"]


def test_a_normal_training_from_scratch_on_the_digits(tmp_path):
    """No data folder, no backbone, no attack: the same command."""
    out = tmp_path / "run"
    command = ["train", *TINY, "--init", "random", "--attack", "none", "--epochs", "1", "--lr", "3e-3"]
    assert main([*command, "--output", str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    assert set(result["stages"]) == {"finetune"}
    assert "robust" not in result["test"]
    assert result["cost"]["input_gradients"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet999"], "model: got 'resnet999', accepted: a name of timm.list_models()"),
        (["--dataset", "imagenette"], "name: got 'imagenette', accepted: cifar10"),
        (["--dataset", "cifar10"], "data_dir: got None, accepted: the folder in which cifar10 lies"),
        (["--method", "prefix"], "--method: got 'prefix', accepted: linear, bias"),
        (["--method", "lora"], "method: got 'lora' for a ResNet, accepted: full, bias, linear"),
        (["--method", "linear", "--method-kwargs", "rank=3"], "options: got rank for 'linear'"),
        (["--model-kwargs", "widths=3"], "--model-kwargs: "),
        (["--seed", "9" * 30], "seed: got 9999"),
        (["--method-kwargs", "rank"], "--method-kwargs: got 'rank', accepted: NAME=VALUE"),
        (["--eps", "eight"], "--eps: got 'eight', accepted: a number above 0, such as 0.5 or 8/255"),
        (["--eps", "8/0"], "--eps: got '8/0'"),
        (["--lr", "0.1", "--lr-base", "0.1"], "--lr, --lr-base: got both, accepted: one of them"),
        (["--loss", "trades", "--attack", "nfgsm"], "loss: got 'trades' with attack='nfgsm'"),
        (["--num-classes", "7"], "num_classes: got 7, accepted: 10, as many as digits has"),
        (["--initial-checkpoint", "/nowhere.pth"], "path: got /nowhere.pth, accepted: a file that is there"),
        (["--init", "pretrained"], "--init: got pretrained, accepted: roli, random"),
        (["--opt", "sgdd"], "opt: got 'sgdd', accepted: one of timm.optim.list_optimizers()"),
        (["--batch-size", "0"], "--batch-size: got '0', accepted: 1 or more"),
        (["--output", "/dev/null/run"], "--output: "),
        (["--device", "tpu"], "--device: got 'tpu'"),
    ],
)
def test_a_mistake_is_one_line_before_anything_begins(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY, *arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert not list(tmp_path.rglob("last.pt"))
    assert not list(tmp_path.rglob("*.json"))  # the folder is free for the command that puts it right


def test_a_checkpoint_of_another_architecture_is_named(tmp_path, capsys):
    save_model(create_model("resnet10t", 10, in_chans=1), tmp_path / "other.safetensors")
    command = ["train", *TINY, "--initial-checkpoint", str(tmp_path / "other.safetensors")]
    assert main([*command, "--output", str(tmp_path / "run")]) == 2
    assert "accepted: weights of this ResNet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere.safetensors"], "path: got /nowhere.safetensors, accepted: a file that is there"),
        (["."], "MODEL: got ., which holds no run of train, accepted: a run, or a file"),
        (["MODEL", "--attacks", "cw"], "--attacks: got 'cw', accepted: pgd, autoattack"),
        (["MODEL", "--steps", "0"], "--steps: got '0', accepted: 1 or more"),
    ],
)
def test_mistakes_of_eval(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_eval_of_a_model_for_other_classes(tmp_path, capsys):
    save_model(create_model("small_resnet", 4, in_chans=1, channels=(8, 8, 8, 8)), tmp_path / "m.safetensors")
    command = ["eval", str(tmp_path / "m.safetensors"), "--attacks", "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "model: got outputs of shape (N, 4), accepted: (N, 10)" in capsys.readouterr().err
