"""Input normalisation as part of the model, so that attacks act on pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import refuse


class Normalized(nn.Module):
    """``model((images - mean) / std)``: takes float pixels (N, C, ...), usually in [0, 1].

    model: takes normalised images (N, C, ...).
    mean, std: one number per channel, or one for all, in pixel units; std has to be above 0.

    Raises ValueError if mean and std differ in length or an std is not positive; and when called, for images
    with another number of channels and for integer images, whose range is not known.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        if len(mean) != len(std):
            refuse("mean, std", f"{len(mean)} and {len(std)} numbers", "one per channel each")
        if not all(s > 0 for s in std):
            refuse("std", tuple(std), "positive numbers")
        self.model = model
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        if isinstance(images, Tensor):  # fx traces without tensors
            if len(self.mean) > 1 and (images.dim() < 2 or images.shape[1] != len(self.mean)):
                refuse("images", f"shape {tuple(images.shape)}", f"(N, {len(self.mean)}, ...)")
            if not images.is_floating_point():
                refuse("images", images.dtype, "floats, in the units of mean and std: images / 255")
        shape = (1, -1, *[1] * (images.dim() - 2))
        return self.model((images - self.mean.reshape(shape)) / self.std.reshape(shape))
