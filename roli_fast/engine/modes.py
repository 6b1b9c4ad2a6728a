"""How a model is asked without being changed."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def eval_mode(model: nn.Module | Callable) -> Iterator[None]:
    """The model in eval mode; afterwards every module is in the mode in which it was."""
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """Autograd on, also for callers under no_grad or inference_mode, and no autocast of the caller's."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device_type in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


@torch.no_grad()
def class_logits(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The model's own logits (N, classes) for these images, in eval mode; the model is left as it was.

    Raises ValueError where the output is anything else.
    """
    with eval_mode(model):
        logits = model(images)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    else:
        got = "" if logits.is_floating_point() else f"of dtype {logits.dtype}"
    if got:
        raise ValueError(
            f"model: its output for {len(images)} images is {got}, accepted: float logits (N, classes)"
        )
    return logits
