"""The batches of a loader, and its random numbers."""

import hashlib

import torch
from torch import Tensor

# images (n, C, H, W), uint8 unless the data set's are not; labels (n,) int64; index (n,) int64: each image's
# place in its data set, on which an attack's random numbers depend.
Batch = tuple[Tensor, Tensor, Tensor]


def generator(*parts: int) -> torch.Generator:
    """A generator on the CPU whose seed mixes the parts: similar parts give unrelated seeds."""
    name = "/".join(map(str, parts)).encode()
    seed = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")
    return torch.Generator().manual_seed(seed)


def received(fetched: Batch | Exception) -> Batch:
    """The batch that a worker has returned, a tuple again where torch has made a list of it. Raises the
    exception if it has returned one."""
    if isinstance(fetched, Exception):
        raise fetched
    images, labels, index = fetched
    return images, labels, index
