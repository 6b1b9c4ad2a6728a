"""A pytest plugin that writes down how each test went as soon as it has: what is known when a run is killed.

``pytest -p outcomes``, with this folder in PYTHONPATH and a file's name in ROLI_FAST_OUTCOMES. Tests of
Triton, which compiles for each of them, come last.
"""

import os
from pathlib import Path
from typing import Any

import pytest

FILE = Path(os.environ["ROLI_FAST_OUTCOMES"])


def _is_a_worker(config: pytest.Config) -> bool:
    """Of pytest-xdist, whose head hears of the same tests."""
    return hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    if not _is_a_worker(config):
        config.pluginmanager.register(_Writer())


def pytest_collection_modifyitems(items: list[Any]) -> None:
    items.sort(key=lambda item: "triton" in item.nodeid.lower())


class _Writer:
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write("started", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self._write(report.outcome, report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write("failed", report.nodeid)

    def _write(self, outcome: str, test: str) -> None:
        with FILE.open("a") as file:
            file.write(f"{outcome} {test}\n")
