"""A model's own forward and backward passes, which show how much of an attack's time is not the attack's
own."""

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
    """Calls, one for each of the batches, that run as many forward and backward passes as an attack of so
    many steps, on the same copy of the model. They have been called before, so that they run at full speed.

    precision: that of the view.
    """
    gradient = InputGradient(view, get_loss("ce"), precision=precision)

    def passes(x: Tensor, labels: Tensor) -> tuple[Any, ...]:
        with gradient.repeated() as once:
            for _ in range(steps):
                found = once(x, labels)
        return found

    run = GraphRunner(passes)  # a CUDA graph, as the attack is one
    inputs = [(view.prepare(images), labels) for images, labels in batches]
    for _, (x, labels) in itertools.product(range(CALLS_TO_SPEED), inputs):
        run(x, labels)
    return [partial(run, *of_a_batch) for of_a_batch in inputs]
