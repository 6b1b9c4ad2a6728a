"""Rows of docs/switching.md: precision, autocast, and several GPUs."""

import warnings

import pytest
import torch
from torch import nn

import roli_fast.compat.torchattacks as torchattacks
from roli_fast.compat import options

from . import faces
from .faces import by_autoattack, by_cleverhans, by_foolbox, by_torchattacks, every_face, row, theirs


@row("Precision")
@every_face
def test_products_are_those_that_torch_is_set_to(attack, net, batch, monkeypatch):
    """Also in the copy, whose layers are called in backward passes, too."""
    convolutions, seen = torch.backends.mkldnn.conv, set()
    original = nn.Conv2d._conv_forward

    def watched(self, *arguments):
        seen.add(convolutions.fp32_precision)
        return original(self, *arguments)

    attack(net, *batch)  # the copy is compared with the model in full precision
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", watched)
    before, convolutions.fp32_precision = convolutions.fp32_precision, "tf32"
    try:
        attack(net, *batch)
    finally:
        convolutions.fp32_precision = before
    assert seen == {"tf32"}


@row("Precision")
def test_precision(digits_subject):
    s = digits_subject.first(60)
    attack = torchattacks.BIM(s.model, eps=0.1, alpha=0.03, steps=5)
    assert attack._made().precision == "torch"
    exact = attack(s.images, s.labels)
    with options(precision="bf16"):
        assert attack._made().precision == "bf16"
        fast = attack(s.images, s.labels)
    with torch.no_grad():
        right = [(s.model(images).argmax(1) == s.labels).sum().item() for images in (exact, fast)]
    assert abs(right[0] - right[1]) <= 3


def in_bfloat16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


@row("Autocast")
@every_face
def test_autocast(attack, net, batch):
    torch.manual_seed(0)
    expected = attack(net, *batch)
    torch.manual_seed(0)
    with in_bfloat16(), pytest.warns(UserWarning, match='options.precision="bf16"') as said:
        found = attack(net, *batch)
    assert said[-1].filename == faces.__file__
    if attack is not by_autoattack:  # whose search follows the model itself
        assert torch.equal(found, expected)


@every_face
def test_a_precision_that_was_chosen_is_meant(attack, net, batch):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for precision in ("fp32", "bf16"):
            with in_bfloat16(), options(precision=precision):
                attack(net, *batch)
        attack(net, *batch)


@pytest.mark.parametrize("attack", [by_torchattacks, by_foolbox, by_cleverhans])
def test_autocast_in_the_original(attack, net, batch):
    call, found = theirs(attack), set()
    net[-1].register_forward_hook(lambda module, inputs, output: found.add(output.dtype))
    with in_bfloat16():
        call(net.eval(), *batch)
    assert found == {torch.bfloat16}


class Spread(nn.DataParallel):
    """As over two GPUs, but for what it computes."""

    def __init__(self, module):
        super().__init__(module)
        self.device_ids = [0, 1]

    def forward(self, x):
        return self.module(x)


@row("Several GPUs")
@every_face
def test_several_gpus(attack, net, batch):
    model = Spread(net)
    with pytest.warns(UserWarning, match="one GPU, without torch.nn.DataParallel") as said:
        attack(model, *batch)
    assert said[-1].filename == faces.__file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        attack(model, *batch)
        model = Spread(net)
        model.device_ids = [0]
        attack(model, *batch)
