"""Parametrized weights are materialised in the copy, followed by it, and left alone in the model."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from roli_fast.attacks import PGD
from roli_fast.engine import AttackView

from .cases import assert_same_logits


class LoRA(nn.Module):
    """weight + B A, of low rank (Hu et al. 2021)."""

    def __init__(self, weight, rank=2):
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, weight[0].numel()) / 10)
        self.b = nn.Parameter(torch.randn(len(weight), rank) / 10)

    def forward(self, weight):
        return weight + (self.b @ self.a).reshape(weight.shape)


def lora(layer):
    parametrize.register_parametrization(layer, "weight", LoRA(layer.weight))
    layer.parametrizations.weight.requires_grad_(False)[-1].requires_grad_()
    return layer


def twice(layer):
    parametrizations.weight_norm(layer)
    return lora(layer)


KINDS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "lora": lora,
    "twice": twice,
}


@pytest.fixture(params=KINDS)
def parametrized(request, convnet):
    """In train mode, in which spectral normalisation iterates at each look at the weight."""
    net = convnet.model
    net[0], net[3], net[8] = (KINDS[request.param](net[i]) for i in (0, 3, 8))
    return convnet.train()


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model, before):
    now = model.state_dict()
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name], before[name]) for name in before)


def test_logits_and_folds(parametrized, batch):
    view = AttackView(parametrized)
    assert_same_logits(view, parametrized, batch[0])
    assert view.report.folded == {"1": "0", "4": "3"}
    assert not any(parametrize.is_parametrized(m) for m in view._copy.module.modules())


def test_the_model_keeps_its_parametrizations(parametrized, batch):
    before, twin = state(parametrized), copy.deepcopy(parametrized)
    kinds = [type(m) for m in parametrized.modules()]
    PGD(steps=2).run(parametrized, *batch)
    assert_same_state(parametrized, before)  # spectral normalisation's u and v, too
    assert [type(m) for m in parametrized.modules()] == kinds
    assert parametrize.is_parametrized(parametrized.model[0], "weight")
    # It can still be trained, as can its copies, which share the class of its modules.
    for model in (parametrized, twin):
        F.cross_entropy(model(batch[0]), batch[1]).backward()
    assert any(p.grad is not None for p in parametrized.model[0].parameters())


def test_a_folded_layer_keeps_its_parametrization(convnet, batch):
    """Where all that is parametrized is folded, nothing but the fold reads it."""
    convnet.model[0] = parametrizations.spectral_norm(convnet.model[0])
    convnet.train()
    before = state(convnet)
    view = AttackView(convnet)
    assert_same_logits(view, convnet, batch[0])
    assert view.report.folded["1"] == "0"
    view.refresh()
    assert_same_state(convnet, before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attack_step_refresh_attack(parametrized, precision, batch):
    images, labels = batch
    options = {"random_start": False, "steps": 3, "precision": precision}
    attack = PGD(**options)
    trained = [p for p in parametrized.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.2)
    attack(parametrized, images, labels)
    memory = [t.data_ptr() for t in attack.view(parametrized)._copy.module.parameters()]
    for _ in range(2):
        F.cross_entropy(parametrized(images), labels).backward()
        optimizer.step()
        adv = attack(parametrized, images, labels)
        assert torch.equal(adv, PGD(**options)(parametrized, images, labels))
    assert [t.data_ptr() for t in attack.view(parametrized)._copy.module.parameters()] == memory
    assert_same_logits(AttackView(parametrized), parametrized, images)


def test_a_weight_tied_to_a_parametrized_one(batch):
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    first = parametrizations.weight_norm(first)
    second.weight = first.parametrizations.weight.original1
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), first, second)
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    assert view.report.note is None
    with torch.no_grad():
        second.weight.mul_(2)
    view.refresh()
    assert_same_logits(view, model, batch[0])


def test_ties_are_kept(batch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    model[3].weight = model[2].weight
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    assert view._copy.module[3].weight is view._copy.module[2].weight


def test_a_parametrization_that_is_removed_is_noticed(batch):
    model = nn.Sequential(nn.Flatten(), lora(nn.Linear(192, 5)))
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    parametrize.remove_parametrizations(model[1], "weight", leave_parametrized=False)
    view.refresh()
    assert_same_logits(view, model, batch[0])


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("kind", ["prune", "old spectral_norm", "old weight_norm"])
def test_weights_that_hooks_compute(kind, used, convnet, batch):
    """As torch did it before there were parametrizations: nothing is folded, everything is followed."""
    utils = torch.nn.utils
    for layer in (convnet.model[0], convnet.model[3]):
        if kind == "prune":
            prune.random_unstructured(layer, "weight", 0.5)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                (utils.spectral_norm if kind == "old spectral_norm" else utils.weight_norm)(layer)
    if used:
        F.cross_entropy(convnet(batch[0]), batch[1]).backward()
    before = state(convnet)
    view = AttackView(convnet, precision="fp32")
    assert_same_logits(view, convnet, batch[0])
    assert view.is_copy
    assert "hook" in view.report.left["1"]
    assert_same_state(convnet, before)
    with torch.no_grad():
        for parameter in convnet.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    view.refresh()
    assert_same_logits(view, convnet, batch[0])
    F.cross_entropy(convnet(batch[0]), batch[1]).backward()
