"""A face brings none of the libraries that it stands for, nor one of models."""


def test_no_peer_is_imported_nor_needed(fresh):
    """A face is there once it is named, and all of them without the libraries. Neither they nor what they
    stand on, the attacks and the ops, load timm, which takes seconds."""
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
print([name for name in (*peers, "timm", "torchvision", "scipy") if name in sys.modules])
print({"roli_fast.ops", "roli_fast.attacks"} <= {*sys.modules})
"""
    done = fresh(code)
    assert done.returncode == 0, done.stderr
    named, unknown, refusal, found, complete = done.stdout.splitlines()
    assert named == "roli_fast.compat.torchattacks FastGradientMethod"
    assert unknown == "module 'roli_fast.compat' has no attribute 'advertorch'"
    assert refusal.startswith("attack: got builtins.object, accepted: an attack of torchattacks, ")
    assert found == "[]"
    assert complete == "True"
