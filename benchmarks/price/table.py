"""Cells, heads and judgements of a data size, put together."""

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import torch

from roli_fast.evaluation import Accuracy, Difference, difference
from roli_fast.training import Cost
from roli_fast.training.result import merit

from . import arms
from .arms import RANLI
from .cells import chosen, counting, folder_of, read, settings_of
from .judges import JUDGES, Judgement

PATIENCE = (2, 3, 5)  # epochs


def row(
    cells: list[dict[str, Any]], heads: list[dict[str, Any]], ranli: list[dict[str, Any]]
) -> dict[str, Any]:
    """Of an arm: cells by seed, the heads they began with, and RanLI's cells."""

    def passes(found: dict[str, Any], epochs: int) -> int:
        rows = found["history"]
        if "cost" not in rows[0]:  # the public code's: all its epochs spend the same
            return Cost(**found["cost"]).passes * epochs // len(rows)
        if "attacks" in rows[0]:  # fits, of which none is known to be the best before all are there
            epochs = len(rows)
        return sum(Cost(**r["cost"]).passes for r in rows[:epochs])

    before = [passes(h, len(h["history"])) for h in heads] if heads else [0] * len(cells)
    found: dict[str, Any] = {"seeds": len(cells)}
    found["devices"] = sorted({c["device"] for c in cells})
    for what in ("clean", "pgd20", *JUDGES):
        by_seed = [statistics.fmean(c["right"][what]) for c in cells if what in c["right"]]
        if by_seed:
            found[what] = {"mean": statistics.fmean(by_seed), "by_seed": by_seed}
    found["passes_to_best"] = [b + passes(c, c["best"] + 1) for b, c in zip(before, cells, strict=True)]
    found["passes_by_epoch"] = [
        [b + passes(c, e + 1) for e in range(len(c["history"]))] for b, c in zip(before, cells, strict=True)
    ]
    found["passes"] = [b + passes(c, len(c["history"])) for b, c in zip(before, cells, strict=True)]
    epochs = [reaching(c, r) for c, r in zip(cells, ranli, strict=True)]
    found["looked_at_held_out"] = all("held_out" in c for c in (*cells, *ranli))
    found["passes_to_ranlis_best"] = [
        None if mine is None else b + passes(c, mine)
        for b, c, (mine, _) in zip(before, cells, epochs, strict=True)
    ]
    found["ranlis_passes_to_it"] = [passes(r, own) for r, (_, own) in zip(ranli, epochs, strict=True)]
    found["best_epochs"] = [c["best"] + 1 for c in cells]
    found["validation"] = [[r["val_robust"] for r in c["history"]] for c in cells]
    if all("held_out" in c for c in cells):
        found["held_out"] = [c["held_out"] for c in cells]
        found["patience"] = {}
        for patience in PATIENCE:
            ends = [stopped(c["history"], patience) for c in cells]
            found["patience"][str(patience)] = {
                "epochs": [epochs for epochs, _ in ends],
                "passes": [b + passes(c, end[0]) for b, c, end in zip(before, cells, ends, strict=True)],
                "best_epochs": [best + 1 for _, best in ends],
                "held_out": [c["held_out"][best] for c, (_, best) in zip(cells, ends, strict=True)],
            }
    for what in ("pgd20", *JUDGES):
        pairs = zip(cells, ranli, strict=True)
        gaps = [gap(c, r, what) for c, r in pairs if what in c["right"] and what in r["right"]]
        if gaps:
            found[f"{what}_minus_ranli"] = gaps
    return found


def reaching(cell: dict[str, Any], ranli: dict[str, Any]) -> tuple[int | None, int]:
    """After how many epochs it is as robust as RanLI ever gets, and RanLI itself: on the images held out,
    where these were looked at in both, else on validation's."""
    looked = all("held_out" in c for c in (cell, ranli))
    mine, others = (
        c["held_out"] if looked else [r["val_robust"] for r in c["history"]] for c in (cell, ranli)
    )
    goal = max(others)
    return next((e for e, robust in enumerate(mine, 1) if robust >= goal), None), others.index(goal) + 1


def stopped(history: list[dict[str, Any]], patience: int) -> tuple[int, int]:
    """After how many epochs Recipe.patience would have ended that training, and the best of these."""
    best = 0
    for epoch, row in enumerate(history):
        if merit(row) > merit(history[best]):
            best = epoch
        if epoch - best >= patience:
            return epoch + 1, best
    return len(history), best


def judged(work: Path, path: Path) -> dict[str, Any]:
    """A cell, with what withstood stronger attacks, where that is known."""
    cell = read(path)
    for what in JUDGES:
        file = Judgement(what, path.relative_to(work)).place(work)
        if file.exists():
            cell["right"][what] = read(file)["right"]
    return cell


def table(work: Path, size: int) -> dict[str, Any]:
    """Of the cells that are there: of each arm those with its rate, and beside them the others."""
    paths = chosen(work, size)
    heads = {kind: {s: read(path) for s, path in counting(work, size, kind).items()} for kind in arms.HEADS}
    ranli = {seed: judged(work, path) for seed, path in paths.get(RANLI, {}).items()}

    def of(name: str, by_seed: dict[int, Path]) -> dict[str, Any]:
        seeds = [seed for seed in by_seed if seed in ranli]
        begun = [heads[arms.ARMS[name].head][s] for s in seeds] if _has_head(name) else []
        return row([judged(work, by_seed[s]) for s in seeds], begun, [ranli[s] for s in seeds])

    rows = {}
    for name, by_seed in paths.items():
        if not ranli.keys() & by_seed.keys():
            continue
        rows[name] = of(name, by_seed)
        for setting, cells in settings_of(work, size, folder_of(name)).items():
            if cells == by_seed:
                rows[name]["setting"] = setting
            else:
                rows[name].setdefault("other_settings", {})[setting] = of(name, cells)
    return rows


def _has_head(name: str) -> bool:
    return arms.ARMS[name].epochs is not None and arms.ARMS[name].head in arms.HEADS


def gap(a: dict[str, Any], b: dict[str, Any], what: str) -> dict[str, float]:
    if a == b:
        return dataclasses.asdict(Difference(0.0, 0.0, 0.0))
    return dataclasses.asdict(difference(*(Accuracy(torch.tensor(c["right"][what]) > 0) for c in (a, b))))
