"""The examples run, on little data, and do what they say."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from roli_fast.attacks import PGD
from roli_fast.data import Splits, StoredImages
from roli_fast.evaluation import evaluate
from roli_fast.models import find_classifier

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def small_network(classes, *, in_chans, channels=(16, 16)):
    """Instead of a residual one, which takes longer to train."""
    first, second = channels[0], channels[1]
    return nn.Sequential(
        nn.Conv2d(in_chans, first, 3, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, stride=2, padding=1),
        nn.BatchNorm2d(second),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * second, classes),
    )


@pytest.fixture
def run(monkeypatch):
    """The main function of an example, with a small network and few resamples."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name, smaller in {"small_resnet": small_network, "RESAMPLES": 100}.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, smaller)
        return module.main

    return load


def robust_accuracy(model):
    from roli_fast.data import digits

    test = digits().test
    return evaluate(
        model, [(test.images[:100], test.labels[:100])], PGD(eps=0.1, step_size=0.03, steps=5)
    ).value


def test_every_example_has_a_test():
    tested = {
        "adversarial_transfer",
        "attack_view",
        "autoattack_timm",
        "from_torchattacks",
        "fused_ops",
        "robust_pretraining",
        "transfer_attack",
        "verify_images",
        "with_accelerate",
    }
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


@pytest.mark.parametrize("name", ["fused_ops", "attack_view", "with_accelerate"])
def test_training(run, name, capsys):
    pytest.importorskip("sklearn")
    if name == "with_accelerate":
        pytest.importorskip("accelerate")
    model = run(name)(epochs=4, batch_size=32)
    assert robust_accuracy(model) > 0.4  # a guess is right in 0.1
    assert "epoch 3: loss " in capsys.readouterr().out


def test_the_switch_from_torchattacks(run, capsys):
    pytest.importorskip("sklearn")
    right = run("from_torchattacks")(epochs=4, batch_size=32)
    assert right.double().mean() > 0.2
    assert "robust accuracy: " in capsys.readouterr().out


def test_autoattack_of_a_timm_model(run, capsys):
    images = torch.rand(3, 3, 32, 32)
    found = run("autoattack_timm")("resnet10t", False, images, eps=0.2, steps=3, queries=5)
    assert found.clean.value == 1
    assert found.stages == ("clean", "apgd-ce", "apgd-t", "fab-t", "square")
    assert "   clean: 100.0%" in capsys.readouterr().out


def test_a_transfer_attack(run):
    pytest.importorskip("sklearn")
    found = run("transfer_attack")(epochs=3)
    fooled = {name: checked.success.double().mean() for name, checked in found.items()}
    assert fooled["surrogate"] >= fooled["target"] > 0.1
    assert all(checked.in_ball.all() for checked in found.values())


def test_a_verifier(run, tmp_path, capsys):
    from roli_fast.models import small_resnet

    model = small_resnet(10, in_chans=1).eval()
    images, eps = torch.rand(6, 1, 8, 8) * 0.5 + 0.25, 0.05
    with torch.no_grad():
        labels = model(images).argmax(1)
    adversarial = images.clone()
    adversarial[0] += 0.2  # out of the ball
    adversarial[1, 0, 0, 0] = torch.nan
    adversarial[2, 0, 0, 0] = -0.01  # out of the box
    torch.save({"images": images, "labels": labels, "adversarial": adversarial}, tmp_path / "images.pt")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    checked = run("verify_images")(
        [str(tmp_path / "images.pt"), str(tmp_path / "weights.pt"), "--eps", str(eps)]
    )
    assert checked.in_ball.tolist() == [False, False, False, True, True, True]
    assert checked.finite.sum() == 5
    assert checked.in_box.sum() == 4
    assert not checked.success.any()
    assert "3 of 6 within 0.05 in linf" in capsys.readouterr().out


def blobs(count, side=32):
    labels = torch.arange(count) % 2
    images = torch.randint(0, 100, (count, 3, side, side)) + 120 * labels[:, None, None, None]
    return StoredImages(images.to(torch.uint8), labels)


def test_a_backbone_is_pretrained_on_a_robust_stem_and_transferred(run, tmp_path):
    from roli_fast.models import create_model, load_model, save_model

    stem = create_model("resnet10_tin", 200)
    save_model(stem, tmp_path / "stem.safetensors")
    splits = Splits(blobs(16, 16), blobs(4, 16), blobs(4, 16))
    network = {"img_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2}
    card = run("robust_pretraining")(
        splits, tmp_path / "backbone", stem=tmp_path / "stem.safetensors", network=network, epochs=1,
        batch_size=8, warmup_epochs=0, precision="fp32", lr=1e-9, weight_decay=0, val_steps=1,
        test={"steps": 2, "autoattack_images": 1},
    )  # fmt: skip
    assert json.loads((tmp_path / "backbone" / "card.json").read_text())["test"] == card["test"]
    assert card["images"] == {"train": 16, "val": 4, "test": 4}
    assert (card["test"]["pgd2"]["images"], card["test"]["autoattack"]["images"]) == (4, 1)
    made = load_model(tmp_path / "backbone" / "best.safetensors")
    begun = find_classifier(made).backbone.patch_embed.backbone.layer1[0].conv1.weight
    torch.testing.assert_close(begun, find_classifier(stem).backbone.layer1[0].conv1.weight)

    transfer = {"network": {"name": "hybrid_vit", **network}, "methods": ["vpt", "lora"]}
    rows = run("adversarial_transfer")(
        splits, {"hybrid": tmp_path / "backbone" / "best.safetensors"}, tmp_path / "transfer", seeds=[0],
        epochs=1, steps=1, val_steps=1, precision="fp32", **transfer,
    )  # fmt: skip
    names = ["VPT", "LoRA"]
    assert [row["arm"] for row in rows] == ["Linear"] + [f"{i} {n}" for n in names for i in ("RanLI", "RoLI")]


def test_adversarial_transfer_goes_on_where_it_stopped(run, tmp_path, capsys):
    splits = Splits(blobs(8), blobs(4), blobs(4))
    network = {"name": "small_resnet", "channels": (8, 8, 8, 8), "img_size": 40, "resize": True}
    quick = {"network": network, "epochs": 1, "steps": 1, "val_steps": 1, "precision": "fp32"}
    rows = run("adversarial_transfer")(splits, {"random": None}, tmp_path, seeds=[0], **quick)
    assert [row["arm"] for row in rows] == [
        "Linear", "RanLI Bias", "RoLI Bias", "RanLI Full-FT", "RoLI Full-FT"
    ]  # fmt: skip
    for row in rows:
        low, high = row["pgd20"]["interval"]
        assert low <= row["pgd20"]["mean"] <= high
        assert row["seeds"] == [0]
    capsys.readouterr()
    assert run("adversarial_transfer")(splits, {"random": None}, tmp_path, seeds=[0], **quick) == rows
    assert "epoch 1" not in capsys.readouterr().out  # nothing was trained again
    for cell in list(tmp_path.glob("random/0/*/cell.json")):  # as another process measures another seed
        other = tmp_path / "random" / "1" / cell.parent.name / cell.name
        other.parent.mkdir(parents=True)
        other.write_text(json.dumps(json.loads(cell.read_text()) | {"seed": 1}))
    rows = run("adversarial_transfer")(splits, {"random": None}, tmp_path, seeds=[1], **quick)
    assert [row["seeds"] for row in rows] == [[0, 1]] * 5


def test_adversarial_transfer_does_not_go_on_with_other_settings(run, tmp_path):
    splits = Splits(blobs(8), blobs(4), blobs(4))
    network = {"name": "small_resnet", "channels": (8, 8, 8, 8), "img_size": 40, "resize": True}
    quick = {"network": network, "methods": (), "steps": 1, "val_steps": 1, "precision": "fp32"}
    main = run("adversarial_transfer")
    main(splits, {"random": None}, tmp_path, seeds=[0], epochs=1, **quick)
    with pytest.raises(ValueError, match="whose cells have other settings, accepted: another folder"):
        main(splits, {"random": None}, tmp_path, seeds=[0], epochs=2, **quick)
