"""What of the cells that count withstands stronger attacks."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from roli_fast.attacks import AutoAttack
from roli_fast.evaluation import evaluate
from roli_fast.speed import machine

from . import arms, problem
from .cells import chosen, save, weights_of

JUDGES: dict[str, tuple[str, ...] | None] = {
    "apgd": ("apgd-ce", "apgd-t"),
    "autoattack": None,
}  # the attacks of each; None: AutoAttack's own
JUDGED = {"apgd": problem.TEST, "autoattack": 20}  # images of each class


@dataclasses.dataclass(frozen=True)
class Judgement:
    """what: one of JUDGES. cell: its file, below the folder of all."""

    what: str
    cell: Path
    needs: ClassVar[tuple["Judgement", ...]] = ()

    def __str__(self) -> str:
        return f"{self.what} of {self.cell.with_suffix('')}"

    def place(self, work: Path) -> Path:
        """Apart from the cells, whose folders are listed."""
        return work / "judged" / self.what / self.cell


def judgements(
    work: Path, sizes: Sequence[int], asked: Sequence[str] | None, seeds: Sequence[int]
) -> list[Judgement]:
    """Of the cells that the table shows: the main arms' first, and the cheaper attack before the dearer."""
    found: dict[tuple[Any, ...], Judgement] = {}
    for size in sorted(sizes):
        cells = chosen(work, size)
        for number, name in enumerate(
            name for name in sorted(arms.ARMS, key=arms.by_importance) if name in cells
        ):
            for seed, path in cells[name].items():
                if seed in seeds and (asked is None or name in asked):
                    for rank, what in enumerate(JUDGES):
                        order = (name not in arms.MAIN, rank, size, number, seed)
                        found[order] = Judgement(what, path.relative_to(work))
    return [found[order] for order in sorted(found)]


def judge_cell(work: Path, judgement: Judgement) -> None:
    path = judgement.place(work)
    if path.exists():
        return
    data, model = problem.splits(int(judgement.cell.parts[0])).test, problem.backbone(0, "full")
    model.load_state_dict(weights_of(work / judgement.cell))
    count = JUDGED[judgement.what]
    rows = torch.cat([(data.labels == c).nonzero().flatten()[:count] for c in data.labels.unique()])
    attack = AutoAttack(
        eps=problem.EPS, attacks=JUDGES[judgement.what], generator=torch.Generator().manual_seed(0)
    )
    parts = zip(data.images[rows].split(problem.TESTED), data.labels[rows].split(problem.TESTED), strict=True)
    tested = evaluate(model, parts, attack, strict=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(
        path,
        {
            "device": machine.slug(problem.DEVICE),
            "attack": tested.label,
            "notes": tested.notes,
            "rows": rows.tolist(),
            "right": tested.right.int().tolist(),
        },
    )
