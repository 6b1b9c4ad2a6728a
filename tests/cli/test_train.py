"""``roli-fast train`` and ``roli-fast eval`` as a user meets them."""

import argparse
import json
import shutil
import sys

import numpy
import pytest
import torch
from PIL import Image
from rich.console import Console

from roli_fast.cli import train
from roli_fast.cli.main import main
from roli_fast.cli.train_recipes import method_options, model_options, recipes, settle
from roli_fast.data import ImageStream, Splits, digits
from roli_fast.data.view import View
from roli_fast.models import create_model, find_classifier, load_model, save_model
from roli_fast.training import Rounds, paper_settings

TINY = ["--model", "small_resnet", "--model-kwargs", "channels=(8,8,8,8)", "--attack-precision", "fp32"]
VIT = ["--model", "vit_tiny_patch16_224", "--img-size", "8"]
VIT += ["--model-kwargs", "patch_size=4", "embed_dim=12", "depth=1", "num_heads=1"]
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
    assert main(command(images, out)) == 0
    return out


def command(images, out, *more):
    """Both stages, from a backbone of the weights that torch draws with seed 1."""
    backbone = images.parent / "backbone.safetensors"
    if not backbone.exists():
        torch.manual_seed(1)
        save_model(create_model("small_resnet", 3, channels=(8, 8, 8, 8)), backbone)
    data = ["--dataset", "folder", "--data-dir", str(images), "--workers", "0", "--lr", "0.01"]
    start = ["--initial-checkpoint", str(backbone), "--output", str(out), "--probe", "sgd"]
    return ["train", *TINY, *QUICK, *data, *start, *more]


def test_a_run_of_both_stages(trained):
    args = json.loads((trained / "args.json").read_text())
    assert args["finetuning"]["eps"] == pytest.approx(8 / 255)
    assert args["finetuning"]["lr"] == 0.01
    assert args["probing"]["epochs"] == 1
    assert args["probing"]["lr"] == pytest.approx(paper_settings("cifar10", "linear", probed=True)["lr"])
    assert args["arguments"]["dataset"] == "folder"
    result = json.loads((trained / "result.json").read_text())
    assert set(result["stages"]) == {"probe", "finetune"}
    assert result["test"]["clean"]["images"] == 12
    assert 0 <= result["test"]["robust"]["value"] <= result["test"]["clean"]["value"] <= 1
    assert result["cost"]["forwards"] == sum(s["cost"]["forwards"] for s in result["stages"].values())
    for stage, epochs in (("probe", 1), ("finetune", 2)):
        assert len((trained / stage / "metrics.csv").read_text().splitlines()) == 1 + epochs
    probed = load_model(trained / "probe" / "best.safetensors").state_dict()
    finetuned = load_model(trained / "finetune" / "best.safetensors").state_dict()
    moved = {name for name in probed if not torch.equal(probed[name], finetuned[name])}
    assert any("head" in name for name in moved)
    assert any("backbone" in name for name in moved)


def test_probing_leaves_the_backbone(trained, images):
    start = load_model(images.parent / "backbone.safetensors").state_dict()
    probed = load_model(trained / "probe" / "best.safetensors").state_dict()
    moved = {name for name in probed if not torch.equal(probed[name], start[name])}
    assert moved == {name for name in probed if "head" in name}


def test_resume_finds_it_finished_and_changes_nothing(trained, images, capsys):
    before = (trained / "finetune" / "last.pt").read_bytes()
    assert main(command(images, trained, "--resume")) == 0
    assert (trained / "finetune" / "last.pt").read_bytes() == before
    shown = capsys.readouterr().out
    assert "1/1" in shown
    assert "Test images: clean" in shown
    assert main(command(images, trained)) == 2
    assert "which has a run, accepted: a new folder, or --resume" in capsys.readouterr().err
    assert main(command(images, trained, "--resume", "--seed", "3")) == 2
    assert "--resume: got --seed 3 (was 0), accepted: the run's own arguments" in capsys.readouterr().err


def test_what_has_moved_is_found_where_it_is(trained, images, tmp_path, capsys):
    """A run goes on, and is reported on, with its data and its backbone in another place; not with others."""
    elsewhere = shutil.copytree(images, tmp_path / "elsewhere")
    backbone = shutil.copy(images.parent / "backbone.safetensors", tmp_path)
    run = shutil.copytree(trained, tmp_path / "run")
    moved = ["--data-dir", str(elsewhere), "--initial-checkpoint", str(backbone)]
    assert main([*command(images, run, "--resume"), *moved]) == 0
    arguments = json.loads((run / "args.json").read_text())
    arguments["arguments"]["data_dir"] = str(tmp_path / "gone")
    (run / "args.json").write_text(json.dumps(arguments))
    assert main(["report", str(run), "--images", "2"]) == 2
    assert main(["report", str(run), "--images", "2", "--data-dir", str(elsewhere)]) == 0
    (elsewhere / "left" / "0.png").unlink()
    capsys.readouterr()
    assert main([*command(images, run, "--resume"), *moved]) == 2
    assert "recipe: got data=" in capsys.readouterr().err


def test_a_run_does_not_go_on_from_other_weights(images, tmp_path, capsys):
    """Without the checkpoint from which it began, it would from random ones."""
    begun = command(images, tmp_path / "run", "--method", "linear")
    place = begun.index("--probe-epochs")
    del begun[place : place + 2]
    assert main(begun) == 0
    without = [word for word in begun if "backbone" not in word and word != "--initial-checkpoint"]
    capsys.readouterr()
    assert main([*without, "--resume"]) == 2
    assert "--resume: got --backbone-sha256 None (was " in capsys.readouterr().err


def test_a_broken_checkpoint_is_named(trained, images, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    last = run / "finetune" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    assert main(command(images, run, "--resume")) == 2
    *_, said = capsys.readouterr().err.splitlines()  # below what the first stage shows of itself
    assert f"{last} cannot be read" in said


def test_eval_of_a_run(trained, images, tmp_path, capsys):
    out = tmp_path / "eval"
    command = ["eval", str(trained), "--workers", "0", "--output", str(out), "--save-adversarial"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    for name in ("left", "middle", "right", "all", "PGD-10"):
        assert name in shown
    found = json.loads((out / "eval.json").read_text())
    assert found["eps"] == pytest.approx(8 / 255)  # the run's
    pgd = found["accuracies"]["pgd"]
    assert pgd["images"] == 12
    low, high = pgd["interval"]
    assert low <= pgd["value"] <= high
    assert sum(c["value"] * c["images"] for c in pgd["classes"].values()) == pytest.approx(pgd["value"] * 12)
    assert list((out / "pgd").glob("batch-*.safetensors"))
    assert main([*command[:-1], "--attacks"]) == 2
    assert (
        f"--output: {out} has an earlier eval.json, accepted: --output with another folder"
        in capsys.readouterr().err
    )
    run = shutil.copytree(trained, tmp_path / "run")
    assert main(["eval", str(run), "--workers", "0", "--attacks"]) == 0  # clean alone
    assert list(json.loads((run / "eval" / "eval.json").read_text())["accuracies"]) == ["clean"]
    capsys.readouterr()
    assert main([*command, "--norm", "l2"]) == 2  # the run's eps is none of l2
    assert "--eps: got none in l2, accepted: a radius" in capsys.readouterr().err


def test_a_normal_training_from_scratch_on_the_digits(tmp_path):
    """No data folder, no backbone, no attack: the same command."""
    out = tmp_path / "run"
    command = ["train", *TINY[:-2], "--attack", "none", "--epochs", "1", "--lr", "3e-3"]
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
        (["--seed", "9" * 30], "--seed: got '9999"),
        (["--method-kwargs", "rank"], "--method-kwargs: got 'rank', accepted: NAME=VALUE"),
        (["--eps", "eight"], "--eps: got 'eight', accepted: a number above 0, such as 0.5 or 8/255"),
        (["--eps", "8/0"], "--eps: got '8/0'"),
        (["--lr", "0.1", "--lr-base", "0.1"], "--lr, --lr-base: got both, accepted: one of them"),
        (["--loss", "trades", "--attack", "nfgsm"], "loss: got 'trades' with attack='nfgsm'"),
        (["--num-classes", "7"], "num_classes: got 7, accepted: 10, as many as digits has"),
        (["--initial-checkpoint", "/no.pth"], "path: got /no.pth, which is not there, accepted: a file"),
        (["--init", "pretrained"], "--init: got pretrained, accepted: roli, small"),
        (
            ["--pretrained", "--initial-checkpoint", "m.safetensors"],
            "--pretrained: got it, which has no effect, accepted: it with no --initial-checkpoint",
        ),
        (["--norm", "l2"], "eps: got linf's default in l2, accepted: a radius"),
        (["--init", "roli"], "--init: got roli for a backbone of random weights, accepted: it with"),
        (["--eps", "8"], "eps: got 8.0, accepted: at most 1 in linf"),
        (["--probe-lr", "1"], "--probe-lr: got 1.0, which has no effect, accepted: it with --probe sgd"),
        (
            ["--probe", "sgd"],
            "--probe: got sgd, which has no effect, accepted: it with a head that is probed",
        ),
        (
            ["--method", "linear", "--lr", "1"],
            "--lr: got 1.0, which has no effect, accepted: it with --probe",
        ),
        (["--attack", "nfgsm", "--steps", "3"], "--steps: got 3, which has no effect, accepted: it with"),
        (["--method", "linear", "--steps", "3"], "--steps: got 3, which has no effect, accepted: it with"),
        (["--method", "linear", "--attack", "pgd"], "--attack: got pgd, which has no effect, accepted: it"),
        (
            ["--method", "linear", "--attack-mode", "train"],
            "--attack-mode: got train, which has no effect, accepted: it with --probe sgd",
        ),
        (
            ["--method", "linear", "--attack", "none", "--probe-rounds", "3"],
            "--probe-rounds: got 3, which has no effect, accepted: it with an --attack",
        ),
        (
            ["--probe-steps", "7"],
            "--probe-steps: got 7, which has no effect, accepted: it with a head that is probed",
        ),
        (["--attack", "none", "--eps", "1/255"], "--eps: got 0.00392"),
        (["--trades-beta", "3"], "--trades-beta: got 3.0, which has no effect"),
        (["--img-size", "48"], "--img-size: got 48, which has no effect, accepted: it with --resize, or a"),
        (["--momentum", "0.5"], "--momentum: got 0.5, which has no effect, accepted: it with an --opt"),
        (["--min-lr", "0.1", "--sched", "none"], "--min-lr: got 0.1, which has no effect"),
        (["--method", "bias", "--drop-path", "0.1"], "--drop-path: got 0.1, which has no effect"),
        (
            ["--drop-path", "0.1", "--model-kwargs", "drop_path_rate=0.2"],
            "--drop-path: got another one in --model-kwargs, accepted: one of them",
        ),
        (
            ["--method-kwargs", "rank=abc", "--method", "lora", *VIT],
            "rank: got 'abc', accepted: an integer >= 1",
        ),
        (
            ["--method-kwargs", "dropout=no", "--method", "vpt", *VIT],
            "dropout: got a str, accepted: a number >= 0 and below 1",
        ),
        (["--model-kwargs", "channels=(8,8,8,-1)"], "--model, --model-kwargs: small_resnet cannot be built"),
        (["--drop-path", "2"], "--drop-path: got 2, accepted: a rate from 0 on and below 1"),
        (["--eps", "-1/255"], "--eps"),
        (["--std", "0"], "--std: got '0', accepted: a number above 0"),
        (
            ["--epochs", "3", "--eps-warmup-epochs", "3"],
            "eps_warmup_epochs: got 3, accepted: fewer than the 3",
        ),
        (["--lr", "0.1", "--min-lr", "0.2"], "min_lr: got 0.2, accepted: at most lr, which is 0.1"),
        (["--opt", "sgdd"], "opt: got 'sgdd', accepted: one of timm.optim.list_optimizers()"),
        (["--opt", "adahessian"], "opt: got 'adahessian', accepted: an optimiser that needs no second"),
        (["--batch-size", "0"], "--batch-size: got '0', accepted: 1 or more"),
        (["--batch-size", "1"], "batch_size: got 1, accepted: 2 or more images a process"),
        (["--data-dir", "images"], "data_dir: got images, accepted: None: scikit-learn brings the digits"),
        (["--crop-pct", "0.9"], "crop_pct: got 0.9, accepted: None without an input_size"),
        (["--output", "/dev/null/run"], "--output: "),
        (["--sync-bn"], "--sync-bn: got it, which has no effect, accepted: it with torchrun"),
        (["--dataset-download"], "--dataset-download: got it, which has no effect"),
        (
            ["--input-img-mode", "L"],
            "--input-img-mode: got L, which has no effect, accepted: it with another",
        ),
        (["--opt", "fusedsgd"], "opt: got 'fusedsgd', which cannot be made here"),
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


def parsed(*options):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    arguments = parser.parse_args([*options, "--initial-checkpoint", "backbone.pth"])
    settle(arguments)
    return arguments


def test_the_papers_settings_are_the_defaults_on_its_sets():
    swin = ("--model", "swin_base_patch4_window7_224")
    arguments = parsed(*swin, "--dataset", "cifar10", "--probe", "sgd")
    assert model_options(arguments) == {"img_size": None, "resize": True, "drop_path_rate": 0.5}
    finetuning, probing = recipes(arguments)
    assert (finetuning.epochs, finetuning.opt, finetuning.lr) == (20, "adamw", pytest.approx(1e-4 / 4))
    assert (probing.epochs, probing.opt, probing.lr) == (20, "momentum", pytest.approx(0.05 / 4))
    assert (finetuning.eps, finetuning.steps, finetuning.warmup_epochs) == (8 / 255, 7, 10)
    birds = parsed(*swin, "--dataset", "cub200", "--method", "vpt")
    assert model_options(birds) == {"img_size": None, "resize": False}
    assert method_options(birds) == {"tokens": 20}


def test_what_is_given_comes_before_the_papers_settings():
    options = ("--model", "swin_tiny_patch4_window7_224", "--dataset", "cub200", "--epochs", "3", "--lr", "1")
    probed = ("--probe", "sgd", "--probe-epochs", "2")
    arguments = parsed(*options, *probed, "--drop-path", "0", "--patience", "4")
    assert model_options(arguments)["drop_path_rate"] == 0
    finetuning, probing = recipes(arguments)
    assert (finetuning.epochs, finetuning.lr, finetuning.patience) == (3, 1, 4)
    assert (probing.epochs, probing.lr, probing.patience) == (2, 0.25, None)
    prompts = parsed("--method", "vpt", "--dataset", "cub200", "--method-kwargs", "tokens=5")
    assert method_options(prompts) == {"tokens": 5}


def test_the_head_without_a_probe_is_torchs():
    """The paper's has logits so large that it learns worse."""
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    arguments = parser.parse_args([])
    settle(arguments)
    assert arguments.init == "small"
    assert parsed().init == "roli"


def test_heads_are_probed_by_rounds_unless_told_otherwise():
    assert recipes(parsed())[1] == Rounds()
    assert recipes(parsed("--probe-rounds", "2", "--method", "linear"))[1] == Rounds(2)
    assert recipes(parsed("--probe-steps", "7", "--attack", "nfgsm"))[1] == Rounds(steps=7)
    assert recipes(parsed("--init", "random"))[1] is None
    assert recipes(parsed("--method", "linear", "--probe", "sgd", "--lr", "1"))[0].opt == "momentum"


def test_a_checkpoint_of_another_architecture_is_named(tmp_path, capsys):
    save_model(create_model("resnet10t", 10, in_chans=1), tmp_path / "other.safetensors")
    command = ["train", *TINY, "--initial-checkpoint", str(tmp_path / "other.safetensors")]
    assert main([*command, "--output", str(tmp_path / "run")]) == 2
    assert "accepted: weights of this ResNet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["/nowhere.safetensors"],
            "MODEL: got /nowhere.safetensors, which is not there, accepted: a run's folder",
        ),
        (["."], "MODEL: got ., which holds no run of train, accepted: a run, or a file"),
        (["MODEL", "--seed", "9" * 20], f"--seed: got '{'9' * 20}', accepted: 0 or more, below 2^63"),
        (["MODEL", "--attacks", "cw"], "--attacks: got 'cw', accepted: pgd, autoattack"),
        (["MODEL", "--eps", "8/0"], "--eps: got '8/0'"),
        (["MODEL", "--steps", "0"], "--steps: got '0', accepted: 1 or more"),
        (["MODEL", "--version", "plus"], "--version: got plus, which has no effect, accepted: it with"),
        (["MODEL", "--attacks", "autoattack", "--steps", "5"], "--steps: got 5, which has no effect"),
        (["MODEL", "--eps", "0.1", "--attacks"], "--eps: got 0.1, which has no effect, accepted: it with an"),
        (["MODEL", "--save-adversarial", "--attacks"], "--save-adversarial: got it, which has no effect"),
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
    command = ["eval", str(tmp_path / "m.safetensors"), "--attacks", "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert "--dataset: got none, accepted: that of MODEL's images" in capsys.readouterr().err
    assert main([*command, "--dataset", "digits"]) == 2
    assert "model: got outputs of shape (N, 4), accepted: (N, 10)" in capsys.readouterr().err


def test_a_broken_image_is_one_line(trained, images, tmp_path, capsys):
    broken = shutil.copytree(images, tmp_path / "images")
    for file in broken.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:60])
    data = ["--dataset", "folder", "--data-dir", str(broken), "--workers", "0"]
    for words in (["train", *TINY, "--output", str(tmp_path / "run")], ["eval", str(trained)]):
        assert main([*words, *data]) == 2
        shown = capsys.readouterr().err
        assert "accepted: an image that can be decoded" in shown
        assert shown.count("\n") == 1


def test_test_images_are_looked_at_before_training(images, tmp_path, capsys):
    """At their headers: one of another size, and an empty file."""
    data = tmp_path / "images"
    for name in ("train", "test"):
        shutil.copytree(images, data / name)
    run = ["train", *TINY, "--epochs", "1", "--dataset", "folder", "--data-dir", str(data), "--workers", "0"]
    odd = data / "test" / "middle" / "7.png"
    Image.new("RGB", (9, 8)).save(odd)
    assert main([*run, "--output", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr().err
    assert "middle/7.png has 9x8" in shown
    odd.write_bytes(b"")
    assert main([*run, "--output", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr().err
    assert "middle/7.png: got " in shown
    assert "accepted: an image that can be decoded" in shown
    assert not list((tmp_path / "run").rglob("*.json"))


def test_a_run_from_python_is_left_alone(images, tmp_path, capsys):
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune" / "recipe.json").write_text("{}")
    for more in ([], ["--resume"]):
        assert main([*command(images, tmp_path), *more]) == 2
        assert "which has a run of roli() in Python, accepted: a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["finetune"]


def test_eval_on_other_data_than_the_runs(trained, images, tmp_path, capsys):
    """Takes none of the run's data options along."""
    assert main(["eval", str(trained), "--dataset", "digits", "--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "data_dir" not in said
    assert "images: got shape (1, 1, 8, 8), accepted: (N, 3, ...)" in said
    command = ["eval", str(trained), "--dataset", "folder", "--attacks", "--output", str(tmp_path)]
    assert main([*command, "--workers", "0"]) == 0  # the same set


def test_a_run_is_bound_to_its_backbone(images, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(command(images, out)) == 0
    other = tmp_path / "backbone.safetensors"
    save_model(create_model("small_resnet", 3, channels=(8, 8, 8, 8)), other)
    shutil.copy(images.parent / "backbone.safetensors", tmp_path / "kept")
    shutil.copy(other, images.parent / "backbone.safetensors")
    try:
        assert main(command(images, out, "--resume")) == 2
    finally:
        shutil.copy(tmp_path / "kept", images.parent / "backbone.safetensors")
    assert "--backbone-sha256" in capsys.readouterr().err


def test_finetuning_from_torchs_small_head():
    """The paper's random one has large logits."""
    spread = {}
    for init in ("random", "small"):
        arguments = parsed("--init", init, *TINY, "--mean", "0.5", "--std", "0.5")
        arguments.initial_checkpoint = None
        model = train._model(arguments, digits(), Console(quiet=True))
        spread[init] = find_classifier(model).head.weight.std().item()
        assert recipes(parsed("--init", init))[1] is None
    assert spread["small"] < spread["random"] * 0.7  # of eight features: sqrt(1 / 24) and sqrt(2 / 10)


def test_an_output_whose_name_is_no_utf8_is_refused(images, tmp_path, capsys):
    assert main(command(images, tmp_path / "run\udcff")) == 2
    assert "run\\udcff', which is no UTF-8, accepted: a path that is" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_rounds_on_a_stream_are_refused_by_their_option(tmp_path, monkeypatch, capsys):
    stream = ImageStream(lambda **_: None, 20, ["a", "b"], View(), padded=False)
    monkeypatch.setattr(train, "load_data", lambda _: Splits(stream, stream, stream))
    checkpoint = ["--initial-checkpoint", "backbone.pth", "--output", str(tmp_path / "run")]
    assert main(["train", *TINY, *checkpoint]) == 2
    assert "--probe: got rounds, which need images by number, accepted: sgd" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_eval_says_that_a_run_has_seen_other_images(trained, images, tmp_path, capsys):
    out = ["--attacks", "--workers", "0", "--output", str(tmp_path)]
    assert main(["eval", str(trained), *out[:-1], str(tmp_path / "same")]) == 0
    assert "may be among its own" not in " ".join(capsys.readouterr().out.split())
    assert "eps" not in json.loads((tmp_path / "same" / "eval.json").read_text())  # nothing attacked
    file = str(trained / "finetune" / "best.safetensors")
    data = ["--dataset", "folder", "--data-dir", str(images), "--split-seed", "1"]
    assert main(["eval", file, *data, *out]) == 0
    assert "may be among its own" in " ".join(capsys.readouterr().out.split())
    (note,) = json.loads((tmp_path / "eval.json").read_text())["notes"]
    assert note.startswith("the run trained and validated on other images")


def test_numbers_are_saved_before_they_are_shown(trained, tmp_path, monkeypatch):
    """Printing may fail: a closed pipe, a terminal without the letters of a class."""

    def closed(*_):
        raise BrokenPipeError

    monkeypatch.setattr(sys.modules["roli_fast.cli.eval"], "_table", closed)
    main(["eval", str(trained), "--attacks", "--workers", "0", "--output", str(tmp_path)])
    assert json.loads((tmp_path / "eval.json").read_text())["accuracies"]["clean"]["images"] == 12
