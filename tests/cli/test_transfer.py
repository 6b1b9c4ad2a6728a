"""``roli-fast transfer`` as a user meets it."""

import functools
import json

import pytest
import torch
import torch.nn.functional as F

from roli_fast.attacks import AutoAttack
from roli_fast.cli import transfer
from roli_fast.cli.main import main
from roli_fast.data import digits
from roli_fast.models import create_model, find_classifier, finetune, save_model

SMALL = {"in_chans": 1, "channels": (4, 4, 8, 8)}
DIGITS = ["--dataset", "digits"]
QUICK = [*DIGITS, "--images", "40", "--steps", "3", "--eps", "0.05", "--device", "cpu"]


def trained(method, steps=15, num_classes=10):
    """A few steps on digits, of the head or of everything."""
    torch.manual_seed(0)
    model = create_model("small_resnet", num_classes, **SMALL)
    finetune(model, method)
    images, labels = digits().train.images[:200], digits().train.labels[:200] % num_classes
    chosen = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        chosen.zero_grad()
        F.cross_entropy(model.train()(images), labels).backward()
        chosen.step()
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made = {
        "probed": trained("linear"),
        "probed-too": trained("linear", steps=25),
        "full": trained("full"),
        "new": trained("linear", steps=0),
        "five": trained("full", steps=2, num_classes=5),
        "rgb": create_model("small_resnet", 10),
    }
    for name, model in made.items():
        save_model(model, folder / f"{name}.safetensors")
    torch.save(find_classifier(made["full"]).backbone.state_dict(), folder / "backbone.pth")
    return folder


def run(files, tmp_path, *arguments):
    out = tmp_path / "new" / str(len(list(tmp_path.glob("new/*"))))
    given = [str(files / a) if a.endswith((".safetensors", ".pth")) else a for a in arguments]
    assert main(["transfer", *given, *QUICK, "--output", str(out)]) == 0
    return json.loads((out / "transfer.json").read_text())


def test_one_model_in_full(files, tmp_path, capsys):
    saved = run(files, tmp_path, "probed.safetensors")
    shown = " ".join(capsys.readouterr().out.split())
    for word in ("Sensitivity", "relative", "criterion met", "predicted", "PGD", "Loss bound", "spectral"):
        assert word in shown
    assert "nothing certified" in shown
    assert "Advice (probed): " in shown
    assert saved["certified"] is False
    assert (saved["dataset"], saved["split"], saved["images"], saved["eps"]) == ("digits", "val", 40, 0.05)
    model = saved["models"]["probed"]
    assert (model["method"], model["head"]) == ("linear", True)
    assert model["clean"]["images"] == 40
    assert model["attacks"]["PGD"]["loss_bound"]["holds_for"] == 40
    assert saved["advice"]["probed"]["method"] in ("probe", "finetune")
    assert "transferred" not in saved
    again = run(files, tmp_path, "probed.safetensors", "--batch-size", "7")["models"]["probed"]
    assert again["sensitivity"]["absolute"]["mean"] == pytest.approx(model["sensitivity"]["absolute"]["mean"])
    other = run(files, tmp_path, "probed.safetensors", "--split", "test")
    assert other["split"] == "test"
    assert other["models"]["probed"] != model


def test_probed_and_finetuned_models_are_compared(files, tmp_path, capsys):
    saved = run(files, tmp_path, "probed.safetensors", "probed-too.safetensors", "full.safetensors")
    shown = capsys.readouterr().out
    assert "(probed - finetuned) / finetuned" in shown
    assert "Advice (comparison): " in shown
    models, gaps = saved["models"], saved["transferred"]
    assert gaps["formula"].startswith("(probed - finetuned) / finetuned")
    probed = (models["probed"]["clean"]["value"] + models["probed-too"]["clean"]["value"]) / 2
    finetuned = models["full"]["clean"]["value"]
    assert gaps["accuracy"]["value"] == pytest.approx((probed - finetuned) / finetuned)
    low, high = gaps["accuracy"]["interval"]
    assert low <= gaps["accuracy"]["value"] <= high


def test_autoattack_when_asked_for(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(transfer, "AutoAttack", functools.partial(AutoAttack, steps=2, queries=5))
    saved = run(files, tmp_path, "full.safetensors", "--images", "6", "--autoattack")
    model = saved["models"]["full"]
    assert set(model["attacks"]) == {"PGD", "AutoAttack"}
    assert model["robust"]["value"] <= model["attacks"]["AutoAttack"]["robust"]["value"]
    assert "AutoAttack" in capsys.readouterr().out


def test_names_are_no_markup(files, tmp_path, capsys):
    named = tmp_path / "probed[red]:car:.safetensors"
    named.write_bytes((files / "probed.safetensors").read_bytes())
    out = tmp_path / "out[blue]"
    assert main(["transfer", str(named), *QUICK, "--output", str(out)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("probed[red]:car:") == 7  # as work begins, in each table, and with the advice
    assert f"Numbers: {out / 'transfer.json'}" in shown


@pytest.mark.parametrize("name", ["new", "five"])
def test_before_a_head_is_trained_there_is_the_sensitivity_alone(name, files, tmp_path, capsys):
    saved = run(files, tmp_path, f"{name}.safetensors")
    shown = capsys.readouterr().out
    assert "no head has been trained for these classes" in shown
    assert "Loss bound" not in shown
    assert set(saved["models"][name]) == {"method", "head", "sensitivity"}
    assert saved["models"][name]["head"] is False


def test_a_backbone_by_name(files, tmp_path, capsys):
    """As a file says how it was built, resnet10_tin is as good a name as any."""
    backbone = create_model("resnet10_tin", 10, in_chans=1)
    torch.save(find_classifier(backbone).backbone.state_dict(), tmp_path / "theirs.pth")
    arguments = ["--model", "resnet10_tin", "--checkpoint", str(tmp_path / "theirs.pth"), "--resize"]
    assert main(["transfer", *arguments, "--img-size", "16", *QUICK, "--output", str(tmp_path)]) == 0
    assert "no head has been trained" in capsys.readouterr().out
    (model,) = json.loads((tmp_path / "transfer.json").read_text())["models"].items()
    assert model[0] == "theirs"
    assert model[1]["sensitivity"]["images"] == 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "MODEL: got none, accepted: files of save_model, or --model NAME --checkpoint FILE"),
        (
            ["--model", "resnet10_tin"],
            "MODEL: got resnet10_tin, accepted: files of save_model, or --model NAME",
        ),
        (
            ["full.safetensors", "--resize"],
            "--resize: got it, which has no effect, accepted: it with no model",
        ),
        (["full.safetensors", "full.safetensors"], "accepted: each once"),
        (["absent.safetensors"], "absent.safetensors, which is not there, accepted: a file"),
        (["."], "path: got ., a folder, accepted: a file"),
        (["backbone.pth"], "backbone.pth, accepted: a safetensors file"),
        (
            ["rgb.safetensors"],
            "rgb: got images of 1 channels, accepted: 3, for which it is built (--input-img-mode)",
        ),
        (
            ["--model", "nonsense", "--checkpoint", "backbone.pth"],
            "model: got 'nonsense', accepted: a name of",
        ),
        (["--model", "resnet10_tin", "--checkpoint", "backbone.pth"], "accepted: weights of this ResNet"),
        (
            ["--model", "resnet10_tin", "--checkpoint", "backbone.pth", "--img-size", "48"],
            "--img-size: got 48, which has no effect, accepted: it with --resize, or a --model",
        ),
        (
            ["full.safetensors", "--eps", "0"],
            "--eps: got '0', accepted: a number above 0, such as 0.5 or 8/255",
        ),
        (["full.safetensors", "--eps", "8"], "--eps: got 8, accepted: at most 1 in linf, such as 8/255"),
        (["full.safetensors", "--steps", "0"], "--steps: got '0', accepted: 1 or more"),
        (["full.safetensors", "--images", "x"], "--images: got 'x', accepted: 1 or more"),
        (["full.safetensors", "--split", "train"], "--split: got 'train', accepted: val, test"),
        (["full.safetensors", "--dataset", "nonsense"], "name: got 'nonsense', accepted: cifar10"),
        (["full.safetensors", "--device", "abacus"], "--device: got 'abacus', accepted: cpu, cuda"),
        (["full.safetensors", "--output", "/dev/null/out"], "--output: "),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments, message, files, tmp_path, capsys):
    given = [str(files / a) if a.endswith((".safetensors", ".pth")) else a for a in arguments]
    out = [] if "--output" in arguments else ["--output", str(tmp_path / "out")]
    data = [] if "--dataset" in arguments or not arguments else DIGITS
    assert main(["transfer", *given, *data, *out]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("roli-fast transfer: ")
    assert message in shown.err
    assert not (tmp_path / "out").exists()
