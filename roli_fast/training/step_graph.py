"""The forward and backward pass of a training step, as a CUDA graph."""

import contextlib
import functools
import pickle
import random
from collections.abc import Iterator, Sequence

import numpy
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ..engine import GraphRunner
from ..engine.buffers import buffers_kept
from ..engine.graphs import Function
from ..engine.modes import device_of
from ..engine.structure import Structure

# How far a replay's gradients may be from the eager ones, relative to their length. In half precision, other
# kernels for the same sums move them by some percent; those of another batch are as far as they are long.
_NEAR = 0.2

# Where torch keeps the hooks of modules and parameters that a pass calls.
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_post_accumulate_grad_hooks",
)


def step_graph(model: nn.Module, passes: Function) -> GraphRunner:
    """Runs a forward and backward pass of the model in train mode, on a GPU as a CUDA graph from the second
    batch of a size on.

    passes: returns a loss (), a tensor (N,), and the gradients. What the runner returns is lent until its
        next call.
    """
    return GraphRunner(
        passes,
        reads=lambda: (*model.parameters(), *model.buffers()),
        what="the training step",
        obstacle=_obstacle(model),
        lends=True,
        undone=functools.partial(undone, model),
        differ=differ,
    )


def _obstacle(model: nn.Module) -> str | None:
    """Why a graph of the model's passes could go wrong; None if it could not."""
    if len({tensor.device for tensor in (*model.parameters(), *model.buffers())}) > 1:
        return "the model is on several devices"
    for kind, owners in (("module", model.named_modules()), ("parameter", model.named_parameters())):
        for name, owner in owners:
            if any(getattr(owner, hooks, None) for hooks in _HOOKS):
                return f"{kind} {name!r} has hooks, which a graph does not call"
    return None


@contextlib.contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Afterwards the model's buffers and all random generators are as they were, so that training goes on as
    if nothing had been recorded.

    Raises RuntimeError for what a graph would not do anew in each step: draw random numbers on the host, and
    put something else in the place of what the model holds.
    """
    device, structure = device_of(model), Structure(model)
    of_python, of_numpy, host = random.getstate(), numpy.random.get_state(), _host_randomness(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), buffers_kept(model.modules()):
        try:
            yield
            if _host_randomness(device) != host:
                raise RuntimeError("the model draws random numbers on the host")
            if not structure.is_that_of(model):
                raise RuntimeError(f"the model changes {structure.difference(Structure(model))} in each pass")
        finally:
            random.setstate(of_python)
            numpy.random.set_state(of_numpy)


def _host_randomness(device: torch.device) -> tuple[object, ...]:
    """The states of the random generators that a graph on this device does not draw from."""
    of_torch = b"" if device.type == "cpu" else torch.get_rng_state().numpy().tobytes()
    return random.getstate(), pickle.dumps(numpy.random.get_state()), of_torch


def differ(replayed: Sequence[Tensor], outputs: Sequence[Tensor]) -> str | None:
    """Says how a replayed pass differs from the eager one; None if they do not."""
    (loss, _, *gradients), (expected_loss, _, *expected) = replayed, outputs
    for what, got, wanted in (("loss", [loss], [expected_loss]), ("gradients", gradients, expected)):
        # What overflows float16, whose loss is scaled until it does not, overflows in both.
        got, wanted = ([t.nan_to_num(0, 0, 0) for t in tensors] for tensors in (got, wanted))
        apart = get_total_norm([a - b for a, b in zip(got, wanted, strict=True)])
        if apart > _NEAR * get_total_norm(wanted):
            return f"the {what} of a replay differ from the eager ones"
    return None
