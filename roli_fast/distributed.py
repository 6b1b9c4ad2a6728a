"""Which process this is, of how many: as torch.distributed has it, once a group is there."""

import torch.distributed as dist


def rank() -> int:
    return dist.get_rank() if is_joined() else 0


def world_size() -> int:
    return dist.get_world_size() if is_joined() else 1


def is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()
