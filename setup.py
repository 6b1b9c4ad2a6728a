"""Hands CMakeLists.txt to pip and says where the packages lie. The rest stands in pyproject.toml."""

import os

from setuptools import find_packages

native = os.environ.get("ROLI_FAST_NATIVE", "1")
if native not in ("0", "1"):
    raise SystemExit(f"ROLI_FAST_NATIVE: got {native!r}, accepted: 0 (no compiler needed), 1 (the default)")

layout = {
    "packages": [*find_packages(include=["roli_fast*"]), "roli_fast.kernels"],
    "package_dir": {"roli_fast.kernels": "kernels"},
}

if native == "1":
    from scikit_build_core.setuptools.wrapper import setup

    setup(cmake_source_dir=".", **layout)
else:
    from setuptools import setup

    setup(**layout)
