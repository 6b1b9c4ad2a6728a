"""What the suites have in common: a clock that replays, and how a measurement becomes a benchmark's entry."""

import os
from typing import Any

from roli_fast.speed import machine
from roli_fast.speed.timing import Measurement, RecordedClock

QUICK = os.environ.get("ROLI_FAST_BENCH_QUICK") == "1"  # tiny shapes: whether it runs, not how fast
CLOCK = RecordedClock()


def commit() -> str:
    """The commit that is measured: git's, or in a copy without it what ROLI_FAST_COMMIT says."""
    return (os.environ.get("ROLI_FAST_COMMIT") or machine.commit()["id"] or "unknown")[:10]


def enter(benchmark: Any, measured: Measurement, contender: str, group: str, **facts: Any) -> None:
    """One contender's times, and beside them whatever else is known."""
    benchmark.group = group
    benchmark.extra_info.update(facts, other_cores_busy=measured.other_cores)
    seconds = measured.seconds[contender]
    benchmark.pedantic(CLOCK.replay(seconds), rounds=len(seconds))
