import pytest
import torch
from torch import nn

from roli_fast.models import Normalized, small_resnet


def test_normalized_takes_pixels():
    images = torch.rand(2, 3, 4, 4)
    model = Normalized(nn.Identity(), (0.5, 0.4, 0.3), (0.1, 0.2, 0.4))
    assert torch.equal(model(images)[:, 1], (images[:, 1] - 0.4) / 0.2)
    assert torch.equal(Normalized(nn.Identity(), [0.5], [0.5])(torch.ones(2, 1)), torch.ones(2, 1))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [((0.5,), (0.1, 0.2), "mean, std: got 1 and 2 numbers"), ((0.5,), (0.0,), r"std: got \(0.0,\)")],
)
def test_normalized_refuses(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Normalized(nn.Identity(), mean, std)


@pytest.mark.parametrize("pixels", [8, 32])
def test_small_resnet_keeps_its_resolution_in_the_stem(pixels):
    model = small_resnet(7, in_chans=1).eval()
    assert model(torch.rand(2, 1, pixels, pixels)).shape == (2, 7)
    assert model.forward_features(torch.rand(2, 1, pixels, pixels)).shape[-1] == max(1, pixels // 8)
