"""PGD of the libraries that people use today, each called as its own documentation says."""

import dataclasses
import importlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Maps images (N, C, H, W) in [0, 1] and labels (N,) to adversarial images.
Attack = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a PGD from a random start. norm: "linf", "l2" or "l1". eps and step_size are in pixel
    units, in this norm."""

    norm: str
    eps: float
    step_size: float
    steps: int


# Builds the attack on a model; the images are a batch like those to come.
Build = Callable[[nn.Module, Settings, Tensor], Attack]


@dataclasses.dataclass(frozen=True)
class Peer:
    """module: what has to be importable.
    package: what pip calls it.
    """

    module: str
    package: str
    build: Build


def _torchattacks(model: nn.Module, settings: Settings, images: Tensor) -> Attack:
    import torchattacks

    kind = _of_norm({"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}, settings)
    return kind(model, eps=settings.eps, alpha=settings.step_size, steps=settings.steps)


def _foolbox(model: nn.Module, settings: Settings, images: Tensor) -> Attack:
    import foolbox

    in_norms = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD, "l1": foolbox.attacks.L1PGD}
    kind = _of_norm(in_norms, settings)
    attack = kind(abs_stepsize=settings.step_size, steps=settings.steps, random_start=True)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    return lambda images, labels: attack(wrapped, images, labels, epsilons=settings.eps)[1]


def _art(model: nn.Module, settings: Settings, images: Tensor) -> Attack:
    """ART takes and returns numpy arrays, so that the conversions to and from numpy are part of its time."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    with torch.no_grad():
        classes = model(images[:1]).shape[1]
    classifier = PyTorchClassifier(
        _FloatLogits(model),
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if images.is_cuda else "cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier,
        norm=_order(settings),
        eps=settings.eps,
        eps_step=settings.step_size,
        max_iter=settings.steps,
        num_random_init=1,
        batch_size=len(images),
        verbose=False,
    )

    def run(images: Tensor, labels: Tensor) -> Tensor:
        adversarial = attack.generate(images.cpu().numpy(), labels.cpu().numpy())
        return torch.from_numpy(adversarial).to(images.device)

    return run


class _FloatLogits(nn.Module):
    """Makes the logits of a model under autocast float32: ART wants them as numpy arrays, which have no
    bf16."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).float()


def _cleverhans(model: nn.Module, settings: Settings, images: Tensor) -> Attack:
    """With clip_min, cleverhans asks numpy about tensors, which fails on a GPU (cleverhans#1248). There, a
    clamp at the end keeps images in the box."""
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    sizes: tuple[Any, ...] = (settings.eps, settings.step_size, settings.steps, _order(settings))
    box = {} if images.is_cuda else {"clip_min": 0.0, "clip_max": 1.0}

    def run(images: Tensor, labels: Tensor) -> Tensor:
        adversarial = projected_gradient_descent(model, images, *sizes, **box, y=labels, sanity_checks=False)
        return adversarial.detach().clamp(0, 1)

    return run


def _order(settings: Settings) -> float:
    return {"linf": math.inf, "l2": 2, "l1": 1}[settings.norm]


def _of_norm(kinds: dict[str, Any], settings: Settings) -> Any:
    if settings.norm not in kinds:
        raise ValueError(f"no PGD in {settings.norm}")
    return kinds[settings.norm]


PEERS = {
    "torchattacks": Peer("torchattacks", "torchattacks", _torchattacks),
    "foolbox": Peer("foolbox", "foolbox", _foolbox),
    "art": Peer("art", "adversarial-robustness-toolbox", _art),
    "cleverhans": Peer("cleverhans", "cleverhans", _cleverhans),
}


def find(names: Iterable[str]) -> tuple[dict[str, Build], dict[str, str]]:
    """The peers that are installed, and the reasons why the others are missing."""
    found, missing = {}, {}
    for name in names:
        peer = PEERS[name]
        try:
            importlib.import_module(peer.module)
        except ModuleNotFoundError as error:
            absent = error.name == peer.module.partition(".")[0]
            missing[name] = f"not installed (pip install {peer.package})" if absent else str(error)
        except Exception as error:  # whatever an old package runs into on a new Python
            missing[name] = f"{type(error).__name__}: {error}"
        else:
            found[name] = peer.build
    return found, missing
