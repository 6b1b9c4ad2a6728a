"""Every instruction set computes the same bits, which are the reference's."""

from pathlib import Path

import pytest
import torch

import roli_fast
from roli_fast import _C

from .digest import computed

ROOT = Path(__file__).resolve().parents[2]
WIDTH = {"baseline": 0, "avx2": 1, "avx512": 2}


def runs_here(capability):
    """By torch's own account of the processor."""
    widest = torch.backends.cpu.get_cpu_capability()
    return WIDTH[capability] <= {"AVX2": 1, "AVX512": 2}.get(widest, 0)


@pytest.fixture(scope="module")
def reference():
    with roli_fast.backend("reference"):
        return computed()


@pytest.mark.parametrize("capability", _C.build_config()["cpu_capabilities"])
def test_same_bits(capability, answer, reference):
    if not runs_here(capability):
        pytest.skip(f"this processor has no {capability}")
    if capability == _C.cpu_capability():
        digests = computed()
    else:
        script = "import runpy; runpy.run_module('tests.native.digest', run_name='__main__')"
        found = answer(script, env={"ROLI_FAST_CPU_CAPABILITY": capability}, cwd=ROOT)
        assert found["capability"] == capability
        digests = found["digests"]
    assert digests.keys() == reference.keys()
    assert [case for case in reference if digests[case] != reference[case]] == []


def test_the_widest_is_the_default():
    assert _C.cpu_capability() == max(filter(runs_here, WIDTH), key=WIDTH.get)


def test_an_empty_choice_is_none(answer):
    code = "from roli_fast import _C; print(f'\"{_C.cpu_capability()}\"')"
    assert answer(code, env={"ROLI_FAST_CPU_CAPABILITY": ""}) == _C.cpu_capability()


def test_an_unknown_one_is_refused_at_import(fresh):
    done = fresh("import roli_fast.ops", env={"ROLI_FAST_CPU_CAPABILITY": "sse9"})
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert "ROLI_FAST_CPU_CAPABILITY" in message
    assert "'sse9'" in message
    assert all(capability in message for capability in filter(runs_here, WIDTH))
