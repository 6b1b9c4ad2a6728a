"""The same bits on any number of threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from ..ops.cases import BY_NAME, LAYOUTS, OPS, arguments, assert_same_bits
from ..selection import few

SHAPE = (3, 3, 190, 205)  # more than one piece for each thread, and none of a round length


@pytest.fixture
def threads():
    """Sets torch's number of threads, and restores it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("op", "layout"), few(OPS, LAYOUTS), ids=lambda of: getattr(of, "name", None) or of.__name__
)
def test_any_number_of_threads(op, layout, threads):
    results = []
    for count in (1, 2, 5):
        threads(count)
        given = arguments(op, SHAPE)
        given |= {name: layout(given[name]) for name in op.tensors}
        given |= {name: torch.tensor([0.01, 0.02, 0.3]) for name in op.sizes}
        results.append(op(**given))
    for result in results[1:]:
        assert_same_bits(result, results[0])


def test_out_on_any_number_of_threads(threads):
    step, by = BY_NAME["linf_step_"], arguments(BY_NAME["prepare"], SHAPE)
    outs = []
    for count in (1, 2, 5):
        threads(count)
        out = torch.empty(SHAPE, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        step(**arguments(step, SHAPE), out=out, mean=by["mean"], std=by["std"])
        outs.append(out)
    for out in outs[1:]:
        assert_same_bits(out, outs[0])


def test_calls_from_several_threads_at_once():
    """Ops keep no state of their own."""
    step = BY_NAME["linf_step_"]
    expected = step(**arguments(step, SHAPE))
    given = [arguments(step, SHAPE) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda one: step(**one), given):
            assert_same_bits(result, expected)
