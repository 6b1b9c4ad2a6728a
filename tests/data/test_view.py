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
    image = pixels(picture(9, 6))
    crops = {(top, left): image[:, top : top + 4, left : left + 4] for top in range(3) for left in range(6)}
    seen = set()
    for (top, left), crop in crops.items():
        down, across = (top + 0.5) / 3, (left + 0.5) / 6
        assert torch.equal(view.random(image, (down, across, 0.5)), crop)
        assert torch.equal(view.random(image, (down, across, 0.4999)), crop.flip(-1))
        seen.add((top, left))
    assert torch.equal(view.random(image, (0.0, 0.0, 0.9)), crops[0, 0])
    largest = 1 - 2**-24  # of torch.rand
    assert torch.equal(view.random(image, (largest, largest, largest)), crops[2, 5])


def test_pictures_and_tensors_are_cut_alike():
    view = View(resize=20, crop=12, hflip=0.5)
    resized = view.resized(picture(31, 22))
    for draws in torch.rand(20, 3).tolist():
        assert torch.equal(pixels(view.random(resized, draws)), view.random(pixels(resized), draws))
    assert torch.equal(pixels(view.centre(resized)), view.centre(pixels(resized)))


def test_nothing_asked_nothing_done():
    image = pixels(picture(9, 6))
    assert torch.equal(View().centre(image), image)
    assert torch.equal(View().random(image, (0.3, 0.3, 0.0)), image)


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
