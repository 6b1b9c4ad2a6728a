"""Signs that an evaluation overestimates a model's robustness, as the official AutoAttack looks for them
(Croce and Hein 2020; "flags" in its documentation)."""

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor

# By rounding alone, two calls' outputs, each divided by its length, may be this far apart.
_SAME = 1e-4
_SUMS_TO_ONE = 1e-5

# The share of all images that Square may break after the others.
_MOST_BY_SQUARE = 0.002

# How many further calls of the model look for randomness.
_CALLS = 2

# Code that runs when something is differentiated inside a forward pass.
_AUTOGRAD = {
    torch.autograd.backward.__code__,
    torch.autograd.grad.__code__,
    torch.autograd._make_grads.__code__,
}


def doubts(
    ask: Callable[[Tensor], Tensor], images: Tensor, logits: Tensor, *, random: bool
) -> tuple[str, ...]:
    """Reasons to distrust an evaluation of this model, a sentence each.

    ask: maps images to the model's own logits. logits: (N, classes), its answer for ``images``.
    random: whether its output is known to be random, so that the attacks average over calls.
    """
    found = []
    if _are_probabilities(logits):
        found.append("the model's outputs are probabilities, accepted: logits; its gradients may vanish")
    differentiates = False
    for _ in range(_CALLS):
        again, backward = _watched(ask, images)
        differentiates |= backward
        if not random and _differ(logits, again):
            found.append('the model\'s outputs are random: version="rand" averages its gradients')
            break
    if differentiates:
        found.append(
            "the model differentiates when it is asked: it may optimise itself then, and need its own attacks"
        )
    return tuple(found)


def square_finds_more(stages: Sequence[str], broken_by: Tensor) -> tuple[str, ...]:
    """A sentence if Square, which needs no gradients, broke images that had withstood the attacks that follow
    gradients: a sign that these are masked."""
    if "square" not in stages or len(stages) < 3 or len(broken_by) == 0:
        return ()
    share = (broken_by == list(stages).index("square")).double().mean().item()
    if share <= _MOST_BY_SQUARE:
        return ()
    return (
        f"square broke {share:.1%} of the images, which the attacks by gradients had not: gradients may be "
        "masked, and the model less robust than this says; more queries or an adaptive attack would tell",
    )


def _are_probabilities(logits: Tensor) -> bool:
    in_range = (logits > -_SUMS_TO_ONE).all() & (logits < 1 + _SUMS_TO_ONE).all()
    return bool(in_range & ((logits.sum(dim=1) - 1).abs() < _SUMS_TO_ONE).all())


def _differ(logits: Tensor, again: Tensor) -> bool:
    def scaled(output: Tensor) -> Tensor:
        return output.double() / (output.double().norm(dim=1, keepdim=True) + 1e-10)

    classes = (logits.argmax(dim=1) != again.argmax(dim=1)).any()
    return bool(classes | ((scaled(logits) - scaled(again)).norm(dim=1) > _SAME).any())


def _watched(ask: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, bool]:
    """The output, and whether autograd's backward pass ran meanwhile."""
    ran = False

    def notice(frame: FrameType, event: str, _: Any) -> None:
        nonlocal ran
        ran |= event == "call" and frame.f_code in _AUTOGRAD

    before = sys.getprofile()
    sys.setprofile(notice)
    try:
        return ask(images), ran
    finally:
        sys.setprofile(before)
