"""Attacks in several threads at once."""

import copy
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from roli_fast.attacks import PGD
from roli_fast.engine import AttackView


def net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    ).eval()


def test_copies_are_made_in_several_threads_at_once():
    """Each traces its model, while another thread's model runs."""
    models = [net() for _ in range(16)]
    bystander, images = net(), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = bystander(images)

    def work(model):
        with torch.no_grad():
            seen = [bystander(images) for _ in range(10)]
        return len(AttackView(model).report.folded), all(torch.equal(s, expected) for s in seen)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(work, models)) == {(1, True)}
    assert nn.Linear(2, 2)(torch.zeros(2)).shape == (2,)


def test_an_attack_is_shared():
    model, images, labels = net(), torch.rand(4, 3, 8, 8), torch.arange(4)
    attack = PGD(eps=0.1, step_size=0.03, steps=3, random_start=False)
    expected = attack(model, images, labels)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: attack(model, images, labels), range(12)))
    assert all(torch.equal(adversarial, expected) for adversarial in found)
    assert torch.equal(copy.deepcopy(attack)(model, images, labels), expected)


def test_torchs_settings_are_as_before():
    """Attacks of both kinds of arithmetic, which torch has one setting for."""
    place = torch.backends.mkldnn.matmul
    before, seen = place.fp32_precision, {"fp32": set(), "tf32": set()}

    def work(number):
        precision = ("fp32", "tf32")[number % 2]

        def loss(logits, labels):
            seen[precision].add(place.fp32_precision)
            return nn.functional.cross_entropy(logits, labels, reduction="none")

        PGD(steps=3, loss=loss, precision=precision)(net(), torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(16)))
    assert seen == {"fp32": {"ieee"}, "tf32": {"tf32"}}
    assert place.fp32_precision == before


def test_another_thread_may_be_importing_torchs_compiler(monkeypatch):
    """A module that is being imported is there already, without what is in it."""
    for name in ("torch._dynamo", "torch.distributed.fsdp"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    adversarial = PGD(steps=1)(net(), torch.rand(4, 3, 8, 8), torch.arange(4))
    assert adversarial.shape == (4, 3, 8, 8)
