"""What is shown of a picture: the paper's transforms, at places that draws choose."""

import numpy
import pytest
import torch
from PIL import Image
from torchvision import transforms

from roli_fast.data.view import View


def picture(width, height, seed=0):
    pixels = numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), numpy.uint8)
    return Image.fromarray(pixels)


def pixels(image):
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (256, 256), (90, 70)])
def test_evaluation_is_resize_and_centre_crop(size):
    view = View(resize=256, crop=224)
    paper = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    shown = pixels(view.centre(view.resized(picture(*size))))
    assert torch.equal(shown, paper(picture(*size)))


def test_draws_place_the_crop_anywhere_and_mirror_it():
    view = View(resize=6, crop=4, hflip=0.5)
    image = picture(9, 6)
    for top in range(3):
        for left in range(6):
            crop = pixels(image)[:, top : top + 4, left : left + 4]
            down, across = (top + 0.5) / 3, (left + 0.5) / 6
            assert torch.equal(pixels(view.random(image, (down, across, 0.5))), crop)
            assert torch.equal(pixels(view.random(image, (down, across, 0.4999))), crop.flip(-1))
    largest = 1 - 2**-24  # of torch.rand
    for draws, corner in (
        ((0.0, 0.0, 0.9), (0, 0)),
        ((largest, largest, largest), (2, 5)),
    ):
        expected = pixels(image)[:, corner[0] : corner[0] + 4, corner[1] : corner[1] + 4]
        assert torch.equal(pixels(view.random(image, draws)), expected)


@pytest.mark.parametrize(
    "view", [View(resize=20, crop=12, hflip=0.5), View(hflip=0.5), View(resize=20, crop=12)]
)
def test_pictures_and_tensors_are_cut_alike(view):
    resized = [view.resized(picture(31, 22, seed)) for seed in range(20)]
    draws = torch.rand(20, 3).tolist()
    together = view.random_batch(torch.stack([pixels(r) for r in resized]), draws)
    for one, r, d in zip(together, resized, draws, strict=True):
        assert torch.equal(pixels(view.random(r, d)), one)
        assert torch.equal(pixels(view.centre(r)), view.centre(pixels(r)))


def test_nothing_asked_nothing_done():
    image, view = picture(9, 6), View()
    for shown in (view.resized(image), view.centre(image), view.random(image, (0.3, 0.3, 0.0))):
        assert torch.equal(pixels(shown), pixels(image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 8}, "crop: got 8, accepted: 1 .. resize = None"),
        ({"crop": 8, "resize": 7}, "crop: got 8, accepted: 1 .. resize = 7"),
        ({"crop": 0, "resize": 7}, "crop: got 0"),
        ({"hflip": 1.5}, "hflip: got 1.5, accepted: a probability"),
        ({"hflip": float("nan")}, "hflip: got nan"),
    ],
)
def test_what_cannot_be_shown_is_refused(options, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        View(**options)
