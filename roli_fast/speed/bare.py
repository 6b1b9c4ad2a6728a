"""A model's own forward and backward passes: what of an attack's time is not the attack's."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from ..attacks.losses import get_loss
from ..engine import AttackView, GraphRunner, InputGradient
from .subjects import Batches

# On a GPU an attack of ours is recorded in its second call of a shape, and at full speed from the third on.
CALLS_TO_SPEED = 3


def model_alone(
    view: AttackView, batches: Batches, steps: int, precision: str
) -> list[Callable[[], tuple[Tensor, ...]]]:
    """As many forward and backward passes as an attack of so many steps has, on what it computes with, for
    each of the batches; at full speed. precision: of the view."""
    gradient = InputGradient(view, get_loss("ce"), precision=precision)

    def passes(x: Tensor, labels: Tensor) -> tuple[Any, ...]:
        for _ in range(steps):
            found = gradient(x, labels)
        return found

    run = GraphRunner(passes)  # a CUDA graph, as the attack is one
    inputs = [(view.prepare(images), labels) for images, labels in batches]
    for _, (x, labels) in itertools.product(range(CALLS_TO_SPEED), inputs):
        run(x, labels)
    return [partial(run, *of_a_batch) for of_a_batch in inputs]
