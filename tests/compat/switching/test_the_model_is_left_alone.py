"""Rows of docs/switching.md: what an attack does to the model and to autograd."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .faces import by_art, by_cleverhans, by_foolbox, by_torchattacks, every_face, row, theirs


@row("Modes")
@every_face
def test_modes(attack, net, batch):
    before = [module.training for module in net.modules()]
    attack(net, *batch)
    assert [module.training for module in net.modules()] == before


@pytest.mark.parametrize("attack", [by_torchattacks, by_art])
def test_modes_in_the_original(attack, net, batch):
    before = [module.training for module in net.modules()]
    theirs(attack)(net, *batch)
    assert [module.training for module in net.modules()] != before


@row("Training mode")
@every_face
def test_training_mode(attack, net, batch):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(0)
    found = attack(net, *batch)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    torch.manual_seed(0)
    torch.testing.assert_close(attack(net.eval(), *batch), found)


@row("Gradients")
@every_face
def test_gradients(attack, net, batch):
    attack(net, *batch)
    assert all((parameter.grad == 1).all() for parameter in net.parameters())


@pytest.mark.parametrize("attack", [by_foolbox, by_art, by_cleverhans])
def test_gradients_in_the_original(attack, net, batch):
    theirs(attack)(net, *batch)
    assert not all(p.grad is not None and (p.grad == 1).all() for p in net.parameters())


@row("`torch.no_grad`")
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@every_face
def test_no_grad(attack, context, net, batch):
    torch.manual_seed(0)
    expected = attack(net, *batch)
    torch.manual_seed(0)
    with context():
        found = attack(net, *batch)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("attack", [by_torchattacks, by_foolbox, by_art, by_cleverhans])
def test_no_grad_in_the_original(attack, net, batch):
    call = theirs(attack)
    with torch.no_grad(), pytest.raises(Exception, match="grad"):
        call(net, *batch)


class Checkpointed(nn.Module):
    def __init__(self, net, use_reentrant):
        super().__init__()
        self.net, self.use_reentrant = net, use_reentrant

    def forward(self, x):
        return checkpoint(self.net, x, use_reentrant=self.use_reentrant)


@row("Checkpointing")
@pytest.mark.parametrize("attack", [by_torchattacks, by_foolbox, by_art, by_cleverhans])
def test_checkpointing(attack, net, batch):
    with pytest.raises(RuntimeError, match=r"torch\.autograd\.grad|use_reentrant"):
        attack(Checkpointed(net, use_reentrant=True), *batch)
    net.eval()  # so that originals, too, ask for the same
    torch.manual_seed(0)
    expected = attack(net, *batch)
    torch.manual_seed(0)
    torch.testing.assert_close(attack(Checkpointed(net, use_reentrant=False), *batch), expected)


@pytest.mark.parametrize("attack", [by_foolbox, by_art, by_cleverhans])
def test_checkpointing_in_the_original(attack, net, batch):
    theirs(attack)(Checkpointed(net, use_reentrant=True), *batch)
