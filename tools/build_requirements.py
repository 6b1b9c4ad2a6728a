"""Prints what pyproject.toml says is needed to build, one requirement a line."""

from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

pyproject = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
print("\n".join(pyproject["build-system"]["requires"]))
