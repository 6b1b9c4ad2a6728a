"""Importing the package is light, and the versions that it states agree."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import roli_fast

ROOT = Path(__file__).resolve().parents[2]


def test_the_import_loads_nothing_heavy():
    code = "import sys, roli_fast; print([m for m in ('torch', 'timm', 'scipy', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_one_version():
    assert roli_fast.__version__ == metadata.version("roli-fast")
    assert f'version = "{roli_fast.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert re.search(rf"^## {re.escape(roli_fast.__version__)}", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_every_public_name_resolves():
    for name in roli_fast.__all__:
        assert getattr(roli_fast, name) is not None
    assert set(roli_fast.__all__) <= set(dir(roli_fast))


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(roli_fast, "nonsense")
