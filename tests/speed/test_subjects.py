"""Models and images to measure on."""

import pytest
import timm
import torch
from torch import nn

from roli_fast.speed.subjects import labelled, random_images, settle, timm_model


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_timm_model_takes_pixels_of_the_size_asked_for(name):
    model = timm_model(name, (3, 32, 32), num_classes=7)
    assert model(random_images(2, (3, 32, 32))).shape == (2, 7)
    assert not any(module.training for module in model.modules())
    for module in model.modules():  # no block is the identity
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            assert module.weight.any()


def test_a_checkpoint_is_loaded(tmp_path):
    weights = timm.create_model("test_resnet", in_chans=1, num_classes=10).state_dict()
    torch.save({"state_dict": weights}, tmp_path / "weights.pth")
    loaded = timm_model("test_resnet", (1, 32, 32), checkpoint=tmp_path / "weights.pth")
    head = {f"fc.{name}": t for name, t in loaded.model.head.state_dict().items()}
    for name, value in (loaded.model.backbone.state_dict() | head).items():
        torch.testing.assert_close(value, weights[name])
    with pytest.raises(ValueError, match=r"num_classes: got 3, accepted: as many as .*weights.pth has"):
        timm_model("test_resnet", (1, 32, 32), num_classes=3, checkpoint=tmp_path / "weights.pth")


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"got 'nonsense', accepted: a name of timm\.list_models\(\)"):
        timm_model("nonsense", (3, 32, 32))


def test_images_are_pixels_and_differ():
    images = random_images(3, (2, 8, 12))
    assert images.shape == (3, 2, 8, 12)
    assert 0 <= images.min() < images.max() <= 1
    assert not torch.equal(images[0], images[1])


def test_statistics_are_those_of_the_images():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5)).eval()
    images = [3 + 2 * torch.randn(16, 2, 8, 8) for _ in range(3)]
    settle(model, images)
    torch.testing.assert_close(model[0].running_mean, torch.stack(images).mean(dim=(0, 1, 3, 4)))
    assert model[0].momentum == 0.1
    assert not any(module.training for module in model.modules())


def test_labels_are_the_models_own(convnet, batch):
    ((images, labels),) = labelled(convnet, [batch[0]])
    assert torch.equal(convnet.eval()(images).argmax(dim=1), labels)
