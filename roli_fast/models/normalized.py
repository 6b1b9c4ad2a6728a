"""Input normalisation as part of the model, so that attacks act on pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalized(nn.Module):
    """``model((images - mean) / std)``: takes pixels (N, C, ...), usually in [0, 1]; of uint8 ones, v / 255.

    model: takes normalised images (N, C, ...).
    mean, std: one number per channel, in pixel units; std > 0.

    Raises ValueError for lengths that differ, for an std that is not positive, and for images of another
    number of channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(
                f"mean, std: got {len(mean)} and {len(std)} numbers, accepted: one per channel each"
            )
        if not all(s > 0 for s in std):
            raise ValueError(f"std: got {tuple(std)}, accepted: positive numbers")
        self.model = model
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        if isinstance(images, Tensor):  # while fx traces, there is none
            if images.dim() < 2 or images.shape[1] != len(self.mean):
                got = f"shape {tuple(images.shape)}"
                raise ValueError(f"images: got {got}, accepted: (N, {len(self.mean)}, ...)")
            if images.dtype == torch.uint8:
                images = images.to(self.mean.dtype) / 255
        shape = (1, -1, *[1] * (images.dim() - 2))
        return self.model((images - self.mean.reshape(shape)) / self.std.reshape(shape))
