import contextlib
from pathlib import Path

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
        for op in (*(op.name for op in OPS), "cross_entropy"):
            moved = device.elsewhere(getattr(roli_fast.ops, op), device_type)
            monkeypatch.setattr(roli_fast.ops, op, moved)
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


# Triton's interpreter takes seconds for a call where others take microseconds. Without the slow tests it
# shows that each op computes what it should, and all else of those that go by element alone. Of a twin,
# which is its op on a copy, it shows nothing.
#
# Of these files no more than:
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
    "test_l1.py": ("test_vertices_and_faces",),
    "test_l2.py": ("test_triangles", "test_samples_do_not_meet"),
    "test_momentum.py": ("test_simple_values", "test_without_a_gradient_momentum_decays"),
}
# Of an op that looks at whole samples no more than:
SHOWN_OF_WHOLE_SAMPLES = (
    "test_agrees_with_the_reference",
    "test_nothing_to_do",
    "test_nan_stays_where_it_was",
    "test_refusals",
    "test_every_op_refuses_shared_memory",
)
LONG_FOR_THE_INTERPRETER = (
    "test_rounding_of_out",  # as test_rounding_of_prepare
    "test_random_windows",
    "test_is_the_formula",
    "test_many_channels_in_the_last_dimension",
)
# Strides and memory are torch's matter where the formula is written in torch.
LONG_FOR_THE_REFERENCE = (
    "test_any_layout_of_any_argument",
    "test_any_layout_in_any_rank",
    "test_layouts_of_images",
    "test_nothing_is_read_or_written_past_the_end",
    "test_writes_stay_inside_the_view",
    "test_every_length",
    "test_every_combination_of_dtypes",
    "test_out_is_normalised_channel_by_channel",
)
# The check of arguments is one for all backends, who only have to ask it: one op's refusals show that.
CHECKED_ALIKE = ("test_refusals",)


def _runs(item, backend):
    parameters = getattr(item, "callspec", None)
    # The name, or with the device beside it; other parameters may be tensors, which compare by element.
    return any(
        isinstance(value, (str, tuple)) and value in (backend, (backend, "cpu"))
        for value in (parameters.params.values() if parameters else ())
    )


def _is_long_for_the_interpreter(item):
    name, parameters = item.originalname, item.callspec.params
    if name in LONG_FOR_THE_INTERPRETER or name not in SHOWN_BY_THE_INTERPRETER.get(item.path.name, (name,)):
        return True
    op = parameters.get("op")
    if op is None:
        return parameters.get("norm", "linf") != "linf"
    return op.twin or (op.agrees is not None and name not in SHOWN_OF_WHOLE_SAMPLES)


def _is_checked_alike(item):
    return (
        item.originalname in CHECKED_ALIKE
        and not _runs(item, "cpu")
        and item.callspec.params["bads"][0].op.name != "linf_step_"
    )


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if item.path.parent != here:
            continue
        if (
            (_runs(item, "triton") and _is_long_for_the_interpreter(item))
            or (_runs(item, "reference") and item.originalname in LONG_FOR_THE_REFERENCE)
            or _is_checked_alike(item)
        ):
            item.add_marker(pytest.mark.slow)
