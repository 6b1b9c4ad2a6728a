"""Models by name, which take pixels."""

import pytest
import timm
import torch
from torch import nn
from torchvision.transforms.functional import normalize, resize

from roli_fast.models import Normalized, Resized, create_model, find_classifier

from .cases import IMAGES, TINY, backbone, tiny


@pytest.mark.parametrize("kind", TINY)
def test_pixels_to_logits(kind):
    assert tiny(kind, 7)(torch.rand(IMAGES)).shape == (3, 7)


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"])
def test_the_normalisation_is_that_of_timms_configuration(name):
    config = timm.models.get_pretrained_cfg(name)
    model = create_model(name, 5, img_size=32)
    assert model.mean.tolist() == pytest.approx(config.mean)
    assert model.std.tolist() == pytest.approx(config.std)
    images = torch.rand(2, 3, 32, 32)
    expected = find_classifier(model).eval()(normalize(images, config.mean, config.std))
    torch.testing.assert_close(model.eval()(images), expected)


def test_another_normalisation_and_other_channels():
    model = create_model("test_resnet", 5, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    assert model.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])
    grey = create_model("test_resnet", 5, in_chans=1)
    assert (grey.mean.tolist(), grey.std.tolist()) == ([0.5], [0.5])
    assert grey(torch.rand(2, 1, 32, 32)).shape == (2, 5)


def test_images_are_enlarged_inside():
    """Like torchvision's Resize before a normalisation, as the paper has it, with the gradient at the
    pixels of the data."""
    model = tiny("vit", resize=True).eval()
    images = torch.rand(2, 3, 12, 10, requires_grad=True)
    inner = backbone(model)
    assert isinstance(inner, Resized)
    enlarged = normalize(resize(images, [32, 32]), model.mean.tolist(), model.std.tolist())
    expected = find_classifier(model).head(inner.model(enlarged))
    torch.testing.assert_close(model(images), expected)
    (grad,) = torch.autograd.grad(model(images).logsumexp(1).sum(), images)
    assert grad.shape == images.shape
    assert grad.any()


def test_the_size_is_the_backbones_unless_told_otherwise():
    assert backbone(create_model("test_resnet", 5, resize=True)).size == (160, 160)
    assert backbone(create_model("test_resnet", 5, resize=True, img_size=48)).size == (48, 48)
    assert backbone(create_model("resnet10_tin", 5, resize=True)).size == (32, 32)
    assert not isinstance(backbone(create_model("resnet10_tin", 5)), Resized)


def test_the_head_is_rolis_unless_it_is_pretrained(monkeypatch):
    bias = find_classifier(create_model("test_vit", 1000)).head.bias
    assert bias.sigmoid().tolist() == pytest.approx([0.01] * 1000)
    asked = []

    def downloaded(name, pretrained, num_classes, in_chans):
        asked.append(pretrained)
        return made

    made = timm.create_model("test_vit", num_classes=1000)
    weight = made.head.weight
    monkeypatch.setattr(timm, "create_model", downloaded)
    assert find_classifier(create_model("test_vit", 1000, pretrained=True)).head.weight is weight
    assert asked == [True]


def test_timms_options_reach_timm():
    model = create_model("test_vit", 5, drop_path_rate=0.5)
    assert backbone(model).blocks[-1].drop_path1.drop_prob == pytest.approx(0.5)


def test_resnet10_tin():
    model = create_model("resnet10_tin", 200)
    assert sum(p.numel() for p in model.parameters()) == 1_290_056
    assert backbone(model).forward_features(torch.rand(1, 3, 32, 32)).shape == (1, 256, 2, 2)


def test_a_hybrid_stands_on_the_first_stages_of_resnet10_tin():
    """Its patches are their output, projected: 8x8 of them for 64x64 pixels."""
    hybrid, resnet = backbone(create_model("hybrid_vit", 5)), backbone(create_model("resnet10_tin", 5))
    stem = hybrid.patch_embed.backbone.eval()
    stem.load_state_dict({name: resnet.state_dict()[name] for name in stem.state_dict()})
    images = torch.rand(2, 3, 64, 64)
    stages = torch.nn.Sequential(*list(resnet.eval().children())[:7])
    torch.testing.assert_close(stem(images), stages(images))
    tokens = hybrid.patch_embed.proj(stages(images)).flatten(2).mT
    torch.testing.assert_close(hybrid.patch_embed(images), tokens)
    assert tokens.shape == (2, 64, 192)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "nonsense",
            {},
            r"model: got 'nonsense', accepted: a name of timm\.list_models\(\), or small_resnet",
        ),
        ("resnet10_tin", {"pretrained": True}, "pretrained: got True for 'resnet10_tin'"),
        ("test_vit", {"checkpoint_path": "x.pth"}, "options: got checkpoint_path"),
        ("test_vit", {"mean": (0.5,)}, "mean, std: got 1 and 3 numbers"),
    ],
)
def test_refusals(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, 5, **options)


def test_bytes_are_refused():
    """A batch as a Loader has it, which would be 255 times as bright."""
    images = torch.randint(0, 256, IMAGES, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"images: got torch.uint8, accepted: floats, .*: images / 255"):
        tiny("resnet")(images)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (3,)])
def test_images_of_other_channels_are_refused(shape):
    """A normalisation by three means would make three channels of one."""
    with pytest.raises(ValueError, match=r"images: got shape .*, accepted: \(N, 3, \.\.\.\)"):
        tiny("resnet")(torch.rand(shape))


def test_one_number_normalises_all_channels():
    one, images = Normalized(nn.Identity(), (0.5,), (0.25,)), torch.rand(IMAGES)
    assert torch.equal(one(images), (images - 0.5) / 0.25)


def test_an_unknown_tag_is_refused():
    with pytest.raises(ValueError, match=r"model: got 'test_resnet.nonsense' .* accepted: a name of timm"):
        create_model("test_resnet.nonsense", 5)
