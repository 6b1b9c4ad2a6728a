"""What a training spends: passes through the model, and seconds by what they went into."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import torch

KINDS = ("attack", "training", "data", "evaluation")


@dataclasses.dataclass
class Cost:
    """Counts are images that went through the model.

    forwards: all calls. input_gradients: backward passes to the input alone, as an attack makes them.
    weight_gradients: backward passes through the backbone for the weights; none where the head alone trains.
    attack, training, data, evaluation: seconds. Training on a GPU, seconds of the device; data are what it
        waited for.
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
        return sum(getattr(self, kind) for kind in KINDS)

    @property
    def passes(self) -> int:
        """A forward pass is one, a backward pass to the input another, and to the weights one more."""
        return self.forwards + self.input_gradients + 2 * self.weight_gradients

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            *(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True))
        )


class Stopwatch:
    """Adds seconds to a :class:`Cost` by kind, and does not wait for the device before it is read."""

    def __init__(self, device: torch.device):
        self._on_gpu, self._device = device.type == "cuda", device
        # Of the device's work, its kind, and the host's seconds for the data before it.
        self._open: list[tuple[str, torch.cuda.Event, torch.cuda.Event, float]] = []
        self._fetching = 0.0
        self._seconds = dict.fromkeys(KINDS, 0.0)

    @contextlib.contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """kind: "data" and "evaluation" are the host's time, the others the device's."""
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
        """Waits for the device, adds what was measured, and begins anew."""
        if self._open:
            self._open[-1][2].synchronize()
        before = None
        for kind, begin, end, fetched in self._open:
            # The device had work left while data were fetched; of what it waited, they are to blame at most.
            idle = fetched if before is None else min(fetched, before.elapsed_time(begin) / 1000)
            self._seconds["data"] += idle
            self._seconds[kind] += begin.elapsed_time(end) / 1000
            before = end
        for kind, seconds in self._seconds.items():
            setattr(cost, kind, getattr(cost, kind) + seconds)
        self._open.clear()
        self._seconds = dict.fromkeys(KINDS, 0.0)
