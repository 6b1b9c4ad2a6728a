"""Comparing several runs on the same images."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from ..evaluation import Advice, Difference, difference, transferred
from .advice import advice_between
from .measure import Found
from .runs import Run

Pair = tuple[Run, Run]


@dataclasses.dataclass(frozen=True)
class Gap:
    """By how much one run's accuracy is above another's, with the 95 % interval of a paired bootstrap. high
    is None if it is infinite."""

    name: str
    what: str
    value: float
    low: float
    high: float | None

    @property
    def within_noise(self) -> bool:
        return self.low <= 0 and (self.high is None or self.high >= 0)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """gaps: RoLI minus RanLI where there are both, and every other run minus the first.
    transferred: the relative gaps between linear probing and full finetuning, if there are runs of both; only
        then is there advice as well.
    """

    gaps: list[Gap]
    transferred: list[Gap]
    advice: Advice | None


def compare(runs: Sequence[Run], found: Mapping[str, Found]) -> Comparison | None:
    """Compares the runs; returns None for a single one. found: what was measured, by the runs' names."""
    if len(runs) < 2:
        return None
    gaps = [gap for a, b in pairs(runs) for gap in _gaps(a, b, found)]
    probed = [found[r.name] for r in runs if r.method == "linear"]
    full = [found[r.name] for r in runs if r.method == "full"]
    return Comparison(gaps, _transferred(probed, full), advice_between(probed, full))


def pairs(runs: Sequence[Run]) -> list[Pair]:
    """The pairs of runs that are compared: RoLI with RanLI by the same method, of the same seed if there are
    such pairs. Every run left without a pair is compared with the first run."""
    found: list[Pair] = []
    for method in dict.fromkeys(run.method for run in runs):
        by = {kind: [r for r in runs if (r.kind, r.method) == (kind, method)] for kind in ("RoLI", "RanLI")}
        rivals = [(ours, theirs) for ours in by["RoLI"] for theirs in by["RanLI"]]
        found += [(a, b) for a, b in rivals if a.recipe["seed"] == b.recipe["seed"]] or rivals
    paired = {run.name for pair in found for run in pair}
    return found + [(run, runs[0]) for run in runs[1:] if run.name not in paired]


def _gaps(ours: Run, theirs: Run, found: Mapping[str, Found]) -> list[Gap]:
    a, b = found[ours.name].numbers, found[theirs.name].numbers
    name = f"{ours.name} minus {theirs.name}"
    rates = {"clean": (a.clean, b.clean), "robust": (a.robust, b.robust)}
    return [
        _gap(name, what, difference(one.accuracy, other.accuracy)) for what, (one, other) in rates.items()
    ]


def _transferred(probed: Sequence[Found], full: Sequence[Found]) -> list[Gap]:
    """The relative gaps. They are undefined, and left out, where finetuning has no image right."""
    if not probed or not full:
        return []
    found = []
    for what, rate in (("accuracy", "clean"), ("robustness", "robust")):
        ours, theirs = ([getattr(f.numbers, rate).accuracy for f in group] for group in (probed, full))
        if any(accuracy.value > 0 for accuracy in theirs):
            found.append(_gap(f"transferred {what}", rate, transferred(ours, theirs)))
    return found


def _gap(name: str, what: str, gap: Difference) -> Gap:
    return Gap(name, what, gap.value, gap.low, gap.high if math.isfinite(gap.high) else None)
