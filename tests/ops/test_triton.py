"""What is Triton's own."""

import os
import subprocess
import sys

import pytest
import torch

import roli_fast

from .cases import arguments, assert_same_bits, each_op


@pytest.mark.skipif(roli_fast.backends()["triton"].missing is not None, reason="Triton cannot run here")
@each_op
def test_places_of_64_bits(op, monkeypatch):
    """As for more than 2^31 elements: over several programs, in samples of whole fours and of others."""
    from roli_fast.kernels import layout

    monkeypatch.setattr(layout, "WIDE_FROM", 0)
    for shape in [(2, 3, 100, 100), (3, 3, 101, 77)]:
        with roli_fast.backend("triton"):
            got = op(**arguments(op, shape))
        assert_same_bits(got, op(**arguments(op, shape)))


def test_the_last_program_of_32_bits_ends_within_them():
    from roli_fast.kernels import layout

    programs = -(-(layout.WIDE_FROM - 1) // layout.BLOCK)
    assert programs * layout.BLOCK - 1 < 2**31


@pytest.mark.parametrize("value", ["1", "true", "ON", "0", "off", ""])
def test_the_interpreter_is_recognised_as_triton_does(value):
    code = (
        "import roli_fast, triton; "
        "print(roli_fast.backends()['triton'].devices == ('cpu',), triton.knobs.runtime.interpret)"
    )
    environment = {**os.environ, "TRITON_INTERPRET": value}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() in (["True"] * 2, ["False"] * 2), done.stdout + done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_how_to_run_it():
    code = "import roli_fast; print(roli_fast.backends()['triton'].missing)"
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "TRITON_INTERPRET=1" in done.stdout
