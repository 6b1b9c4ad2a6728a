"""What training costs: passes through the model, and seconds."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import torch

KINDS = ("attack", "training", "data", "evaluation")


@dataclasses.dataclass
class Cost:
    """What training has cost. Passes are counted in images, times in seconds.

    forwards: forward passes.
    input_gradients: backward passes to the input alone, as an attack makes them.
    weight_gradients: backward passes through the backbone to its weights; none where only the head trains.
    attack, training, data, evaluation: seconds that went into each. On a GPU, attack and training are the
        device's own time, and data the time that it waited for images.

    Fields have the names that saved runs have (metrics.csv, result.json).
    """

    forwards: int = 0
    input_gradients: int = 0
    weight_gradients: int = 0
    attack: float = 0.0
    training: float = 0.0
    data: float = 0.0
    evaluation: float = 0.0

    @property
    def seconds(self) -> float:
        """All seconds together."""
        return sum(getattr(self, kind) for kind in KINDS)

    @property
    def passes(self) -> int:
        """Passes through the network: forward counts 1, backward to the input 1, backward to input and
        weights 2."""
        return self.forwards + self.input_gradients + 2 * self.weight_gradients

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            *(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True))
        )


class Stopwatch:
    """Measures seconds by kind for a :class:`Cost`. It waits for the device only when it is read."""

    def __init__(self, device: torch.device):
        self._on_gpu, self._device = device.type == "cuda", device
        # Work of the device that is not measured yet: kind, begin, end, and for how many seconds the host had
        # fetched data before it.
        self._open: list[tuple[str, torch.cuda.Event, torch.cuda.Event, float]] = []
        self._fetching = 0.0
        self._seconds = dict.fromkeys(KINDS, 0.0)

    @contextlib.contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """Measures what runs inside. kind: one of KINDS; "data" and "evaluation" are measured on the host,
        the others on the device."""
        if self._on_gpu and kind in ("attack", "training"):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            fetched, self._fetching = self._fetching, 0.0
            stream = torch.cuda.current_stream(self._device)
            begin.record(stream)
            yield
            end.record(stream)
            self._open.append((kind, begin, end, fetched))
            return
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        if self._on_gpu and kind == "data":
            self._fetching += seconds
        else:
            self._seconds[kind] += seconds

    def read_into(self, cost: Cost) -> None:
        """Waits for the device, adds all seconds since the last call to the cost, and begins anew."""
        if self._open:
            self._open[-1][2].synchronize()
        before = None
        for kind, begin, end, fetched in self._open:
            # While the host fetched data, the device may still have had work: it waited no longer than for
            # these data, and no longer than it was idle.
            idle = fetched if before is None else min(fetched, before.elapsed_time(begin) / 1000)
            self._seconds["data"] += idle
            self._seconds[kind] += begin.elapsed_time(end) / 1000
            before = end
        for kind, seconds in self._seconds.items():
            setattr(cost, kind, getattr(cost, kind) + seconds)
        self._open.clear()
        self._seconds = dict.fromkeys(KINDS, 0.0)
