"""What a result says of where it comes from."""

import sys

import pytest

from roli_fast.speed import machine


def test_the_machine_is_described_without_native_code(monkeypatch):
    monkeypatch.setitem(sys.modules, "roli_fast._C", None)
    monkeypatch.delattr("roli_fast._C", raising=False)
    described = machine.describe("cpu")
    assert described["build"] is None
    assert described["cpu"]
    assert machine.slug("cpu").strip("-")


def test_an_installed_package_takes_no_other_repository_for_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    assert machine.commit() == {"id": None, "dirty": None}


def test_a_processor_without_a_model_name_has_a_name(monkeypatch):
    def no_file(*_):
        raise FileNotFoundError

    monkeypatch.setattr(machine.Path, "read_text", no_file)
    assert machine.cpu_name.__wrapped__()


@pytest.mark.parametrize("package", ["torch", "no-such-package"])
def test_versions(package):
    assert (machine.version(package) is None) == (package == "no-such-package")
