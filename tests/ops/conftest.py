import contextlib

import pytest
import torch

import roli_fast

from . import device
from .cases import OPS


def names():
    """All backends that take CPU tensors, those that are missing here too."""
    return [name for name, backend in roli_fast.backends().items() if {"cpu", "any"} & {*backend.devices}]


def on_a_gpu():
    """Nothing where there is none: thousands of tests would only be skipped."""
    return [
        pytest.param((name, "cuda"), id=f"{name}-on-cuda", marks=pytest.mark.gpu)
        for name in ("cuda", "triton", "reference")
        if torch.cuda.is_available()
    ]


def everywhere():
    return [pytest.param((name, "cpu"), id=name) for name in names()] + on_a_gpu()


@contextlib.contextmanager
def chosen(name, device_type, monkeypatch):
    """Runs the ops on a backend and a device, to which CPU tensors are moved for the call."""
    missing = roli_fast.backends()[name].missing
    if missing:
        pytest.skip(missing)
    if device_type != "cpu":
        for op in OPS:
            moved = device.elsewhere(getattr(roli_fast.ops, op.name), device_type)
            monkeypatch.setattr(roli_fast.ops, op.name, moved)
    with roli_fast.backend(name):
        yield


@pytest.fixture(params=everywhere())
def backend(request, monkeypatch):
    """Runs the test once on every backend, on every device that it runs on."""
    name, device_type = request.param
    with chosen(name, device_type, monkeypatch):
        yield name


@pytest.fixture(params=[*(pytest.param((name, "cpu"), id=name) for name in names()), *on_a_gpu()[:1]])
def guard(request, monkeypatch):
    """Runs the test once on everything that checks arguments: on a GPU, the others share their check with the
    CPU's."""
    name, device_type = request.param
    with chosen(name, device_type, monkeypatch):
        yield name


@pytest.fixture(params=names())
def backend_on_cpu(request, monkeypatch):
    """Runs the test once on every backend that takes CPU tensors; the test makes them itself."""
    with chosen(request.param, "cpu", monkeypatch):
        yield request.param


def every_way(request, monkeypatch):
    """call(op, **arguments) by roli_fast.ops on a backend, or by the torch op where none is named; all that
    it computes."""
    name, device_type = request.param
    if name is None:
        yield lambda op, **given: op.results(device.elsewhere(op.torch_op, device_type)(**given), given)
        return
    with chosen(name, device_type, monkeypatch):
        yield lambda op, **given: op(**given)


TORCH_OPS = [pytest.param((None, "cpu"), id="torch.ops")]
if torch.cuda.is_available():
    TORCH_OPS.append(pytest.param((None, "cuda"), id="torch.ops-on-cuda", marks=pytest.mark.gpu))


@pytest.fixture(params=[*everywhere(), *TORCH_OPS])
def call(request, monkeypatch):
    """call(op, **arguments) by every way to an op, on every device."""
    yield from every_way(request, monkeypatch)


@pytest.fixture(params=[*((pytest.param((name, "cpu"), id=name)) for name in names()), TORCH_OPS[0]])
def call_on_cpu(request, monkeypatch):
    """The same with CPU tensors alone; the test makes them itself."""
    yield from every_way(request, monkeypatch)


# Triton's interpreter takes minutes for what the contract says of all layouts and lengths, and for a million
# draws. Without the slow tests, it shows what it computes: any call, on every dtype, against the reference.
# Of a twin, which is its op on a copy, it shows nothing.
SHOWN_BY_THE_INTERPRETER = {
    "test_contract.py": (
        "test_agrees_with_the_reference",
        "test_every_dtype",
        "test_inactive_samples_keep_their_bits",
        "test_nothing_to_do",
    ),
    "test_random_start.py": (
        "test_draws_are_philox_of_seed_index_and_element",
        "test_draws_belong_to_the_sample",
        "test_draws_of_more_elements_begin_alike",
    ),
    "test_compile.py": ("test_fullgraph_of_the_torch_op", "test_inductor"),
}


def _is_interpreted(item):
    parameters = getattr(item, "callspec", None)
    # "triton", or with the device beside it; other parameters may be tensors, which compare by element.
    return any(
        isinstance(value, (str, tuple)) and value in ("triton", ("triton", "cpu"))
        for value in (parameters.params.values() if parameters else ())
    )


def pytest_collection_modifyitems(items):
    for item in items:
        shown = SHOWN_BY_THE_INTERPRETER.get(item.path.name)
        if shown is not None and _is_interpreted(item):
            op = item.callspec.params.get("op")
            if item.originalname not in shown or (op is not None and op.twin):
                item.add_marker(pytest.mark.slow)
