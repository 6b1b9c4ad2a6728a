"""Backbone and head, told apart."""

import math

import pytest
import timm
import torch
from torch import nn

from roli_fast.engine import AttackView
from roli_fast.models import (
    Normalized,
    create_model,
    find_classifier,
    load_model,
    save_model,
    separate,
    split,
)

from .cases import IMAGES, TINY, tiny


@pytest.mark.parametrize("kind", TINY)
def test_the_parts_make_up_the_model(kind):
    model, images = tiny(kind).eval(), torch.rand(IMAGES)
    features, head = split(model)
    found = features(images)
    assert found.shape == (3, head.in_features)
    assert torch.equal(head(found), model(images))
    assert head is find_classifier(model).head
    assert {id(p) for p in features.parameters()} | {id(p) for p in head.parameters()} == {
        id(p) for p in model.parameters()
    }


def test_the_parts_have_the_models_precision():
    model, images = tiny("vit").double().eval(), torch.rand(IMAGES, dtype=torch.float64)
    model.mean.fill_(1 / 3)  # which float32 does not have
    features, head = split(model)
    assert torch.equal(head(features(images)), model(images))
    assert {value.dtype for value in features.state_dict().values()} == {torch.float64}


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "test_efficientnet"])
def test_separating_changes_no_logit(name):
    model, images = timm.create_model(name, num_classes=7).eval(), torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(separate(model).eval()(images), expected)


def test_a_plain_module_by_the_name_of_its_last_layer():
    net = nn.Sequential()
    net.add_module("body", nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU()))
    net.add_module("classifier", nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 4)))
    images = torch.rand(5, 3, 2, 2)
    expected = net.eval()(images)
    classifier = separate(net, "classifier.1").eval()
    assert torch.equal(classifier(images), expected)
    assert classifier.backbone(images).shape == (5, 6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "head_name: got None for a Sequential, .* accepted: the name of its last linear layer"),
        ("0", "'0' is a Flatten, accepted: one whose last layer is an nn.Linear"),
        ("nonsense", "'nonsense' is a NoneType, accepted"),
    ],
)
def test_what_has_no_such_layer_is_refused(name, message):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6))
    with pytest.raises(ValueError, match=message):
        separate(net, name)
    assert isinstance(net[1], nn.Linear)


def test_two_classifiers_are_refused():
    model = timm.create_model("deit_tiny_distilled_patch16_224", depth=1)
    with pytest.raises(ValueError, match="accepted: one whose last layer"):
        separate(model)


def test_a_model_that_was_never_separated_is_refused():
    with pytest.raises(
        TypeError, match="model: got a Linear, accepted: what create_model or separate returns"
    ):
        split(Normalized(nn.Linear(3, 2), (0.5,), (0.5,)))


def test_a_new_head_begins_as_the_paper_has_it():
    classifier = find_classifier(tiny("vit").double())
    classifier.reset_head(400)
    head = classifier.head
    assert head.weight.dtype == torch.float64
    assert head.weight.shape == (400, 32)
    # Kaiming's by fan out for ReLU: a variance of 2 / 400; 12,800 draws give it within 5 %.
    assert head.weight.var().item() == pytest.approx(2 / 400, rel=0.05)
    # A sigmoid of the bias is 0.01.
    assert head.bias.sigmoid().tolist() == pytest.approx([0.01] * 400)
    assert head.bias[0].item() == pytest.approx(-math.log(99))


@pytest.mark.parametrize("kind", ["vit", "swin", "resnet"])
def test_an_attack_view_of_the_model_and_of_its_features(kind):
    model, images = tiny(kind).train(), torch.rand(IMAGES)
    modes = [m.training for m in model.modules()]
    features, _ = split(model)
    for whole in (model, features):
        view = AttackView(whole)
        found = view(view.prepare(images))
        assert view.is_copy
        assert view.report.moved < 1e-5
        assert found.shape == (3, 5 if whole is model else features.model.num_features)
    assert [m.training for m in model.modules()] == modes


def test_a_head_for_other_classes_is_saved_and_loaded(tmp_path):
    model = create_model("small_resnet", 7, channels=(8, 8, 8, 8))
    find_classifier(model).reset_head(3)
    save_model(model, tmp_path / "model.safetensors")
    images = torch.rand(IMAGES)
    assert torch.equal(load_model(tmp_path / "model.safetensors").eval()(images), model.eval()(images))


def test_a_second_head_is_not_dropped_in_silence():
    """timm's VOLO adds one's logits to the other's."""
    model = timm.create_model("test_resnet")
    model.aux_head = nn.Linear(3, 5)
    with pytest.raises(ValueError, match="which has two heads, accepted: one whose logits are its last"):
        separate(model)
