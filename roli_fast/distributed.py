"""The number of this process and how many there are, as torch.distributed says once a process group
exists."""

import torch.distributed as dist


def rank() -> int:
    return dist.get_rank() if is_joined() else 0


def world_size() -> int:
    return dist.get_world_size() if is_joined() else 1


def is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()
