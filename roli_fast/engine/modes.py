"""Calling a model without changing it."""

import contextlib
import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..checks import first_line, refuse
from .outputs import Output, select

Model = Callable[[Tensor], Any]


def unwrap(model: Model) -> Model:
    """The module inside DataParallel, DistributedDataParallel and torch.compile's wrapper.

    Raises ValueError for a model whose parameters are sharded, TypeError for what is no model.
    """
    if not callable(model):
        raise TypeError(f"model: got a {type(model).__name__}, accepted: a module or another callable")
    compiled = _classes("torch._dynamo", "OptimizedModule")
    while isinstance(model, nn.Module):
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(model, compiled):
            model = cast(nn.Module, model._orig_mod)
        else:
            break
    if isinstance(model, nn.Module):
        _refuse_shards(model)
    return model


def _classes(place: str, *names: str) -> tuple[type, ...]:
    """Classes of a module that is slow to import: without it no object has them, nor while another thread
    imports it."""
    found = (getattr(sys.modules.get(place), name, None) for name in names)
    return tuple(kind for kind in found if kind is not None)


def _refuse_shards(model: nn.Module) -> None:
    sharded = _classes("torch.distributed.fsdp", "FSDPModule", "FullyShardedDataParallel")
    for name, module in model.named_modules():
        if isinstance(module, sharded):
            raise ValueError(
                f"model: {name or 'it'} is sharded by FSDP, accepted: a model whose parameters are whole"
            )


@contextlib.contextmanager
def eval_mode(model: nn.Module | Callable) -> Iterator[None]:
    """Puts the model into eval mode, and every module back into its own when the last thread that has it here
    leaves. Inside, DistributedDataParallel does not synchronise, so that no process waits for others."""
    owner = getattr(model, "__self__", model)  # of a bound method
    modules = [m for m in owner.modules() if _has_mode(m)] if isinstance(owner, nn.Module) else []
    with _changing_modes:
        trained = _hold(modules)
        try:
            _set_modes(modules, [False] * len(modules))
        except BaseException:
            _release(modules, trained)
            raise
    try:
        yield
    finally:
        with _changing_modes:
            _release(modules, trained)


_changing_modes = threading.RLock()  # a module's own ``train`` may do anything


class _Held:
    """What a module that is held in eval mode goes back to.

    spreads: whether it is a DistributedDataParallel that broadcasts its buffers.
    thread: the only one that holds it; None once there are several.
    """

    __slots__ = ("mode", "spreads", "thread", "users")

    def __init__(self, mode: bool, thread: int):
        self.mode, self.spreads, self.users = mode, False, 1
        self.thread: int | None = thread


# By id, while held: a thread may hold a model and another one a part of it.
_held: dict[int, _Held] = {}


def _hold(modules: Sequence[nn.Module]) -> set[int]:
    """Returns the ids of modules that this thread has set to train mode where it held them already."""
    thread, trained = threading.get_ident(), set()
    for module in modules:
        held = _held.get(id(module))
        if held is None:
            held = _held[id(module)] = _Held(module.training, thread)
            if isinstance(module, nn.parallel.DistributedDataParallel) and module.broadcast_buffers:
                # It would broadcast its buffers, but processes call their models at different times.
                held.spreads, module.broadcast_buffers = True, False
            continue
        held.users += 1
        if held.thread != thread:
            held.thread = None
        if module.training and held.thread is None:
            held.mode = True  # somebody has set it meanwhile, for afterwards
        elif module.training:
            trained.add(id(module))
    return trained


def _release(modules: Sequence[nn.Module], trained: set[int]) -> None:
    modes = []
    for module in modules:
        held = _held[id(module)]
        held.users -= 1
        if held.users:
            modes.append(held.thread is not None and id(module) in trained)
            continue
        del _held[id(module)]
        modes.append(held.mode)
        if held.spreads:
            assert isinstance(module, nn.parallel.DistributedDataParallel)
            module.broadcast_buffers = True
    _set_modes(modules, modes)


def _has_mode(module: nn.Module) -> bool:
    """Not what torch.jit.freeze returns: it is in eval mode for good."""
    return hasattr(module, "training")


def _set_modes(modules: Sequence[nn.Module], modes: Sequence[bool]) -> None:
    """modules: a module before those inside it, whose modes its own ``train`` may set, too."""
    for module, mode in zip(modules, modes, strict=True):
        if module.training != mode and acts_on_mode(module):
            module.train(mode)
        if module.training != mode:
            module.training = mode


def acts_on_mode(module: nn.Module) -> bool:
    """Whether the module's ``train`` does more than to set modes, such as to drop what was computed from its
    weights."""
    train = type(module).train
    passes_on = train in (nn.Module.train, nn.parallel.DistributedDataParallel.train)
    return not passes_on and _takes_mode(train)


@functools.cache
def _takes_mode(train: Callable[..., Any]) -> bool:
    """Whether it is a ``train`` that sets a mode: some modules call their training loop so."""
    return "mode" in inspect.signature(train).parameters


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """Switches autograd on, even under no_grad or inference_mode, and leaves the caller's autocast."""
    with torch.inference_mode(False), torch.enable_grad(), _outside_autocast():
        yield


@contextlib.contextmanager
def _outside_autocast() -> Iterator[None]:
    """Not by autocast(enabled=False), which is one more around whatever casts inside: torch keeps what
    weights were cast to until the outermost one ends, and takes it for them after they have changed."""
    device_types = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    depth = torch.autocast_increment_nesting() - 1
    for _ in range(depth + 1):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()  # its casts may be to another type
    for kind in device_types:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        for kind in device_types:
            torch.set_autocast_enabled(kind, True)
        for _ in range(depth):
            torch.autocast_increment_nesting()
        torch.clear_autocast_cache()  # and of weights that have changed


@torch.no_grad()
def own_output(model: Model, images: Tensor, output: Output = None) -> Tensor:
    """The model's own output (N, ...) for these images, in eval mode; the model is left as it was.

    Raises ValueError where it is no float tensor with one row per image, and where the model fails on images
    of another dtype than its own.
    """
    with eval_mode(model):
        try:
            found = select(model(images), output)
        except RuntimeError as error:
            _refuse_other_dtype(model, images, error)
            raise
    if found.dim() == 0 or len(found) != len(images) or not found.is_floating_point():
        raise ValueError(
            f"model: its output for {len(images)} images is {_description(found)}, accepted: floats (N, ...)"
        )
    return found


def few_or_all(images: Tensor, count: int, ask: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the first ``count`` images and what ``ask`` makes of them; all images, if it fails on so few: a
    model may be a function of this batch alone, such as one with a mask for each image."""
    few = images[:count]
    try:
        return few, ask(few)
    # Where one image broadcasts, an output of another length is refused; an exported module asserts its size.
    except (RuntimeError, ValueError, AssertionError) as error:
        if len(few) == len(images) or isinstance(error, torch.OutOfMemoryError):
            raise
    return images, ask(images)


def _refuse_other_dtype(model: Model, images: Tensor, error: RuntimeError) -> None:
    own = float_dtype(model) or images.dtype
    if own != images.dtype and not isinstance(error, torch.OutOfMemoryError):
        accepted = f"images of {own}, or model.to({images.dtype})"
        refuse("images", f"{images.dtype} for a model of {own} ({first_line(error)})", accepted)


def class_logits(model: Model, images: Tensor, output: Output = None) -> Tensor:
    """The model's own logits (N, classes) for these images, in eval mode; the model is left as it was.

    Raises ValueError where the output is anything else.
    """
    logits = own_output(model, images, output)
    if logits.dim() != 2:
        raise ValueError(
            f"model: its output for {len(images)} images is {_description(logits)}, "
            "accepted: float logits (N, classes)"
        )
    return logits


def _description(output: Tensor) -> str:
    return f"of dtype {output.dtype} and shape {tuple(output.shape)}"


def float_dtype(model: Model) -> torch.dtype | None:
    """Of the first float parameter; None where there is none."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next((p.dtype for p in parameters if p.is_floating_point()), None)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are; the CPU where it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def beside(model: Model, tensor: Tensor) -> Tensor:
    """The tensor on the model's device, where it is a module with parameters."""
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return tensor if parameter is None or not isinstance(tensor, Tensor) else tensor.to(parameter.device)
