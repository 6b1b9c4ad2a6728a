"""Training in several processes, which torchrun starts."""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from ..checks import refuse
from ..distributed import is_joined, rank, world_size
from ..engine.modes import device_of


def join(device: str | None) -> torch.device | None:
    """Under torchrun, joins the process group and returns this process' own device; otherwise None."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    if device not in (None, "cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        there = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        refuse("device", repr(device), f"{there}: each process has a device of its own")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(own)
    store, number, size = next(rendezvous("env://"))
    # torchrun's attempts share a store, in which the addresses of processes stay that have died.
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=number, world_size=size)
    return own


def leave() -> None:
    if is_joined():
        dist.destroy_process_group()


def summed(values: Tensor) -> Tensor:
    """The sum over all processes; values is overwritten by it."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def agree(decision: Any) -> Any:
    """The first process' decision, in all processes."""
    if world_size() == 1:
        return decision
    said = [decision]
    dist.broadcast_object_list(said)
    return said[0]


def by_the_first(action: Callable[[], object]) -> None:
    """Runs the action in the first process alone. If it raises, all processes do."""
    failure = None
    if rank() == 0:
        try:
            action()
        except Exception as error:  # the others must not wait for it
            failure = error
    failure = agree(failure)
    if failure is not None:
        raise failure


def share_statistics(model: nn.Module) -> None:
    """Replaces BatchNorms' running statistics by their mean over the processes."""
    if world_size() == 1:
        return
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            dist.all_reduce(buffer)
            buffer /= world_size()


def synchronize_norms(model: nn.Module) -> nn.Module:
    """The model with BatchNorms over the batches of all processes: on GPUs torch's; on the CPU, where torch
    has none, the same formula in autograd's own operations."""
    if device_of(model).type == "cuda":
        return with_torchs_norms(model)
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for name, norm in norms.items():
        if type(norm) not in _KNOWN_ON_CPU:
            refuse("sync_bn", f"True for {name}, a {type(norm).__name__} on the CPU", "torch's BatchNorms")
    for norm in norms.values():
        norm.__class__ = _SyncBatchNormOnCPU
    return model


def with_torchs_norms(model: nn.Module) -> nn.Module:
    """The model with timm's conversion to SyncBatchNorm. A second conversion would drop activations, so a
    model that an earlier stage has converted is left as it is."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if all(isinstance(norm, nn.SyncBatchNorm) for norm in norms):
        return model
    return convert_sync_batchnorm(model)


class _Summed(torch.autograd.Function):
    """The sum over all processes. Its gradient is summed too, since every process' loss depends on it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return summed(values.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return summed(gradient.clone())


class _SyncBatchNormOnCPU(nn.modules.batchnorm._BatchNorm):
    def _check_input_dim(self, input: Tensor) -> None:
        """Images of any number of dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        given, x = x.dtype, x if x.dtype == torch.float64 else x.float()  # half precision has few digits
        channels, over = x.shape[1], [d for d in range(x.dim()) if d != 1]
        shape = (1, -1, *[1] * (x.dim() - 2))
        count = torch.full((1,), x.numel() / channels, dtype=torch.float64)
        sums = _Summed.apply(torch.cat([x.sum(over, dtype=torch.float64), count]))
        count = sums[-1]
        mean = (sums[:-1] / count).to(x.dtype)
        # Of deviations: the mean square less the mean's square would cancel where the mean is large.
        centred = x - mean.reshape(shape)
        variance = (_Summed.apply(centred.square().sum(over, dtype=torch.float64)) / count).to(x.dtype)
        if self.track_running_stats:
            self._track(mean.detach(), (variance * count / (count - 1)).detach())
        normalized = centred * (variance.reshape(shape) + self.eps).rsqrt()
        if self.affine:
            normalized = normalized * self.weight.reshape(shape) + self.bias.reshape(shape)
        return normalized.to(given)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


_KNOWN_ON_CPU = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, _SyncBatchNormOnCPU)
