"""Functions of tensors, captured as CUDA graphs when they are called repeatedly."""

import collections
import contextlib
import functools
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import brief, warn

Function = Callable[..., tuple[Tensor, ...]]

# For how many kinds of calls it is counted how often they came, before they are recorded.
_REMEMBERED = 256

# Held during a capture. A process can have one capture at a time, and during it no other thread may draw from
# torch's global generator of a GPU.
no_other_capture = threading.RLock()


class Recording:
    """A function whose inputs and outputs have fixed places in memory. This class calls the function in each
    replay; :class:`CudaRecording` replays its kernels instead.

    Inputs that are not tensors are constants: they stay as they were when it was recorded.

    pool: where memory comes from that is free between replays; another recording's :attr:`pool`, where no two
        replays overlap. None for its own.
    """

    pool: Any = None

    def __init__(self, function: Function, inputs: Sequence[Any], pool: Any = None):
        self.pool = pool
        self._inputs = [i.clone() if isinstance(i, Tensor) else i for i in inputs]
        self._outputs = self._record(function)

    def _record(self, function: Function) -> tuple[Tensor, ...]:
        inputs = self._inputs  # not by way of self, which would then wait for the garbage collector
        outputs = tuple(output.clone() for output in function(*inputs))
        self._run: Callable[[], object] = lambda: torch._foreach_copy_(outputs, function(*inputs))
        return outputs

    def replay(self, inputs: Sequence[Any], *, lend: bool = False) -> tuple[Tensor, ...]:
        """Outputs for inputs of the same kind. They belong to the caller, or are lent: the next replay
        overwrites them."""
        for own, given in zip(self._inputs, inputs, strict=True):
            if isinstance(own, Tensor):
                own.copy_(given, non_blocking=True)
        self._run()
        return self._outputs if lend else tuple(output.clone() for output in self._outputs)


class CudaRecording(Recording):
    """A captured CUDA graph, on the device of its inputs: captured in another one's stream it would be empty,
    and a replay would leave the outputs as they were."""

    def __init__(self, function: Function, inputs: Sequence[Any], pool: Any = None):
        devices = (i.device for i in inputs if isinstance(i, Tensor) and i.is_cuda)
        self._device = next(devices, torch.device("cuda", torch.cuda.current_device()))
        with torch.cuda.device(self._device):
            super().__init__(function, inputs, pool)

    def _record(self, function: Function) -> tuple[Tensor, ...]:
        graph, callers = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        stream = _side_stream(self._device.index)
        with no_other_capture:
            stream.wait_stream(callers)
            try:
                with torch.cuda.stream(stream), _in_turn(self._device.index):
                    function(*self._inputs)  # what only a first call on a stream does: choosing algorithms
            finally:
                callers.wait_stream(stream)  # for what had begun before an error, too
            try:
                # Only this thread's mistakes end the capture: a loader that pins memory beside it makes none.
                with torch.cuda.graph(
                    graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"
                ):
                    outputs = function(*self._inputs)
            except Exception:
                torch.cuda.set_stream(callers)  # which a capture whose end fails does not do
                _end_failed_capture(stream)
                raise
        self._run, self.pool = graph.replay, graph.pool()
        return outputs

    def replay(self, inputs: Sequence[Any], *, lend: bool = False) -> tuple[Tensor, ...]:
        with torch.cuda.device(self._device), _in_turn(self._device.index):
            return super().replay(inputs, lend=lend)


@contextlib.contextmanager
def _in_turn(device: int) -> Iterator[None]:
    """Makes GPU work that is queued inside wait for all work queued so before, in whatever stream: recordings
    share their stream's cuBLAS workspace, and a copy's recordings share its weights."""
    lock, done = _turns(device)
    with lock:  # of the host, and for as long as launching takes
        stream = torch.cuda.current_stream(device)
        stream.wait_event(done)
        try:
            yield
        finally:  # also of what has begun before an error
            done.record(stream)


@functools.cache
def _turns(device: int) -> tuple[threading.RLock, torch.cuda.Event]:
    return threading.RLock(), torch.cuda.Event()


@functools.cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """The one stream for all recordings of a device: cuBLAS keeps a workspace of dozens of MB per stream."""
    return torch.cuda.Stream(device)


def _end_failed_capture(stream: torch.cuda.Stream) -> None:
    """After a failed capture, torch's random generator (2.11) still believes that it is being captured, and
    refuses to draw. A capture that succeeds, such as this one, puts that right."""
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"):
        torch.zeros(1, device=stream.device)


# Kernels whose sums have no fixed order move some elements a little; a graph that computes something else,
# most of them a lot.
_MOST_OF_A_SAMPLE, _MOST_SAMPLES = 0.25, 0.2
_NEAR = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


def _difference(replayed: Sequence[Tensor], outputs: Sequence[Tensor]) -> str | None:
    """Says how a recording's outputs differ from the eager ones; None if they do not."""
    for got, expected in zip(replayed, outputs, strict=True):
        if got.shape != expected.shape or got.dtype != expected.dtype:
            return "a replay's output has another shape or dtype"
        if expected.numel() == 0:
            continue
        near = torch.isclose(got, expected, rtol=_NEAR.get(expected.dtype, 0), atol=0, equal_nan=True)
        apart = near.reshape(len(near), -1).double().mean(dim=1) < 1 - _MOST_OF_A_SAMPLE
        share = apart.double().mean().item()
        if share > _MOST_SAMPLES:
            return f"a replay's output differs from the eager one for {share:.0%} of the samples"
    return None


class Snapshot:
    """What calls of a function change besides returning something, as it was when this was taken. This one is
    of a function that changes nothing."""

    def put_back(self) -> None:
        """Makes it what it was."""

    def check(self) -> None:
        """Raises an exception if it has been changed in a way that a recording would not repeat."""


class GraphRunner:
    """Calls a function, and replays a CUDA graph of it once calls of the same kind repeat.

    Two calls are of the same kind if their tensors agree in shape, strides, dtype and device, their other
    arguments in value, and what ``reads`` returns in where it lies. The first calls of a kind run eagerly. At
    the ``at``-th a recording is made as well, which the eager result confirms; later calls replay it. If
    recording fails, or leaves no memory for a call of another kind, all calls run eagerly from then on:
    :attr:`note` says why, and a warning says so once.

    function: takes tensors, numbers and other hashable values, and returns a tuple of tensors. Other memory
        that it reads or writes must not move between calls, unless ``reads`` or ``depends`` tells.
    reads: returns tensors besides the arguments that the function reads or writes.
    depends: returns something that is another when recordings are to be forgotten. Asked after each call that
        runs eagerly, and by :meth:`forget_changed`: a replay changes nothing in Python.
    what: what the function is, for the note.
    obstacle: returns why a recording of the function could go wrong later; it is then not made. None if it
        could not.
    limit: how many recordings are kept; the least recently used is dropped. They share memory: together
        they take about what the largest does, besides their inputs and outputs.
    at: which call of a kind is recorded, at least 2. Recording takes as long as a few calls.
    lends: whether what a replay returns is lent until the next call, instead of copied for the caller.
    snapshot: takes one of what the function changes.
    differ: how a replay's outputs (first argument) differ from eager ones, in words; None if they do not.
    recording: the kind of recording; by default CUDA graphs for CUDA tensors, and none for others.
    """

    def __init__(
        self,
        function: Function,
        *,
        reads: Callable[[], Iterable[Tensor]] = tuple,
        depends: Callable[[], Hashable] = tuple,
        what: str = "the attack",
        obstacle: Callable[[], str | None] = lambda: None,
        limit: int = 4,
        at: int = 2,
        lends: bool = False,
        snapshot: Callable[[], Snapshot] = Snapshot,
        differ: Callable[[Sequence[Tensor], Sequence[Tensor]], str | None] = _difference,
        recording: Callable[..., Recording] | None = None,
    ):
        self._function, self._reads, self._what, self._obstacle = function, reads, what, obstacle
        self._limit, self._at, self._lends, self._recording = limit, at, lends, recording
        self._depends, self._snapshot, self._differ = depends, snapshot, differ
        self._recordings: collections.OrderedDict[Hashable, Recording] = collections.OrderedDict()
        self._calls: collections.OrderedDict[Hashable, int] = collections.OrderedDict()  # not recorded yet
        self._known: Hashable = None  # what the recordings depend on
        self.note: str | None = None

    def __call__(self, *inputs: Any) -> tuple[Tensor, ...]:
        if not self.may_record(*inputs):
            return self._function(*inputs)
        kind = (*map(_kind, inputs), *((t.data_ptr(), t.stride()) for t in self._reads()))
        recording = self._recordings.get(kind)
        if recording is not None:
            self._recordings.move_to_end(kind)
            return recording.replay(inputs, lend=self._lends)
        calls = self._calls.pop(kind, 0) + 1
        before = self._snapshot() if self._recordings or calls == self._at else None
        outputs = self._eagerly(inputs, before)
        self.forget_changed()
        if before is not None and calls == self._at and self.note is None:
            self._record(kind, inputs, outputs, before)
        elif calls < self._at:
            self._calls[kind] = calls
            if len(self._calls) > _REMEMBERED:
                self._calls.popitem(last=False)
        return outputs

    def forget_changed(self) -> None:
        """Forgets the recordings if what they depend on is another than when they were made."""
        if self._recordings and self._depends() != self._known:
            self.clear()

    def clear(self) -> None:
        """Forgets all recordings, and frees their memory."""
        self._recordings.clear()
        self._calls.clear()

    def may_record(self, *inputs: Any) -> bool:
        """Whether calls with such inputs become recordings once they repeat. Not while somebody else
        captures: a graph cannot have another in it."""
        return self.note is None and self._recorder(inputs) is not None and not _is_captured(inputs)

    def _recorder(self, inputs: Sequence[Any]) -> Callable[..., Recording] | None:
        if self._recording is not None:
            return self._recording
        return CudaRecording if _on_cuda(inputs) else None

    def _eagerly(self, inputs: Sequence[Any], before: Snapshot | None) -> tuple[Tensor, ...]:
        """before: where there are recordings, without whose memory the call may have enough."""
        try:
            return self._function(*inputs)
        except torch.OutOfMemoryError:
            if not self._recordings or before is None:
                raise
        self._give_up("no memory is left beside it")
        before.put_back()
        return self._function(*inputs)

    def _record(
        self, kind: Hashable, inputs: Sequence[Any], outputs: Sequence[Tensor], before: Snapshot
    ) -> None:
        """Keeps a recording, if its replay agrees with the outputs of the eager call, which has been made: a
        recording holds the memory of a whole call. before: of that call."""
        obstacle = self._obstacle()
        if obstacle is not None:
            self._give_up(obstacle)
            return
        recorder = self._recorder(inputs)
        assert recorder is not None
        while len(self._recordings) >= self._limit:
            self._recordings.popitem(last=False)
        after = self._snapshot()
        try:
            before.check()
            before.put_back()
            recording = recorder(self._function, inputs, self._pool())
            before.put_back()
            wrong = self._differ(recording.replay(inputs, lend=True), outputs)
        except Exception as error:  # whatever a model does that a graph cannot
            wrong = brief(error)
        finally:
            after.put_back()
        if wrong is None:
            self._known = self._depends()
            self._recordings[kind] = recording
        else:
            self._give_up(wrong)

    def _pool(self) -> Any:
        """That of the recordings. Once all have gone it has, too."""
        return next((recording.pool for recording in self._recordings.values()), None)

    def _give_up(self, reason: str) -> None:
        self.clear()
        self.note = f"runs without a CUDA graph: {reason}"
        warn(f"{self._what} {self.note}")


def _on_cuda(inputs: Sequence[Any]) -> bool:
    return any(isinstance(i, Tensor) and i.is_cuda for i in inputs)


def _is_captured(inputs: Sequence[Any]) -> bool:
    return _on_cuda(inputs) and torch.cuda.is_current_stream_capturing()


def _kind(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return type(value), value
