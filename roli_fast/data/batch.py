"""What a loader hands out, and where its randomness comes from."""

import hashlib

import torch
from torch import Tensor

# images (n, C, H, W), uint8 unless the set's are not; labels (n,) int64; index (n,) int64: each image's place
# in its set, to which an attack's randomness belongs.
Batch = tuple[Tensor, Tensor, Tensor]


def generator(*parts: int) -> torch.Generator:
    """One on the CPU whose seed mixes the parts: neighbouring parts have nothing in common."""
    name = "/".join(map(str, parts)).encode()
    seed = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")
    return torch.Generator().manual_seed(seed)
