import json
import os
import subprocess
import sys

import pytest

import roli_fast


@pytest.fixture(autouse=True)
def native():
    """Without the library there is nothing to test here; that is an error unless it was asked for."""
    missing = roli_fast.backends()["cpu"].missing
    if missing and os.environ.get("ROLI_FAST_NATIVE") == "0":
        pytest.skip(missing)
    assert missing is None


@pytest.fixture(scope="session")
def python():
    """Runs Python code or a file in a process of its own, with environment variables."""

    def run(*command, **options):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ROLI_FAST_")}
        environment |= options.pop("env", {})
        return subprocess.run(
            [sys.executable, *map(str, command)],
            env=environment,
            capture_output=True,
            text=True,
            **{"timeout": 300} | options,
        )

    return run


@pytest.fixture(scope="session")
def answer(fresh):
    """What code printed in a process of its own, as JSON."""

    def run(code, **options):
        done = fresh(code, **options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
