"""Writing files so that each is either complete or not there at all."""

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from .checks import refuse

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"  # how the name of an interrupted write ends


def check_name(argument: str, path: str | Path) -> None:
    """Raises ValueError for a path that is no UTF-8: safetensors and TensorBoard write none there."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        refuse(argument, f"{str(path)!r}, which is no UTF-8", "a path that is")


def read_json(path: Path) -> Any:
    """Reads a JSON file. If it cannot be read, raises ValueError, which names the file."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"folder: {path} cannot be read ({error}), accepted: another folder") from error


def write_json(path: Path, content: Any, *, allow_nan: bool = True) -> None:
    """Writes JSON like :func:`write`. Raises ValueError for numbers that are not finite, unless they are
    allowed."""
    write(path, f"{json.dumps(content, indent=1, allow_nan=allow_nan)}\n".encode())


def locked(path: Path) -> BinaryIO:
    """Opens a file that only one process can hold at a time, until it closes the file or ends. Where the
    system has no such locks (Windows, some network file systems), any number of processes can hold it.

    Raises ValueError if another process holds it.
    """
    file = path.open("ab")
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(
            f"folder: got {path.parent}, in which another run is at work, accepted: another folder, or wait"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            file.close()
            raise
    return file


def write(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Writes a file, which is on the disk when this returns. If anything fails, the earlier file stays as it
    was.

    content: bytes, or a function that writes them to an open file.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
