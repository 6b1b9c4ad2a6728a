"""A model is asked in eval mode, and each of its modules is in its own mode afterwards."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from roli_fast.attacks import PGD
from roli_fast.engine import AttackView, eval_mode

from .cases import logits, through


def layers():
    return nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()


class Lazy(nn.Linear):
    """Computes from its weight when it is first asked in eval mode, as timm's LeViT and TinyViT do."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.cache = {}

    def train(self, mode=True):
        super().train(mode)
        self.cache = {}
        return self

    def forward(self, x):
        if self.training:
            return x @ self.weight.T + self.bias
        if "weight" not in self.cache:
            self.cache["weight"] = 2 * self.weight.T
        return x @ self.cache["weight"] / 2 + self.bias


class AtOnce(Lazy):
    """Computes it when its mode changes, as LeViT's own code does."""

    def train(self, mode=True):
        super().train(mode)
        self.cache = {} if mode else {"weight": 2 * self.weight.detach().T}
        return self


class Merging(nn.Linear):
    """Adds what it has learned to its weight when its mode changes, as loralib does."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.learned, self.merged = nn.Parameter(torch.zeros_like(self.weight)), False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += -self.learned.data if mode else self.learned.data
            self.merged = not mode
        return self

    def forward(self, x):
        return x @ (self.weight if self.merged else self.weight + self.learned).T + self.bias


@pytest.mark.parametrize("kind", [Lazy, AtOnce, Merging])
def test_what_a_model_makes_of_its_weights_in_eval_mode_follows_them(kind, batch):
    model = nn.Sequential(nn.Flatten(), kind(batch[0][0].numel(), 5)).train()
    attack = PGD(steps=2, iterate="best")
    for learned in (0.0, 1.0, -1.0):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(learned * torch.randn_like(parameter))
        fresh = nn.Sequential(nn.Flatten(), kind(batch[0][0].numel(), 5))
        fresh.load_state_dict(model.state_dict())
        result = attack.run(model, *batch)
        view = attack.view(model)
        torch.testing.assert_close(through(view, batch[0]), fresh.eval()(batch[0]), rtol=1e-4, atol=1e-4)
        assert torch.equal(result.success, fresh(result.adversarial).argmax(dim=1) != batch[1])
        assert all(module.training for module in model.modules())


def test_a_part_that_merges_and_is_in_eval_mode_stays_merged(batch):
    """Though what is around it is trained, and passes its own mode on."""

    class Passing(nn.Sequential):
        def train(self, mode=True):
            return super().train(mode)

    model = Passing(nn.Flatten(), Merging(batch[0][0].numel(), 5)).train()
    nn.init.ones_(model[1].learned)
    model[1].eval()
    merged = model[1].weight.detach().clone()
    PGD(steps=1)(model, *batch)
    assert model.training
    assert not model[1].training
    assert model[1].merged
    torch.testing.assert_close(model[1].weight.detach(), merged)


def test_a_model_that_freezes_a_part_in_train_mode_is_copied(batch):
    """It does no more than set modes, and each module's is what it was."""

    class Freezing(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    model = Freezing(*layers()).train()
    model[0].eval()
    modes = [module.training for module in model.modules()]
    view = AttackView(model)
    torch.testing.assert_close(through(view, batch[0]), logits(model, batch[0]), rtol=1e-4, atol=1e-5)
    assert view.is_copy
    assert [module.training for module in model.modules()] == modes


def test_a_training_loop_by_the_name_of_train_is_left_alone(batch):
    class Trainable(nn.Sequential):
        def train(self, batches):
            raise AssertionError("nobody asked for it")

    model = Trainable(*layers())
    torch.testing.assert_close(
        through(AttackView(model), batch[0]), logits(model, batch[0]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("first", ["all", "part"])
@pytest.mark.parametrize("second", ["all", "part"])
def test_threads_that_overlap(first, second):
    """The first one leaves while the second is inside."""
    model = nn.Sequential(nn.Sequential(*layers()), nn.Dropout()).train()
    model[0][1].eval()
    modes = [module.training for module in model.modules()]
    held = {"all": model, "part": model[0]}
    here, there = eval_mode(held[second]), eval_mode(held[first])
    with ThreadPoolExecutor(1) as other:
        other.submit(there.__enter__).result()
        with here:
            other.submit(there.__exit__, None, None, None).result()
            assert not any(module.training for module in held[second].modules())
    assert [module.training for module in model.modules()] == modes


def test_attacks_of_several_threads_on_one_model(batch):
    model = nn.Sequential(*layers()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def work(_):
        for _ in range(20):
            PGD(steps=1)(model, batch[0], batch[1] % 4)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_mode_that_is_set_inside_is_found_again_by_what_set_it():
    model = nn.Sequential(*layers())
    with eval_mode(model.eval()):
        model.train()
        with eval_mode(model[0]), eval_mode(model):
            assert not any(module.training for module in model.modules())
        assert model.training
        assert model[0].training
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("mode", [False, True])
def test_a_train_that_fails(mode):
    class Failing(nn.Sequential):
        fails_for = None

        def train(self, mode=True):
            if mode == self.fails_for:
                raise RuntimeError("no")
            return super().train(mode)

    model = nn.Sequential(nn.Linear(2, 2), Failing()).train()
    model[1].fails_for = mode
    with pytest.raises(RuntimeError, match="no"), eval_mode(model):
        assert mode
    assert model[0].training
    model[1].fails_for = None
    model.train()
    with eval_mode(model):
        assert not model[1].training
    assert all(module.training for module in model.modules())
