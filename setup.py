"""Hands CMakeLists.txt to pip. Everything else about the package stands in pyproject.toml."""

import os

native = os.environ.get("ROLI_FAST_NATIVE", "1")
if native not in ("0", "1"):
    raise SystemExit(f"ROLI_FAST_NATIVE: got {native!r}, accepted: 0 (no compiler needed), 1 (the default)")

if native == "1":
    from scikit_build_core.setuptools.wrapper import setup

    setup(cmake_source_dir=".")
else:
    from setuptools import setup

    setup()
