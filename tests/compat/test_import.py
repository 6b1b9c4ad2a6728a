"""A face brings none of the libraries that it stands for."""

import subprocess
import sys


def test_no_peer_is_imported_nor_needed():
    """A face is there once it is named, and all of them without the libraries."""
    code = """
import sys, roli_fast
print(roli_fast.compat.torchattacks.__name__, roli_fast.compat.art.FastGradientMethod.__name__)
try:
    roli_fast.compat.advertorch
except AttributeError as error:
    print(error)
import roli_fast.compat.torchattacks, roli_fast.compat.foolbox, roli_fast.compat.art
import roli_fast.compat.cleverhans, roli_fast.compat.autoattack
try:
    roli_fast.accelerate(object())
except ValueError as error:
    print(error)
peers = ("torchattacks", "foolbox", "eagerpy", "art", "autoattack", "cleverhans", "sklearn", "pandas")
print([name for name in peers if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    named, unknown, refusal, found = done.stdout.splitlines()
    assert named == "roli_fast.compat.torchattacks FastGradientMethod"
    assert unknown == "module 'roli_fast.compat' has no attribute 'advertorch'"
    assert refusal.startswith("attack: got builtins.object, accepted: an attack of torchattacks, ")
    assert found == "[]"
