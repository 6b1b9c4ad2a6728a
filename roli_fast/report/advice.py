"""Whether to probe or to finetune, judged by everything that a page has measured."""

from collections.abc import Sequence

from ..evaluation import Advice, advise, advise_between
from .measure import Found
from .sanity import sanity


def advice(found: Found) -> Advice | None:
    """Advice by what all attacks of the page together leave right. It is "none" if a check failed. Returns
    None if there is no transfer analysis."""
    if found.transfer is None:
        return None
    return _doubt([found]) or advise(found.transfer)


def advice_between(probed: Sequence[Found], finetuned: Sequence[Found]) -> Advice | None:
    """Like :func:`advice`, for several runs of one backbone. Returns None unless there are analyses of both
    kinds of run."""
    groups = [[f for f in group if f.transfer is not None] for group in (probed, finetuned)]
    if not all(groups):
        return None
    ours, theirs = ([f.transfer for f in group if f.transfer is not None] for group in groups)
    return _doubt([*groups[0], *groups[1]]) or advise_between(ours, theirs)


def _doubt(found: Sequence[Found]) -> Advice | None:
    """The advice "none" if a check failed: the numbers are then too high to decide anything."""
    failed = dict.fromkeys(check.name for f in found for check in sanity(f.numbers) if not check.passed)
    if not failed:
        return None
    reason = (
        f"robust accuracies cannot be trusted, since these checks failed: {'; '.join(failed)}. Gradient "
        "attacks may have missed adversarial images"
    )
    most = ", ".join(f"{f.numbers.robust.value:.1%}" for f in found)
    return Advice("none", reason, f"What the attacks left, {most}, is only an upper bound of robust accuracy")
