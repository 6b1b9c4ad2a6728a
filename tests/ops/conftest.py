import contextlib

import pytest

import roli_fast


def names():
    """All backends that take CPU tensors, those that are missing here too."""
    return [name for name, backend in roli_fast.backends().items() if {"cpu", "any"} & {*backend.devices}]


def chosen(name):
    missing = roli_fast.backends()[name].missing
    if missing:
        pytest.skip(missing)
    return roli_fast.backend(name)


@pytest.fixture(params=names())
def backend(request):
    """Runs the test once on every backend."""
    with chosen(request.param):
        yield request.param


@pytest.fixture(params=[*names(), "torch.ops"])
def call(request):
    """call(op, **arguments) by every way to an op: roli_fast.ops on each backend, and the torch op."""
    if request.param == "torch.ops":
        choice, function = contextlib.nullcontext(), lambda op, **given: op.torch_op(**given)
    else:
        choice, function = chosen(request.param), lambda op, **given: op(**given)
    with choice:
        yield function
