"""Restarts are other runs: of each target, of a random search, and of the attacks of one ensemble."""

import itertools

import pytest
import torch
from torch import nn

from roli_fast.attacks import APGDT, FABT, AutoAttack, Square

from .cases import places


@pytest.fixture
def problem():
    """A model that nothing here fools, so that all images take part to the end."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).double()
    with torch.no_grad():
        model[1].bias[0] += 10
    images = torch.rand(8, 3, 8, 8, dtype=torch.float64) * 0.4 + 0.3
    return model, images, torch.zeros(8, dtype=torch.int64)


def all_differ(tensors):
    return not any(torch.equal(one, other) for one, other in itertools.combinations(tensors, 2))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("kind", [APGDT, FABT])
def test_each_target_has_restarts_of_its_own(problem, kind, norm):
    """The likeliest first, and then the next; FAB's first run of each is from the image."""

    class Noted(kind):
        def pairs(self, trial, run):
            targets[run] = super().pairs(trial, run)[:, 1]
            return super().pairs(trial, run)

    model, images, labels = problem
    targets = {}
    result, asked = places(Noted(norm, 0.01, steps=1, targets=2, restarts=3), model, images, labels)
    assert not result.success.any()
    likeliest = model(images).topk(3).indices[:, 1:]
    assert list(targets) == [0, 1, 2, 3, 4, 5]
    assert torch.equal(torch.stack([*targets.values()], dim=1), likeliest.repeat_interleave(3, dim=1))
    starts = asked.unbind(dim=1)
    at_the_image = [torch.equal(start, images) for start in starts]
    assert at_the_image == [kind is FABT and run in (0, 3) for run in range(6)]
    assert all_differ([start for start, there in zip(starts, at_the_image, strict=True) if not there])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_square_starts_and_searches_elsewhere(problem, norm):
    """Of one query, two runs try four images."""
    model, images, labels = problem
    tried = []

    def noted(x):
        if len(x) == len(images):
            tried.append(x.clone())
        return model(x)

    assert not Square(norm, 0.1, queries=1, restarts=2).run(noted, images, labels).success.any()
    for each in torch.stack(tried, dim=1):
        assert len(each.unique(dim=0)) == 4


def test_the_attacks_of_an_ensemble_start_elsewhere(problem):
    attack = AutoAttack(eps=0.01, attacks=("apgd-ce", "apgd-dlr"), steps=1)
    result, asked = places(attack, *problem)
    assert not result.success.any()
    assert asked.shape[1] == 2
    assert all_differ(asked.unbind(dim=1))
