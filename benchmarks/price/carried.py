"""Perturbations carried from epoch to epoch (ATTA, Zheng et al., Efficient Adversarial Training with
Transferable Adversarial Examples, CVPR 2020), for images that nothing augments.

An experiment, which roli_fast does not have: docs/price.md says why.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from roli_fast.attacks import PGD
from roli_fast.attacks.ascent import Perturbed
from roli_fast.attacks.inputs import to_state
from roli_fast.data import StoredImages
from roli_fast.training import Recipe, stage

RESET = 10  # epochs, after which all begin anew from noise, as the paper does
_LEVELS = 127  # of int8, from 0 to eps


class _FromWhereItWas(PGD):
    """carried: (N, C, H, W) int8, of the whole set, in units of eps / 127."""

    def __init__(self, carried: Tensor, *sizes: Any, **options: Any):
        self.carried = carried
        super().__init__(*sizes, **options)

    def start(self, clean: Tensor, eps: float | Tensor, seed: Tensor, index: Tensor) -> Tensor:
        return (to_state(clean) + self.carried[index].float() * (eps / _LEVELS)).clamp(*self.bounds)


class CarriedAttack:
    """In place of :class:`roli_fast.training.attack.TrainingAttack`; Linf alone."""

    def __init__(self, model: nn.Module, recipe: Recipe, precision: str, *, images: StoredImages):
        device = next(model.parameters()).device
        self._model, self._eps = model, recipe.eps
        self._steps = len(images) // recipe.batch_size  # of an epoch
        self._random = torch.Generator(device).manual_seed(recipe.seed)
        self._carried = torch.zeros_like(images.images, dtype=torch.int8, device=device)
        sizes = recipe.norm, recipe.eps, recipe.attack_step, recipe.steps
        self._attack = _FromWhereItWas(self._carried, *sizes, precision=precision)

    def grow(self, epoch: float) -> None:
        """Begins anew where it is time to; epoch: in epochs since training began."""
        if round(epoch * self._steps) % (RESET * self._steps) == 0:
            self._carried.random_(-_LEVELS, _LEVELS + 1, generator=self._random)

    def __call__(self, images: Tensor, labels: Tensor, index: Tensor, key: Tensor) -> Perturbed:
        found = self._attack.perturb(self._model, images, labels, index=index, key=key, checked=True)
        levels = (found.adversarial - to_state(images)) * (_LEVELS / self._eps)
        self._carried[index] = levels.round().clamp(-_LEVELS, _LEVELS).to(torch.int8)
        return found


@contextlib.contextmanager
def carrying(images: StoredImages) -> Iterator[None]:
    """Inside, :func:`roli_fast.training.train` on these images carries their perturbations over."""
    with mock.patch.object(stage, "TrainingAttack", functools.partial(CarriedAttack, images=images)):
        yield
