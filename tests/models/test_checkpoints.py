"""Weights from files."""

import argparse
import hashlib
import pickle
import re

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from roli_fast.attacks import PGD
from roli_fast.evaluation import evaluate
from roli_fast.models import (
    METHODS,
    Normalized,
    create_model,
    find_classifier,
    finetune,
    load_backbone,
    load_model,
    read_metadata,
    save_model,
    separate,
)

from ..real import ResNet4b, SmallCNN, cifar10, mnist, tiny_imagenet
from .cases import IMAGES, TINY, backbone, stir, tiny


def timms(kind, num_classes=5):
    """The same network as timm has it, and its weights."""
    name, options = TINY[kind]
    return stir(timm.create_model(name, num_classes=num_classes, **options)).eval()


def written(path, content):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


def assert_same_logits(model, other):
    """Logits of a model that normalises, and of one that does not."""
    images = torch.rand(IMAGES)
    normalized = Normalized(other, model.mean.tolist(), model.std.tolist()).eval()
    assert torch.equal(model.eval()(images), normalized(images))


WRAPPINGS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    "averaged": lambda state: {
        "state_dict": {name: t * 0 for name, t in state.items()},
        "state_dict_ema": state,
    },
    "module.": lambda state: {"model": {f"module.{name}": t for name, t in state.items()}},
    "behind a normalisation": lambda state: {
        "0.mean": torch.tensor([0.5, 0.5, 0.5]),
        "0.std": torch.tensor([0.2, 0.2, 0.2]),
        **{f"1.{name}": t for name, t in state.items()},
    },
    "attacked and beside another network": lambda state: {
        **{f"module.attacker.model.{name}": t for name, t in state.items()},
        **{f"module.model.{name}": t for name, t in state.items()},
        next(iter(state)): torch.zeros(3, 3),
    },
    "compiled and distributed": lambda state: {
        "net": {f"module._orig_mod.model.{name}": t for name, t in state.items()}
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("kind", ["vit", "swin", "resnet", "convnext"])
def test_however_it_is_wrapped(kind, wrapping, tmp_path):
    source = timms(kind)
    model = tiny(kind)
    loaded = load_backbone(model, written(tmp_path / "file.pth", WRAPPINGS[wrapping](source.state_dict())))
    assert loaded.head
    assert_same_logits(model, source)
    if wrapping == "behind a normalisation":
        assert loaded.left_out == {"0.mean": "0.5, 0.5, 0.5", "0.std": "0.2, 0.2, 0.2"}
    elif wrapping == "attacked and beside another network":
        assert loaded.prefix == "module.model."
        assert loaded.left_out[next(iter(source.state_dict()))] == "shape (3, 3)"
    else:
        assert loaded.left_out == {}


def test_safetensors_and_an_enlarging_model(tmp_path):
    source, model = timms("resnet"), tiny("resnet", img_size=48, resize=True)
    load_backbone(model, written(tmp_path / "file.safetensors", source.state_dict()))
    images = torch.rand(2, 3, 32, 32)
    inner = nn.functional.interpolate(images, (48, 48), mode="bilinear")
    normalized = Normalized(source, model.mean.tolist(), model.std.tolist())
    torch.testing.assert_close(model.eval()(images), normalized(inner))


def test_a_swin_of_an_older_timm(tmp_path):
    """It merges patches at the end of a stage, keeps computed tables, and calls its head "head"."""
    source, model = timms("swin"), tiny("swin")
    state = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.int64)}
    for name, t in source.state_dict().items():
        state[name.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head.")] = t
    assert state.keys() != source.state_dict().keys()
    loaded = load_backbone(model, written(tmp_path / "ares.pth", state))
    assert loaded.head
    assert_same_logits(model, source)


@pytest.mark.parametrize("kind", ["vit", "swin", "resnet", "convnext"])
def test_a_head_of_another_size_is_left_out(kind, tmp_path):
    source, model = timms(kind, 8), tiny(kind, 5)
    before = find_classifier(model).head.weight.clone()
    loaded = load_backbone(model, written(tmp_path / "file.pth", source.state_dict()))
    assert not loaded.head
    name = find_classifier(model).head_name
    assert loaded.left_out == {
        f"{name}.weight": f"shape (8, {before.shape[1]})",
        f"{name}.bias": "shape (8,)",
    }
    assert torch.equal(find_classifier(model).head.weight, before)
    images = torch.rand(IMAGES)
    assert torch.equal(backbone(model).eval()(images), separate(source).backbone(images))


def test_positions_of_another_image_size(tmp_path):
    """timm interpolates them."""
    name, options = TINY["vit"]
    source = stir(timm.create_model(name, num_classes=5, **{**options, "img_size": 64}))
    model = tiny("vit")
    load_backbone(model, written(tmp_path / "file.pth", source.state_dict()))
    assert backbone(model).pos_embed.shape[1] == 4 * 4 + 1
    assert torch.equal(backbone(model).blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)


# --- what does not fit -------------------------------------------------------------------------------------


def refused(model, path, message, error=ValueError, **options):
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(error, match=message):
        load_backbone(model, path, **options)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_what_does_not_fit_is_listed(tmp_path):
    state = timms("resnet").state_dict()
    del state["layer1.0.conv1.weight"]
    state["layer9.weight"] = torch.zeros(2)
    state["bn1.bias"] = torch.zeros(7)
    message = (
        r"\(1 missing: layer1\.0\.conv1\.weight; 1 unexpected: layer9\.weight; "
        r"1 of another shape: bn1\.bias \(7,\) instead of \(\d+,\)\)"
    )
    refused(tiny("resnet"), written(tmp_path / "file.pth", state), message)


@pytest.mark.parametrize(("kind", "other"), [("vit", "swin"), ("swin", "resnet"), ("convnext", "vit")])
def test_another_network(kind, other, tmp_path):
    refused(tiny(kind), written(tmp_path / "file.pth", timms(other).state_dict()), "path: got .*file.pth")


class Code:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('code from a file was run')",)


def test_no_code_is_run(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": timms("resnet").state_dict(), "extra": Code()}, path)
    refused(
        tiny("resnet"),
        path,
        "accepted: safetensors, or a torch file of tensors and plain data, since no code",
    )
    with path.open("wb") as file:
        pickle.dump(Code(), file, protocol=2)
    refused(tiny("resnet"), path, "since no code in a file is run")


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.zeros(2)], {"state_dict": {}}])
def test_a_file_without_weights(content, tmp_path):
    refused(
        tiny("resnet"),
        written(tmp_path / "file.pth", content),
        "without a state dict, accepted: one, bare or",
    )


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_broken_file(suffix, tmp_path):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(b"not weights")
    refused(tiny("resnet"), path, "accepted: safetensors, or a torch file")


def test_a_missing_file(tmp_path):
    refused(
        tiny("resnet"), tmp_path / "none.pth", "path: got .*none.pth, which is not there", FileNotFoundError
    )


def test_the_checksum(tmp_path):
    path, model = written(tmp_path / "file.pth", timms("resnet").state_dict()), tiny("resnet")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    refused(model, path, f"sha256: got {digest} for .*, accepted: {'0' * 64}", sha256="0" * 64)
    assert load_backbone(model, path, sha256=digest.upper()).sha256 == digest


def test_a_model_with_inserted_parts(tmp_path):
    model = tiny("vit")
    finetune(model, "lora")
    path = written(tmp_path / "file.pth", timms("vit").state_dict())
    refused(model, path, "model: got one that has lora's parts, accepted: one as before finetune")


# --- our own files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_a_saved_model_comes_back_from_the_file_alone(kind, method, tmp_path):
    model = tiny(kind, resize=True, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    finetune(model, method, **({"rank": 2} if method == "lora" else {}))
    stir(model)
    save_model(model, tmp_path / "model.safetensors", {"epoch": "7"})
    again = load_model(tmp_path / "model.safetensors")
    images = torch.rand(2, 3, 20, 20)
    assert not any(m.training for m in again.modules())
    assert torch.equal(again(images), model.eval()(images))
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    old, new = find_classifier(model), find_classifier(again)
    assert (new.method, new.options, new.architecture.name) == (
        old.method,
        old.options,
        old.architecture.name,
    )
    assert read_metadata(tmp_path / "model.safetensors")["epoch"] == "7"
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("kind", ["resnet", "small_resnet"])
def test_other_networks_and_layouts(kind, tmp_path):
    model = stir(tiny(kind)).to(memory_format=torch.channels_last)
    save_model(model, tmp_path / "model.safetensors")
    images = torch.rand(IMAGES)
    expected = model.eval()(images)
    torch.testing.assert_close(load_model(tmp_path / "model.safetensors")(images), expected)


@pytest.mark.parametrize("resize", [False, True])
def test_a_saved_model_is_a_backbone_for_another(resize, tmp_path):
    """Also for other classes, and where one of them enlarges its images."""
    model = stir(tiny("vit", 5, resize=resize))
    save_model(model, tmp_path / "model.safetensors")
    same, other = tiny("vit", 5), tiny("vit", 9)
    assert load_backbone(same, tmp_path / "model.safetensors").head
    assert not load_backbone(other, tmp_path / "model.safetensors").head
    images = torch.rand(IMAGES)
    assert torch.equal(same.eval()(images), model.eval()(images))
    assert torch.equal(backbone(other).eval()(images), backbone(same)(images))


def test_what_was_not_built_by_name_is_not_saved(tmp_path):
    classifier = separate(nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Linear(6, 2)), "2")
    with pytest.raises(ValueError, match="model: got one that was not built by name"):
        save_model(Normalized(classifier, [0.5] * 3, [0.5] * 3), tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_options_that_no_file_can_hold(tmp_path):
    with pytest.raises(ValueError, match="model: got one with options that are no JSON"):
        save_model(tiny("resnet", act_layer=nn.SiLU), tmp_path / "model.safetensors")


def test_files_of_the_same_model_are_the_same(tmp_path):
    model = tiny("resnet")
    metadata = {name: f"{name} \u00e9" for name in ("epoch", "a", "z", "seed")}
    files = [tmp_path / f"{n}.safetensors" for n in range(4)]
    for file in files:
        save_model(model, file, metadata)
    assert len({file.read_bytes() for file in files}) == 1
    assert read_metadata(files[0]).items() >= metadata.items()
    assert int.from_bytes(files[0].read_bytes()[:8], "little") % 8 == 0


def test_metadata_of_our_own_names(tmp_path):
    with pytest.raises(ValueError, match="metadata: got version, accepted: other names than format, version"):
        save_model(tiny("resnet"), tmp_path / "model.safetensors", {"version": "2"})


def test_other_files_are_no_models(tmp_path):
    path = written(tmp_path / "file.safetensors", timms("resnet").state_dict())
    with pytest.raises(
        ValueError, match="whose metadata do not say how to build its model, accepted: a file of"
    ):
        load_model(path)
    path = written(tmp_path / "file.pth", timms("resnet").state_dict())
    with pytest.raises(ValueError, match="accepted: a safetensors file"):
        load_model(path)


def test_a_model_whose_weights_are_another_networks(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(tiny("resnet"), path)
    metadata = read_metadata(path)
    safetensors.torch.save_file(tiny("vit").state_dict(), path, metadata)
    with pytest.raises(ValueError, match=re.escape("accepted: weights of this Normalized (")):
        load_model(path)


# --- real files --------------------------------------------------------------------------------------------


def accuracy(model, images, labels, attack=None):
    return evaluate(model.eval(), zip(images.split(100), labels.split(100), strict=True), attack).value


def test_this_projects_robust_network(shared_data):
    """Measured on 1,000 images: robust 27.5 % clean and 15.2 % under PGD-10, standard 34.5 and 0.6 %. The
    bounds are 2.5 standard deviations of 600 and 200 images away."""
    images, labels = tiny_imagenet(shared_data)
    attack = PGD(eps=4 / 255, step_size=1 / 255, steps=10, iterate="best", early_stop=True)
    measured = {}
    for name in ("robust", "standard"):
        model = create_model("resnet10_tin", 200)
        assert load_backbone(model, shared_data / f"resnet10_tin200_{name}.safetensors").head
        clean = accuracy(model, images, labels)
        measured[name] = clean, accuracy(model, images[:200], labels[:200], attack)
    assert measured["robust"][0] == pytest.approx(0.275, abs=0.046)
    assert measured["robust"][1] == pytest.approx(0.152, abs=0.064)
    assert measured["standard"][0] == pytest.approx(0.345, abs=0.049)
    assert measured["standard"][1] < 0.03


@pytest.mark.parametrize(
    ("network", "head_name", "file", "data", "documented"),
    [
        (ResNet4b, "linear2", "resnet4b_cifar10.pth", cifar10, 0.765),
        (SmallCNN, "classifier.fc3", "trades_mnist_smallcnn.pt", mnist, 0.995),
    ],
)
def test_other_peoples_networks(shared_data, network, head_name, file, data, documented):
    """A plain module with a named head: the documented accuracy on 500 images, within 2.5 deviations."""
    classifier = separate(network(), head_name)
    assert load_backbone(classifier, shared_data / file).head
    reference, images, labels = data(shared_data)
    mixed = torch.randperm(len(images))[:500]
    images, labels = images[mixed], labels[mixed]
    model = classifier
    if isinstance(reference, Normalized):
        model = Normalized(classifier, reference.mean.tolist(), reference.std.tolist())
    found = accuracy(model, images, labels)
    assert found == pytest.approx(documented, abs=2.5 * (documented * (1 - documented) / 500) ** 0.5)
    assert torch.equal(model(images[:50]), reference(images[:50]))
