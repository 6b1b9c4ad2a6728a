"""A recipe refuses what does not fit before anything begins, and the paper's settings are the paper's."""

import dataclasses
import json
from fractions import Fraction

import numpy
import pytest

from roli_fast.training import Recipe, Rounds, paper_settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs: got 0"),
        ({"epochs": None}, "epochs: got None, accepted: an integer >= 1"),
        ({"lr": 0}, "lr: got 0, accepted: a number above 0"),
        ({"lr": -1}, "lr: got -1, accepted: a number above 0"),
        ({"lr": None}, "lr: got a NoneType, accepted: a number above 0"),
        ({"momentum": -0.1}, "momentum: got -0.1, accepted: a number >= 0"),
        ({"lr": float("nan")}, "lr: got nan"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"eps": -1}, "eps: got -1"),
        ({"attack": "fgsm"}, "attack: got 'fgsm', accepted: pgd, nfgsm, none"),
        ({"loss": "mse"}, "loss: got 'mse', accepted: ce, trades"),
        ({"loss": "trades", "attack": "nfgsm"}, "loss: got 'trades' with attack='nfgsm'"),
        ({"opt": "adamz"}, "opt: got 'adamz'"),
        ({"opt": None}, "opt: got None, accepted: one of timm.optim.list_optimizers()"),
        ({"norm": "l3"}, "norm: got 'l3'"),
        ({"norm": "l2"}, "eps: got linf's default in l2, accepted: a radius in that norm"),
        ({"sched": "step"}, "sched: got 'step', accepted: cosine, none"),
        ({"precision": "fp8"}, "precision: got 'fp8'"),
        ({"amp_dtype": "half"}, "amp_dtype: got 'half'"),
        ({"attack_mode": "test"}, "attack_mode: got 'test', accepted: eval, train"),
        ({"attack_mode": "train", "precision": "bf16"}, "precision: got 'bf16' with attack_mode='train'"),
        ({"ema_decay": 1.0}, "ema_decay: got 1.0, accepted: a number >= 0 and below 1"),
        ({"ema_decay": "a"}, "ema_decay: got a str"),
        ({"warmup_epochs": 3}, "warmup_epochs: got 3, accepted: fewer than the 3 epochs"),
        ({"warmup_epochs": 0.5}, "warmup_epochs: got 0.5, accepted: an integer >= 0"),
        ({"eps_warmup_epochs": 0.5}, "eps_warmup_epochs: got 0.5, accepted: an integer >= 0"),
        ({"patience": 0}, "patience: got 0, accepted: an integer >= 1"),
        ({"clip_grad": 0}, "clip_grad: got 0, accepted: a number above 0"),
        ({"seed": 0.5}, "seed: got 0.5, accepted: an integer >= 0 and up to 9223372036854775807"),
        ({"seed": 2**63}, "seed: got 9223372036854775808"),
        ({"channels_last": "no"}, "channels_last: got 'no', accepted: True, False"),
        ({"steps": 1.5}, "steps: got 1.5"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(settings, message):
    with pytest.raises((ValueError, TypeError)) as refused:
        Recipe(**({"epochs": 3, "lr": 0.1} | settings))
    assert message in str(refused.value)


@pytest.mark.parametrize("value", [numpy.float64(0.5), numpy.float32(0.5), Fraction(1, 2)], ids=type)
def test_numbers_are_pythons_own_which_files_hold(value):
    one = numpy.int64(1)
    made = Recipe(one, value, momentum=value, seed=one, channels_last=numpy.True_)
    assert made == Recipe(1, 0.5, momentum=0.5, seed=1)
    rounds = Rounds(one, value, [value], value, one)
    assert rounds == Rounds(1, 0.5, (0.5,), 0.5, 1)
    for settings in (made, rounds):
        assert json.loads(json.dumps(dataclasses.asdict(settings)))
        assert {type(v) for v in dataclasses.astuple(settings)} <= {int, float, bool, str, tuple, type(None)}


def test_the_largest_seed():
    assert Recipe(3, 0.1, seed=2**63 - 1).seed == 2**63 - 1


@pytest.mark.parametrize(
    ("dataset", "method", "probed", "base", "epochs"),
    [
        ("cifar10", "full", True, 1e-4, 20),
        ("cifar10", "full", False, 5e-4, 20),
        ("cifar100", "linear", True, 0.1, 20),
        ("caltech256", "bias", True, 1e-5, 40),
        ("cub200", "vpt", False, 0.05, 60),
        ("stanford_dogs", "lora", False, 0.005, 40),
    ],
)
def test_the_papers_settings(dataset, method, probed, base, epochs):
    """research/roli.md: the learning rate is the base's quarter at batch 64."""
    settings = paper_settings(dataset, method, probed=probed)
    assert settings["lr"] == pytest.approx(base / 4)
    assert settings["epochs"] == epochs
    assert settings["warmup_epochs"] == 10
    assert settings["opt"] == ("momentum" if method == "linear" else "adamw")
    assert Recipe(**settings).batch_size == 64


def test_an_unknown_set_or_method_is_named():
    with pytest.raises(ValueError, match="dataset: got 'imagenet', accepted: cifar10"):
        paper_settings("imagenet", "full", probed=True)
    with pytest.raises(ValueError, match="method: got 'side', accepted: linear"):
        paper_settings("cifar10", "side", probed=True)
