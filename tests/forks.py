"""Python code in processes of their own, forked from one that has imported torch, which takes seconds."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

SERVER = """
import json, os, signal, sys
import torch

for line in sys.stdin:
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
signal.alarm(300)
for descriptor, path in enumerate((os.devnull, *request["outputs"])):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), descriptor)
os.chdir(request["cwd"])
os.environ.clear()
os.environ.update(request["env"])
sys.path[1:1] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})
"""


class Forks:
    """Calls run code as ``python -c`` does, after torch's import; returning what it printed."""

    def __init__(self, folder: Path, server: subprocess.Popen) -> None:
        self._outputs = [str(folder / "stdout"), str(folder / "stderr")]
        self._server = server

    def __call__(
        self, code: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess:
        """env: beside the environment of now, without variables of roli_fast's."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ROLI_FAST_")} | (env or {})
        request = {"code": code, "env": environment, "cwd": str(cwd or Path.cwd()), "outputs": self._outputs}
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        return subprocess.CompletedProcess("-c", status, *(Path(path).read_text() for path in self._outputs))


@contextlib.contextmanager
def forks(folder: Path) -> Iterator[Forks]:
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield Forks(folder, server)


def forked(*calls: Callable[[], object]) -> list[int]:
    """Makes the calls at the same time, each in a fork of this process, and says how these ended: with a
    status, or by a signal, which is negative. Such a process has all that was imported and changed here."""
    children = []
    for call in calls:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.alarm(300)
                torch.set_num_threads(1)  # a fork has none of the threads that others would work in
                call()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
