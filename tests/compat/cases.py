"""Calls as users of the libraries write them: the same code runs with the library and with its face."""

import importlib
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import nn

LIBRARIES = ("torchattacks", "foolbox", "art", "cleverhans")


def original(library: str) -> Any:
    """What is imported of the library itself; skips where it is not installed."""
    if library == "art":
        pytest.importorskip("art.estimators.classification", exc_type=ImportError)
        return importlib.import_module("art.attacks.evasion")
    if library == "cleverhans":
        names = ("fast_gradient_method", "projected_gradient_descent")
        modules = [
            pytest.importorskip(f"cleverhans.torch.attacks.{name}", exc_type=ImportError) for name in names
        ]
        return SimpleNamespace(
            __name__="cleverhans", **{n: getattr(m, n) for n, m in zip(names, modules, strict=True)}
        )
    return pytest.importorskip(library, exc_type=ImportError)


def face(library: str) -> Any:
    return importlib.import_module(f"roli_fast.compat.{library}")


def torchattacks(kind: str, norm: str = "linf", targeted: bool = False, **settings: Any) -> Callable:
    def call(library, s):
        sizes = {"eps": getattr(s, norm)}
        if kind not in ("FGSM",):
            sizes["alpha"] = sizes["eps"] / 4
        attack = getattr(library, kind)(s.model, **sizes, **settings)
        if targeted:
            attack.set_mode_targeted_least_likely(quiet=True)
        return attack(s.images, s.labels)

    return call


def foolbox(kind: str, norm: str, targeted: bool = False, **settings: Any) -> Callable:
    def call(library, s):
        attack = getattr(library.attacks, kind)(**settings)
        model = library.PyTorchModel(s.model, bounds=(0, 1), device="cpu")
        criterion = library.TargetedMisclassification((s.labels + 1) % 10) if targeted else s.labels
        return attack(model, s.images, criterion, epsilons=getattr(s, norm))[1]

    return call


class StandIn:
    """What an attack uses of ART's classifier, where ART is not installed."""

    def __init__(self, model, loss, input_shape, nb_classes, clip_values=None):
        self.model, self.loss, self.input_shape, self.nb_classes = model, loss, input_shape, nb_classes
        self.clip_values, self.channels_first, self.device = clip_values, True, torch.device("cpu")
        self.preprocessing_operations: list[Any] = []
        self.postprocessing_defences = None

    def predict(self, x):
        with torch.no_grad():
            return self.model(torch.from_numpy(x)).numpy()


# By its name an attack knows the estimator.
StandIn.__module__, StandIn.__name__ = "art.estimators.classification.pytorch", "PyTorchClassifier"


def estimator(model: nn.Module, shape: tuple[int, ...], **options: Any) -> Any:
    given = {"clip_values": (0.0, 1.0), **options}
    try:
        from art.estimators.classification import PyTorchClassifier
    except ImportError:
        return StandIn(model, nn.CrossEntropyLoss(), shape, 10, **given)
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 10, device_type="cpu", **given)


def art(kind: str, norm: str = "linf", targeted: bool = False, **settings: Any) -> Callable:
    def call(library, s):
        options = dict(settings) if kind == "FastGradientMethod" else {"verbose": False, **settings}
        options["batch_size"] = 128
        if kind != "BasicIterativeMethod":
            options["norm"] = {"linf": numpy.inf, "l2": 2, "l1": 1}[norm]
        eps = getattr(s, norm)
        attack = getattr(library, kind)(
            estimator(s.model, tuple(s.images.shape[1:])),
            eps=eps,
            eps_step=eps / 4,
            targeted=targeted,
            **options,
        )
        labels = (s.labels + 1) % 10 if targeted else s.labels
        return torch.from_numpy(attack.generate(s.images.numpy(), labels.numpy()))

    return call


def cleverhans(kind: str, norm: str = "linf", targeted: bool = False, **settings: Any) -> Callable:
    def call(library, s):
        eps, order = getattr(s, norm), {"linf": math.inf, "l2": 2, "l1": 1}[norm]
        sizes = {"eps": eps, "norm": order, "clip_min": 0.0, "clip_max": 1.0, **settings}
        if kind == "projected_gradient_descent":
            sizes["eps_iter"] = eps / 4
        labels = (s.labels + 1) % 10 if targeted else s.labels
        return getattr(library, kind)(s.model, s.images, y=labels, targeted=targeted, **sizes).detach()

    return call


class Coin(nn.Module):
    """Grey images (N, ...) of 0.5 are of class 0, and half of their random starts are not: the first pixel
    decides, and no step moves it, as the gradient is the last pixel's alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = x.flatten(1)
        won = (pixels[:, :1] - 0.5).sign() + 1e-3 * (pixels[:, -1:] - 0.5)
        return torch.cat([torch.zeros_like(won), won, torch.full_like(won, -9.0).expand(-1, 8)], dim=1)


# --- without a random start --------------------------------------------------------------------------------

_FROM_THE_IMAGE = {"random_start": False}
ONE_STEP = {
    "torchattacks FGSM": torchattacks("FGSM"),
    "foolbox FGSM": foolbox("FGSM", "linf"),
    "foolbox FGM": foolbox("FGM", "l2"),
    "foolbox L1FastGradientAttack": foolbox("L1FastGradientAttack", "l1"),
    "art FGM": art("FastGradientMethod"),
    "art FGM L2": art("FastGradientMethod", "l2"),
    "art FGM L1": art("FastGradientMethod", "l1"),
    "cleverhans FGM": cleverhans("fast_gradient_method"),
    "cleverhans FGM L2": cleverhans("fast_gradient_method", "l2"),
    "cleverhans FGM L1": cleverhans("fast_gradient_method", "l1"),
}
SEVERAL_STEPS = {
    "torchattacks BIM": torchattacks("BIM"),
    "torchattacks BIM targeted": torchattacks("BIM", targeted=True),
    "torchattacks PGD": torchattacks("PGD", **_FROM_THE_IMAGE),
    # What it adds to the gradient's length counts where that is 1e-5, as on trades_mnist.
    "torchattacks PGDL2": torchattacks("PGDL2", "l2", eps_for_division=0, **_FROM_THE_IMAGE),
    "torchattacks MIFGSM": torchattacks("MIFGSM"),
    "torchattacks EOTPGD": torchattacks("EOTPGD", **_FROM_THE_IMAGE),
    "foolbox LinfPGD": foolbox("LinfPGD", "linf", steps=10, **_FROM_THE_IMAGE),
    "foolbox LinfPGD targeted": foolbox("LinfPGD", "linf", True, steps=10, **_FROM_THE_IMAGE),
    "foolbox L2PGD": foolbox("L2PGD", "l2", steps=10, **_FROM_THE_IMAGE),
    "foolbox L1PGD": foolbox("L1PGD", "l1", steps=10, **_FROM_THE_IMAGE),
    "foolbox LinfBIM": foolbox("LinfBasicIterativeAttack", "linf"),
    "foolbox L2BIM": foolbox("L2BasicIterativeAttack", "l2"),
    "foolbox L1BIM": foolbox("L1BasicIterativeAttack", "l1"),
    "foolbox MIFGSM": foolbox("MIFGSM", "linf"),
    "foolbox L2MIFGSM": foolbox("L2MomentumIterativeFastGradientMethod", "l2"),
    "foolbox L1MIFGSM": foolbox("L1MomentumIterativeFastGradientMethod", "l1"),
    "art PGD": art("ProjectedGradientDescentPyTorch", max_iter=10),
    "art PGD targeted": art("ProjectedGradientDescent", targeted=True, max_iter=10),
    "art PGD L2": art("ProjectedGradientDescent", "l2", max_iter=10),
    "art PGD L1": art("ProjectedGradientDescent", "l1", max_iter=10),
    "art BIM": art("BasicIterativeMethod", max_iter=10),
    "art MIM": art("MomentumIterativeMethod", max_iter=10),
    "art MIM L2": art("MomentumIterativeMethod", "l2", max_iter=10),
    "cleverhans PGD": cleverhans("projected_gradient_descent", nb_iter=10, rand_init=False),
    "cleverhans PGD targeted": cleverhans(
        "projected_gradient_descent", targeted=True, nb_iter=10, rand_init=False
    ),
    "cleverhans PGD L2": cleverhans("projected_gradient_descent", "l2", nb_iter=10, rand_init=False),
}

# --- from a random start -----------------------------------------------------------------------------------

RANDOM = {
    "torchattacks PGD": torchattacks("PGD"),
    "torchattacks PGDL2": torchattacks("PGDL2", "l2"),
    "torchattacks FFGSM": torchattacks("FFGSM"),
    "torchattacks RFGSM": torchattacks("RFGSM"),
    "torchattacks TPGD": torchattacks("TPGD"),
    "foolbox LinfPGD": foolbox("LinfPGD", "linf", steps=10),
    "foolbox L2PGD": foolbox("L2PGD", "l2", steps=10),
    "foolbox L1PGD": foolbox("L1PGD", "l1", steps=10),
    "art PGD": art("ProjectedGradientDescentPyTorch", max_iter=10, num_random_init=1),
    "art PGD L2": art("ProjectedGradientDescentPyTorch", "l2", max_iter=10, num_random_init=1),
    "cleverhans PGD": cleverhans("projected_gradient_descent", nb_iter=10),
    "cleverhans PGD L2": cleverhans("projected_gradient_descent", "l2", nb_iter=10),
}


def both(case: str, calls: dict[str, Callable]) -> tuple[Callable, Callable]:
    """The call with the library itself, and with its face."""
    library = case.split()[0]
    theirs, ours = original(library), face(library)
    return lambda s: calls[case](theirs, s), lambda s: calls[case](ours, s)
