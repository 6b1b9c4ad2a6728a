"""What an evaluation demands of an attack: settings before it runs, valid images and gradients afterwards."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..attacks.attack import Attack, undirected_notes
from ..attacks.inputs import draw_key
from ..attacks.verify import Place, verify
from ..engine.modes import Model


def check_one_size_for_all(argument: str, attack: Attack) -> None:
    """Raises ValueError for an attack with sizes per sample: these fit one batch, and not all others."""
    if any(isinstance(size, Tensor) and size.dim() for size in attack.sizes().values()):
        accepted = "one for all"
        raise ValueError(
            f"{argument}: got an eps, step size or sparsity per sample of a batch, accepted: {accepted}"
        )


def key_of(attack: Attack) -> Tensor:
    """A random key (1,) int64 from the attack's generator, for all batches of an evaluation."""
    device = attack.generator.device if attack.generator else torch.device("cpu")
    return draw_key(attack.generator, device)


def verified(model: Model, attack: Attack, images: Tensor, adversarial: Tensor, labels: Tensor) -> Tensor:
    """(N,) bool: which adversarial images fool the model, by :func:`roli_fast.attacks.verify`. Raises as
    :func:`check_places`."""
    found = verify(
        model, images, adversarial, labels, attack.norm, attack.eps, attack.bounds,
        output=attack.output, eot=attack.eot,
    )  # fmt: skip
    check_places(attack, found)
    return found.success


def check_places(attack: Attack, place: Place) -> None:
    """Raises RuntimeError where an adversarial image is outside the ball or the box: it would say nothing
    about the model."""
    if not place.allowed.all():
        raise RuntimeError(f"{attack!r} returned images outside its ball or box")


def pooled_notes(
    attack: Attack,
    images: int,
    directed: Sequence[int],
    undirected: Sequence[Mapping[str, Sequence[int]]],
    strict: bool = True,
) -> tuple[str, ...]:
    """A sentence for each stage that some images withstood without a gradient to follow, over all batches.

    images: how many were attacked. directed, undirected: of each batch, directed and undirected_by_stage of
        its AttackResult.

    Raises ValueError if ``strict`` and the attack had no gradient for any image.
    """
    stages = dict.fromkeys(stage for batch in undirected for stage in batch)
    counts = {stage: [batch[stage] for batch in undirected if stage in batch] for stage in stages}
    pooled = {stage: (sum(s for s, _ in parts), sum(n for _, n in parts)) for stage, parts in counts.items()}
    if strict:
        attack.check_directed(sum(directed), pooled, images)
    return undirected_notes(pooled)
