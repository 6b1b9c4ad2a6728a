"""What seconds go into."""

import pytest
import torch

from roli_fast.training import cost
from roli_fast.training.cost import Cost, Stopwatch


class Clocks:
    """Of a host and of a device that works behind it."""

    def __init__(self):
        self.host = self.device = 0.0

    def work(self, seconds):
        """Begins on the device when it is free, and the host goes on."""
        self.device = max(self.device, self.host) + seconds

    def event(self, enable_timing):
        return _Event(self)


class _Event:
    def __init__(self, clocks):
        self._clocks = clocks

    def record(self, stream):
        self.at = max(self._clocks.device, self._clocks.host)

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 1000 * (other.at - self.at)


def test_data_are_what_the_device_waited_for(monkeypatch):
    """Of what the host fetches while the device has work, nothing; its other waits are no data's."""
    clocks = Clocks()
    monkeypatch.setattr(torch.cuda, "Event", clocks.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clocks.host)
    watch, found = Stopwatch(torch.device("cuda")), Cost()
    for fetching, thinking in ((2.0, 0.0), (5.0, 0.0), (30.0, 0.0), (1.0, 30.0)):
        with watch("data"):
            clocks.host += fetching
        clocks.host += thinking
        for kind, seconds in (("attack", 10.0), ("training", 5.0)):
            with watch(kind):
                clocks.work(seconds)
    watch.read_into(found)
    assert (found.attack, found.training) == (40.0, 20.0)
    assert found.data == pytest.approx(2.0 + 0.0 + 5.0 + 1.0)
    watch.read_into(found)
    assert found.seconds == pytest.approx(68.0)
