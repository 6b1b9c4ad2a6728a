"""``roli-fast doctor``: everything that a bug report needs, on one screen."""

import argparse
import importlib
import os
import platform
import sys

import torch
from rich.console import Console
from rich.table import Table

from ..speed import machine

_PACKAGES = ("roli-fast", "torch", "torchvision", "timm", "triton", "numpy", "scipy", "pybind11", "ninja")
_VARIABLES = (
    "ROLI_FAST_BACKEND",
    "ROLI_FAST_CPU_CAPABILITY",
    "TRITON_INTERPRET",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # it has none


def run(arguments: argparse.Namespace) -> None:
    del arguments
    console = Console(width=None if sys.stdout.isatty() else 200)  # reasons in one line, for a bug report
    for title, rows in (("system", _system()), ("devices", _devices()), ("native build", _native())):
        _print(console, title, rows)
    _print(console, "backends", _backends())


def _print(console: Console, title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _system() -> list[tuple[str, str]]:
    rows = [("python", f"{platform.python_version()}, {platform.platform()}")]
    rows += [(package, machine.version(package) or "not installed") for package in _PACKAGES]
    return rows + [(name, os.environ[name]) for name in _VARIABLES if name in os.environ]


def _devices() -> list[tuple[str, str]]:
    rows = [
        ("cpu", f"{machine.cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads in torch"),
        ("torch's capability", torch.backends.cpu.get_cpu_capability()),
    ]
    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = (
            f"torch is built for CUDA {built}, but sees no device" if built else "torch is built without CUDA"
        )
        return [*rows, ("cuda", f"none: {reason}")]
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        rows.append((f"cuda:{i}", f"{properties.name}, sm_{properties.major}{properties.minor}, {memory}"))
    return rows


def _native() -> list[tuple[str, str]]:
    try:
        native = importlib.import_module("roli_fast._C")
    except ImportError as error:
        return [("roli_fast._C", f"missing: {error}")]
    rows = [
        (name, value if isinstance(value, str) else ", ".join(value))
        for name, value in native.build_config().items()
    ]
    try:
        return [*rows, ("cpu capability in use", native.cpu_capability())]
    except RuntimeError as error:
        return [*rows, ("cpu capability in use", f"none: {error}")]


def _backends() -> list[tuple[str, str]]:
    try:
        from ..ops import backends
    except ImportError as error:
        return [("none", str(error))]
    rows = []
    for name, backend in backends().items():
        if backend.missing:
            rows.append((name, f"missing: {backend.missing}"))
            continue
        default = f", default for {', '.join(backend.default_for)}" if backend.default_for else ""
        rows.append((name, f"runs on {', '.join(backend.devices)}{default}"))
    return rows
