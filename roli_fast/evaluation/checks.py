"""What an evaluation asks of an attack, before and after."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..attacks.attack import Attack, undirected_notes
from ..attacks.verify import locate


def check_one_size_for_all(argument: str, attack: Attack) -> None:
    """Raises ValueError for sizes per sample, whose batch an evaluation does not have."""
    if any(isinstance(size, Tensor) and size.dim() for size in attack.sizes().values()):
        accepted = "one for all"
        raise ValueError(
            f"{argument}: got an eps, step size or sparsity per sample of a batch, accepted: {accepted}"
        )


def check_places(attack: Attack, images: Tensor, adversarial: Tensor) -> None:
    """Raises RuntimeError where an adversarial image is outside the ball or the box: nothing could be said of
    the model then."""
    if not locate(images, adversarial, attack.norm, attack.eps, attack.bounds).allowed.all():
        raise RuntimeError(f"{attack!r} returned images outside its ball or box")


def pooled_notes(
    attack: Attack,
    images: int,
    directed: Sequence[int],
    undirected: Sequence[Mapping[str, Sequence[int]]],
    strict: bool = True,
) -> tuple[str, ...]:
    """What is to be said of images that withstood without a gradient to follow, over all batches.

    images: that were attacked. directed, undirected: as AttackResult has them, of each batch.

    Raises ValueError where strict and the attack had no gradient for any image.
    """
    stages = dict.fromkeys(stage for batch in undirected for stage in batch)
    counts = {stage: [batch[stage] for batch in undirected if stage in batch] for stage in stages}
    pooled = {stage: (sum(s for s, _ in parts), sum(n for _, n in parts)) for stage, parts in counts.items()}
    if strict and min((stuck for stuck, _ in pooled.values()), default=0) > sum(directed) == 0:
        attack.refuse_undirected(images)
    return undirected_notes(pooled)
