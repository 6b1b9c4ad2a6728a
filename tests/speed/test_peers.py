"""The peers, where they are installed, run the attack that they are asked for."""

import math
import sys

import pytest
import torch
from torch import nn

from roli_fast.attacks import verify
from roli_fast.speed import peers
from roli_fast.speed.peers import PEERS, Settings, find


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("settings", [Settings("linf", 0.1, 0.05, 3), Settings("l2", 0.5, 0.25, 3)], ids=str)
def test_a_peer_reaches_the_edge_of_its_ball(name, settings):
    pytest.importorskip(PEERS[name].module)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)).eval()
    images, labels = 0.25 + torch.rand(4, 3, 8, 8) / 2, torch.randint(0, 5, (4,))
    adversarial = PEERS[name].build(model, settings, images)(images, labels)
    checked = verify(model, images, adversarial, labels, settings.norm, settings.eps)
    assert (checked.in_ball & checked.in_box).all()
    assert checked.distance.min() > 0.9 * settings.eps  # of a linear model, whose gradient never changes


def test_the_absent_are_named_with_the_reason(monkeypatch):
    def broken(name):
        raise {"foolbox": ModuleNotFoundError("No module named 'eagerpy'", name="eagerpy")}.get(
            name, AttributeError("numpy has no attribute 'float'")
        )

    monkeypatch.setitem(sys.modules, "torchattacks", None)
    found, missing = find(["torchattacks"])
    assert (found, missing) == ({}, {"torchattacks": "not installed (pip install torchattacks)"})
    monkeypatch.setattr(peers.importlib, "import_module", broken)
    found, missing = find(["foolbox", "art"])
    assert found == {}
    assert missing == {
        "foolbox": "No module named 'eagerpy'",
        "art": "AttributeError: numpy has no attribute 'float'",
    }


def test_norms_have_orders():
    assert peers._order(Settings("linf", 1, 1, 1)) == math.inf
    assert peers._order(Settings("l2", 1, 1, 1)) == 2
    assert peers._order(Settings("l1", 1, 1, 1)) == 1
