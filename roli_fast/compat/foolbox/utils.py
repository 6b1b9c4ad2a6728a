"""foolbox's measure of a model."""

from typing import Any, NoReturn

from ...engine.outputs import select
from ..core import no_such
from .criteria import raw


def accuracy(fmodel: Any, inputs: Any, labels: Any) -> float:
    """The share of inputs that the model, in its present mode, classifies as their labels say (0 to 1)."""
    logits = select(raw(fmodel(inputs)), None)
    return (logits.argmax(-1) == raw(labels)).float().mean().item()


__all__ = ["accuracy"]


def __getattr__(name: str) -> NoReturn:
    no_such("foolbox.utils", name, __all__)
