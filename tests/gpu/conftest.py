import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def python():
    """Runs Python in a process of its own, in which Triton compiles; returns what it printed."""

    def run(*command, **options):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("ROLI_FAST_", "TRITON_"))}
        environment |= options.pop("env", {})
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run
