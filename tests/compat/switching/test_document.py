"""docs/switching.md itself: its table of what changes with the switch has a test for each row."""

import importlib
import re
from pathlib import Path

import pytest

import roli_fast.compat.cleverhans as cleverhans
import roli_fast.compat.torchattacks as torchattacks
from roli_fast.compat import art

from .faces import DOCUMENT, ROWS


def test_every_row_has_its_test():
    table = DOCUMENT.read_text().partition("## What changes")[2]
    titles = re.findall(r"^\| ([^|]+?) \|", table, re.M)
    assert titles[0] == "what"
    for module in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(f".{module.stem}", __package__)
    assert sorted(titles[1:]) == sorted(ROWS)


def test_the_imports_of_the_document_work():
    (block,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)
    exec(block, {})


def test_an_import_that_is_refused_without_a_reason():
    """As the document says: Python keeps what the module would say."""
    assert "is a plain ImportError" in DOCUMENT.read_text()
    with pytest.raises(ImportError, match="cannot import name 'CarliniL2Method'") as caught:
        exec("from roli_fast.compat.art import CarliniL2Method", {})
    assert "accepted" not in str(caught.value)
    with pytest.raises(AttributeError, match="got 'CarliniL2Method', accepted: "):
        _ = art.CarliniL2Method


def test_what_is_covered_is_what_there_is():
    text = DOCUMENT.read_text()
    for module in (torchattacks, art, cleverhans):
        for name in module.__all__:
            assert name in text, name
