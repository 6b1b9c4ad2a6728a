"""How a model was built, as its checkpoint records it."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The arguments of :func:`create_model` that build this model, except where its weights came from."""

    name: str
    num_classes: int
    in_chans: int
    img_size: tuple[int, int] | None
    resize: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    options: dict[str, Any]
