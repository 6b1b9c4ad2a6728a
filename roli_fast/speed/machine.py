"""The machine and the software of a benchmark. Nothing here names a person, a host or a path."""

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

_ROOT = Path(__file__).parents[2]
_UNKNOWN_CACHE = 64 * 2**20


@functools.cache
def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slug(device: str) -> str:
    """The machine as part of a file's name: amd-epyc-2-cores-avx512, nvidia-h200."""
    if device == "cuda":  # said of a build that has failed, too
        name = torch.cuda.get_device_name()
    else:
        name = f"{cpu_name()} {cores()} cores {_native()['instruction_set'] or ''}"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")


def caches() -> dict[str, int]:
    """The size in bytes of each data cache that the first core sees, by level. Empty if the system does not
    say."""
    found = {}
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((cache / part).read_text().strip() for part in ("level", "type", "size"))
        if kind != "Instruction":
            found[f"L{level}"] = int(size.removesuffix("K")) * 1024
    return found


def last_level_cache(device: str) -> int:
    if device == "cuda":
        return torch.cuda.get_device_properties().L2_cache_size
    return max(caches().values(), default=_UNKNOWN_CACHE)


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def describe(device: str) -> dict[str, Any]:
    import roli_fast

    native = _native()
    return {
        "gpu": _describe_gpu() if device == "cuda" else None,
        "cpu": cpu_name(),
        "cores": cores(),
        "instruction_set": native["instruction_set"],
        "caches": caches(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": version("triton"),
            "roli_fast": roli_fast.__version__,
        },
        "build": native["build"],
    }


def _native() -> dict[str, Any]:
    try:
        from roli_fast import _C
    except ImportError:  # installed without a compiler
        return {"instruction_set": None, "build": None}
    return {"instruction_set": _C.cpu_capability(), "build": _C.build_config()}


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _describe_gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties()
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "l2": properties.L2_cache_size,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }


def _git(*arguments: str) -> str | None:
    if not (_ROOT / ".git").exists():  # installed, perhaps inside somebody else's repository
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def commit() -> dict[str, Any]:
    """The commit, and whether the working tree differs from it in anything except results."""
    changes = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {"id": _git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def busy_seconds() -> tuple[float, float] | None:
    """The core-seconds spent so far by the whole machine (including what its host has taken), and by this
    process.

    None if the system does not say.
    """
    try:
        user, nice, system, _idle, _wait, *interrupts_and_theft = _proc_stat()[:8]
    except OSError:
        return None
    own = os.times()
    ticks = user + nice + system + sum(interrupts_and_theft)
    return ticks / os.sysconf("SC_CLK_TCK"), own.user + own.system


def _proc_stat() -> list[int]:
    return [int(ticks) for ticks in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
