"""What robustness costs: RoLI and what it is compared with, on the public code's engine and on ours.

``python -m benchmarks.price cells --work FOLDER [--arms ...] [--jobs N]`` trains cell by cell (a data size,
an arm, a learning rate, a seed) and keeps each one's weights; one that is finished is left alone. ``judge``
attacks the cells that count by APGD and AutoAttack; ``table`` puts both together. ``times`` measures what an
image costs in each kind of pass, ``seconds`` what trainings of the table take by the clock, ``phases`` where
an epoch's time goes, ``removals`` what each thing gave that is not computed any more. ``pages`` shows all of
it, in docs/price.md, in the README and in pictures. Needs ../shared/data, but for ``pages``.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roli_fast.files import write_json
from roli_fast.speed import machine

from ..jobs import Perform, run_all
from ..shared import commit
from . import arms, cells, judges, pages, problem
from .phases import phases
from .removals import removals
from .seconds import TIMED, seconds
from .table import table
from .times import times

WHAT = ("cells", "judge", "table", "times", "seconds", "phases", "removals", "pages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--work", type=Path, default=Path("runs/price"), help="where the cells lie")
    parser.add_argument("--out", type=Path, default=pages.RESULT, help="of all but cells and judge")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of cells and judge")
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=list(arms.ARMS),
        help=f"default all, the public code's at {arms.PUBLIC_SIZE} images",
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[50], help="images of each class")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", type=float, default=arms.RATES)
    parser.add_argument("--rounds", type=int, default=10, help="of times and removals")
    parser.add_argument("--window", type=int, default=10, help="batches at once, of times")
    parser.add_argument("--repeats", type=int, default=3, help="of phases")
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error("--jobs: at least 1")
    if given.what in ("cells", "judge"):
        perform_tasks(given)
    elif given.what == "pages":
        pages.show(given.out)
    else:
        write_result(given)


def perform_tasks(given: argparse.Namespace) -> None:
    perform: Perform
    tasks: Sequence[Any]
    if given.what == "cells":
        tasks = cells.plan(given.sizes, given.arms, given.seeds, given.rates)
        perform = functools.partial(cells.train_cell, given.work, given.jobs == 1)
    else:
        tasks = judges.judgements(given.work, given.sizes, given.arms, given.seeds)
        perform = functools.partial(judges.judge_cell, given.work)
    failed = run_all(tasks, perform, given.jobs)
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


def write_result(given: argparse.Namespace) -> None:
    """What was measured goes to what the file has already of other sizes and machines."""
    result = cells.read(given.out) if given.out.exists() else {}
    if given.what == "table":
        sizes = result.get("sizes", {}) | {str(size): table(given.work, size) for size in given.sizes}
        result |= {"eps": problem.EPS, "epochs": arms.EPOCHS}
        result |= {"validation_images": 10 * problem.VAL, "test_images": 10 * problem.TEST}
        result["sizes"] = {size: sizes[size] for size in sorted(sizes, key=int) if sizes[size]}
    else:
        measured = {
            "times": lambda: times(given.rounds, given.window),
            "seconds": lambda: seconds(result["sizes"], given.sizes, given.arms or TIMED),
            "phases": lambda: phases(given.repeats),
            "removals": lambda: removals(given.rounds),
        }[given.what]()
        where = {"machine": machine.describe(problem.DEVICE), "commit": commit()}
        result.setdefault(given.what, {})[machine.slug(problem.DEVICE)] = measured | where
    write_json(given.out, result)


if __name__ == "__main__":
    main()
