"""Times contenders against each other. Their calls are interleaved, so that any disturbance of the machine
affects all of them alike."""

import gc
import itertools
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from . import machine

Call = Callable[[], object]
Stopwatch = Callable[[Call, int], float]  # seconds of a call, as the mean of so many


@dataclass(frozen=True)
class Measurement:
    """seconds: per contender, one value per round.
    other_cores: how many cores other processes kept busy meanwhile.
    """

    seconds: Mapping[str, Sequence[float]]
    other_cores: float | None

    def seconds_of(self, contender: str) -> dict[str, float]:
        return quartiles(self.seconds[contender])

    def ratio(self, contender: str, to: str) -> dict[str, float]:
        """Quartiles of the ratios within a round, in which both contenders saw the same machine."""
        pairs = zip(self.seconds[contender], self.seconds[to], strict=True)
        return quartiles([a / b for a, b in pairs])


def quartiles(values: Sequence[float]) -> dict[str, float]:
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3}


def interleaved(
    contenders: Mapping[str, Sequence[Call]],
    rounds: int,
    repeats: int,
    stopwatch: Stopwatch,
    warm_ups: int = 2,
) -> Measurement:
    """Times every contender once per round, in an order drawn anew for each round.

    contenders: for each, equivalent versions that work on different memory. Each timing takes the next
        version, whoever is timed, so that no contender finds its data in the cache because a rival has just
        left them there.
    repeats: calls per timing, where a single one is too short for the clock; the time of a call is their
        mean.
    warm_ups: untimed calls of every version before the first round.
    """
    order, version = list(contenders), itertools.count()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    shuffle = random.Random(0).shuffle
    _warm_up(contenders, warm_ups)
    watch = OtherLoad()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                versions = contenders[name]
                seconds[name].append(stopwatch(versions[next(version) % len(versions)], repeats))
    finally:
        gc.enable()
    return Measurement(seconds, watch.cores())


def _warm_up(contenders: Mapping[str, Sequence[Call]], times: int) -> None:
    """Calls every version this many times, so that page faults, compilation and the allocator's caches, which
    only first calls pay for, are not timed."""
    for _ in range(times):
        for versions in contenders.values():
            for call in versions:
                call()
    gc.collect()


def on_the_clock(call: Call, repeats: int) -> float:
    start = perf_counter()
    for _ in itertools.repeat(None, repeats):
        call()
    return (perf_counter() - start) / repeats


def until_done(call: Call, repeats: int) -> float:
    """The time by the clock until all work on the GPU is done, for calls in which the CPU has a part from
    start to end."""
    if not torch.cuda.is_available():
        return on_the_clock(call, repeats)
    torch.cuda.synchronize()
    start = perf_counter()
    for _ in itertools.repeat(None, repeats):
        call()
    torch.cuda.synchronize()
    return (perf_counter() - start) / repeats


class OtherLoad:
    """How many cores other processes keep busy. If it is more than about a tenth, timings on all cores mean
    little."""

    _TICK = 0.01  # seconds; the system counts in these

    def __init__(self) -> None:
        self._start, self._busy = perf_counter(), machine.busy_seconds()

    def cores(self) -> float | None:
        elapsed, busy = perf_counter() - self._start, machine.busy_seconds()
        if self._busy is None or busy is None or elapsed < 20 * self._TICK:
            return None
        everyone, own = (after - before for after, before in zip(busy, self._busy, strict=True))
        return round(max(0.0, everyone - own) / elapsed, 2)
