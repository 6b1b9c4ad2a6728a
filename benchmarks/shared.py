"""What the suites have in common: clocks, and how a measurement becomes a benchmark's entry."""

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from roli_fast.speed import machine
from roli_fast.speed.timing import Call, Measurement

QUICK = os.environ.get("ROLI_FAST_BENCH_QUICK") == "1"  # tiny shapes: whether it runs, not how fast

# Clock cycles of a GPU, about half a millisecond: the CPU has launched what follows before they are over.
_HEAD_START = 1_000_000


def on_the_gpu(call: Call, repeats: int) -> float:
    """The time between events in the stream. A single call is queued behind other work, so that its time is
    that of its kernels. Several calls in a row include the cost of launching them, as a loop of small calls
    would."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if repeats == 1:
        torch.cuda._sleep(_HEAD_START)
    start.record()
    for _ in itertools.repeat(None, repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def launches(call: Call) -> int | None:
    """How many kernels and copies a call starts on the GPU: the number of nodes in its graph. This uses no
    profiler, which would slow down what is timed later. None for a call that cannot be captured, or without
    cuda-bindings."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return None
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        return None
    status, _, count = runtime.cudaGraphGetNodes(runtime.cudaGraph_t(graph.raw_cuda_graph()))
    return count if status == runtime.cudaError_t.cudaSuccess else None


class RecordedClock:
    """A clock that replays durations. pytest-benchmark times one function many times in a row. With this
    clock as its timer, it reports what ``interleaved`` has measured."""

    __name__ = "recorded"

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        return self._now

    def replay(self, durations: Sequence[float]) -> Callable[[], None]:
        """A function that, by this clock, takes each of the durations in turn."""
        remaining = iter(durations)

        def pass_time() -> None:
            self._now += next(remaining)

        return pass_time


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
