"""Tasks that need others, in one process or in several."""

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from roli_fast.speed import machine

Perform = Callable[[Any], None]
Done = tuple[Any, str | None, float]  # a task, its error, seconds


def run_all(tasks: Sequence[Any], perform: Perform, jobs: int) -> list[str]:
    """Does what can be done, and says what has failed. What failed counts as done for those that need it:
    they choose among what there is.

    tasks: hashable, with the tasks that each needs in ``needs``. Those that are to be done, too, come
        before it; the others have been done."""
    failed = []
    done = _one_by_one(tasks, perform) if jobs == 1 else _by_processes(tasks, perform, jobs)
    for number, (task, error, seconds) in enumerate(done, start=1):
        print(f"[{number}/{len(tasks)}] {task}: {error or f'{seconds:.1f} s'}", flush=True)
        failed += [str(task)] if error else []
    return failed


def _one_by_one(tasks: Sequence[Any], perform: Perform) -> Iterator[Done]:
    for task in tasks:
        begin = time.perf_counter()
        yield task, attempt(perform, task), time.perf_counter() - begin


def attempt(perform: Perform, task: Any) -> str | None:
    """The error, as one line."""
    try:
        perform(task)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


class _Worker:
    """A process that does task after task, until one fails: that may have left a CUDA context broken."""

    def __init__(self, perform: Perform, threads: int):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, perform, threads), daemon=True)
        self.process.start()
        theirs.close()  # so that its end is seen here

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, perform: Perform, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback from each
    torch.set_num_threads(threads)
    error = None
    while error is None:
        try:
            task = connection.recv()
        except EOFError:  # nobody is left who asks
            return
        error = attempt(perform, task)
        connection.send(error)


def _by_processes(tasks: Sequence[Any], perform: Perform, jobs: int) -> Iterator[Done]:
    """In the order given, but what has to wait lets others pass."""
    waiting, unsettled = list(tasks), set(tasks)
    idle: list[_Worker] = []
    busy: dict[Connection, tuple[_Worker, Any, float]] = {}
    threads = max(1, machine.cores() // jobs)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        while waiting or busy:
            for task in [t for t in waiting if unsettled.isdisjoint(t.needs)][: jobs - len(busy)]:
                waiting.remove(task)
                worker = idle.pop() if idle else _Worker(perform, threads)
                worker.connection.send(task)
                busy[worker.connection] = worker, task, time.perf_counter()
            for connection in wait(list(busy)):
                worker, task, begin = busy.pop(connection)  # type: ignore[index]
                error = _answer(worker)
                if error is None:
                    idle.append(worker)
                else:
                    worker.stop()
                unsettled.remove(task)
                yield task, error, time.perf_counter() - begin
    finally:
        for worker in [*idle, *(worker for worker, _, _ in busy.values())]:
            worker.stop()
        signal.signal(signal.SIGTERM, before)


def _answer(worker: _Worker) -> str | None:
    try:
        return worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        return f"its process ended with {worker.process.exitcode}"
