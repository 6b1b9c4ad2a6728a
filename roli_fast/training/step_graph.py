"""The forward and backward pass of a training step, as a CUDA graph."""

import functools
import pickle
import random
from collections.abc import Hashable, Sequence

import numpy
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ..engine import GraphRunner
from ..engine.buffers import Buffers
from ..engine.graphs import Function, Snapshot
from ..engine.modes import device_of
from ..engine.structure import Structure, StructureWatch

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
    watch = StructureWatch(model)

    def depends() -> Hashable:
        modes = tuple(module.training for module in model.modules())
        return watch(), modes, tuple(parameter.requires_grad for parameter in model.parameters())

    return GraphRunner(
        passes,
        reads=lambda: (*model.parameters(), *model.buffers()),
        depends=depends,
        what="the training step",
        obstacle=functools.partial(obstacle, model),
        lends=True,
        snapshot=functools.partial(BeforeStep, model),
        differ=differ,
    )


def obstacle(model: nn.Module) -> str | None:
    """Why a graph of the model's passes could go wrong; None if it could not."""
    if len({tensor.device for tensor in (*model.parameters(), *model.buffers())}) > 1:
        return "the model is on several devices"
    for kind, owners in (("module", model.named_modules()), ("parameter", model.named_parameters())):
        for name, owner in owners:
            if any(getattr(owner, hooks, None) for hooks in _HOOKS):
                return f"{kind} {name!r} has hooks, which a graph does not call"
    structure = Structure(model)
    if (generator := structure.generator) is not None:
        return f"the model holds a random generator, {generator!r}, from which a graph does not draw"
    return structure.obstacle


class BeforeStep(Snapshot):
    """What a pass of the model changes: buffers, other tensors that no optimiser moves, and the states of all
    random generators. Put back, training goes on as if there had been no pass."""

    def __init__(self, model: nn.Module):
        self._model, self._device, self._structure = model, device_of(model), Structure(model)
        frozen = (parameter for parameter in model.parameters() if not parameter.requires_grad)
        self._tensors = Buffers(model.modules(), (*frozen, *self._structure.loose))
        self._of_python, self._of_numpy = random.getstate(), numpy.random.get_state()
        self._of_torch = torch.get_rng_state()
        on_gpu = self._device.type == "cuda"
        self._of_device = torch.cuda.get_rng_state(self._device) if on_gpu else None

    def put_back(self) -> None:
        self._tensors.put_back()
        random.setstate(self._of_python)
        numpy.random.set_state(self._of_numpy)
        torch.set_rng_state(self._of_torch)
        if self._of_device is not None:
            torch.cuda.set_rng_state(self._of_device, self._device)

    def check(self) -> None:
        """Raises RuntimeError for what a graph would not do anew in each step: draw random numbers on the
        host, and put something else in the place of what the model holds."""
        if self._has_drawn_on_the_host():
            raise RuntimeError("the model draws random numbers on the host")
        if not self._structure.is_that_of(self._model):
            changed = self._structure.difference(Structure(self._model))
            raise RuntimeError(f"the model changes {changed} in each pass")

    def _has_drawn_on_the_host(self) -> bool:
        """From a random generator from which a graph on this device does not draw."""
        by_python = random.getstate() != self._of_python
        by_numpy = pickle.dumps(numpy.random.get_state()) != pickle.dumps(self._of_numpy)
        by_torch = self._device.type != "cpu" and not torch.equal(torch.get_rng_state(), self._of_torch)
        return by_python or by_numpy or by_torch


def differ(replayed: Sequence[Tensor], outputs: Sequence[Tensor]) -> str | None:
    """Says how a replayed pass differs from the eager one; None if they do not."""
    (loss, _, *gradients), (expected_loss, _, *expected) = replayed, outputs
    for what, got, wanted in (("loss", [loss], [expected_loss]), ("gradients", gradients, expected)):
        if any(a.shape != b.shape for a, b in zip(got, wanted, strict=True)):
            return f"the {what} of a replay are of other parts of the model"
        # What overflows float16, whose loss is scaled until it does not, overflows in both.
        got, wanted = ([t.nan_to_num(0, 0, 0) for t in tensors] for tensors in (got, wanted))
        apart = get_total_norm([a - b for a, b in zip(got, wanted, strict=True)])
        if apart > _NEAR * get_total_norm(wanted):
            return f"the {what} of a replay differ from the eager ones"
    return None
