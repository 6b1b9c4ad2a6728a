"""Prints what pyproject.toml says is needed to build, and for the extras that are named; one a line."""

import sys
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

pyproject = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
needed = list(pyproject["build-system"]["requires"])
for extra in sys.argv[1:]:
    needed += pyproject["project"]["optional-dependencies"][extra]
print("\n".join(line for line in needed if not line.startswith("roli-fast")))
