"""The loss that attacks increase, and its slope."""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import roli_fast
from roli_fast import ops

from .cases import INF, LAYOUTS, NAN, STATES, assert_same_bits, examples, numbers, spaced

LEAST = 2.0**-60


def exact(row, label):
    """Loss and slope of a row of finite logits, by as many digits as they need."""
    with mpmath.workdps(60):
        ratios = [mpmath.exp(mpmath.mpf(x) - mpmath.mpf(row[label])) for c, x in enumerate(row) if c != label]
        others = mpmath.fsum(ratios)
        loss = mpmath.log1p(others)
        length = max(others / (1 + others), mpmath.mpf(LEAST)) if ratios else 0
        slope = [length * ratio / others for ratio in ratios]
        slope.insert(label, -length)
        return float(loss), [float(x) for x in slope]


def assert_exact(logits, labels):
    loss, slope = ops.cross_entropy(logits, labels)
    assert loss.dtype == torch.float64
    assert slope.dtype == logits.dtype
    ideal = [exact(row, label) for row, label in zip(logits.tolist(), labels.tolist(), strict=True)]
    losses = torch.tensor([one for one, _ in ideal], dtype=torch.float64)
    slopes = torch.tensor([one for _, one in ideal], dtype=torch.float64).reshape(logits.shape)
    torch.testing.assert_close(loss, losses, rtol=1e-13, atol=1e-300)
    rounding = 1e-13 if logits.dtype == torch.float64 else 2.0**-23
    least = torch.finfo(logits.dtype).smallest_normal
    torch.testing.assert_close(slope.double(), slopes, rtol=rounding, atol=least)


@st.composite
def batches(draw):
    """Logits of which few are far from all others, as of sure models."""
    dtype = draw(st.sampled_from(STATES))
    near, far = numbers(dtype, min_value=-4, max_value=4), numbers(dtype, min_value=-800, max_value=800)
    classes = draw(st.integers(1, 12))
    row = st.lists(near | far, min_size=classes, max_size=classes)
    rows = draw(st.lists(st.tuples(row, st.integers(0, classes - 1)), min_size=1, max_size=4))
    return torch.tensor([row for row, _ in rows], dtype=dtype), torch.tensor([label for _, label in rows])


def test_is_exact(backend):
    @examples(backend)
    @given(batch=batches())
    def check(batch):
        assert_exact(*batch)

    check()


def test_is_torchs_where_it_is_exact(backend):
    logits = torch.randn(7, 10, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(10, (7,))
    expected = F.cross_entropy(logits, labels, reduction="none")
    (expected_slope,) = torch.autograd.grad(expected.sum(), logits)
    loss, slope = ops.cross_entropy(logits.detach(), labels)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(slope, expected_slope)


@pytest.mark.parametrize("classes", [31, 32, 33, 1000, 1024, 1025, 5000])
def test_many_classes(backend, classes, monkeypatch):
    if backend == "triton":
        from roli_fast.kernels import layout

        monkeypatch.setattr(layout, "BLOCK", 512)  # so that the interpreter goes over a row in blocks, too
    random = torch.Generator().manual_seed(classes)
    logits = torch.randn(3, classes, generator=random) * torch.tensor([[1.0], [10.0], [100.0]])
    assert_exact(logits, torch.tensor([0, classes - 1, classes // 2]))


@pytest.mark.parametrize(
    ("row", "loss", "slope"),
    [
        ([-INF, 0.0, 0.0], INF, [-1, 0.5, 0.5]),
        ([0.0, INF, 1.0], INF, None),
        ([INF, 0.0, 0.0], 0.0, [-LEAST, LEAST / 2, LEAST / 2]),
        ([0.0, -INF, -INF], 0.0, [0, 0, 0]),
        ([0.0, 0.0, -INF], math.log(2), [-0.5, 0.5, 0]),
        ([3.0], 0.0, [0]),
        ([-1e38, 1e38, -INF], 2e38, [-1, 1, 0]),
        ([NAN, 0.0, 0.0], NAN, [NAN] * 3),
        ([0.0, NAN, 0.0], NAN, [NAN] * 3),
        ([0.0, -INF, NAN], NAN, [NAN] * 3),
        ([0.0, NAN, NAN], NAN, [NAN] * 3),
    ],
)
def test_logits_that_are_no_numbers(backend, row, loss, slope):
    """Infinite ones are those of classes that a model masks; NaN shows."""
    got = ops.cross_entropy(torch.tensor([row, row]), torch.tensor([0, 0]))
    torch.testing.assert_close(
        got[0], torch.full((2,), loss, dtype=torch.float64), equal_nan=True, rtol=1e-6, atol=0
    )
    if slope is not None:
        torch.testing.assert_close(got[1], torch.tensor([slope, slope]).float(), equal_nan=True)


@pytest.mark.parametrize("label", [-1, 3, -(2**63), 2**63 - 1])
def test_a_label_that_is_no_class(backend, label):
    logits = torch.randn(3, 3)
    loss, slope = ops.cross_entropy(logits, torch.tensor([1, label, 2]))
    assert loss.isnan().tolist() == [False, True, False]
    assert slope.isnan().all(1).tolist() == [False, True, False]
    expected = ops.cross_entropy(logits[2:], torch.tensor([2]))
    assert_same_bits((loss[2:], slope[2:]), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", STATES)
def test_any_layout_at_any_place_in_the_batch(backend, layout, dtype):
    logits, labels = torch.randn(5, 7, dtype=dtype), torch.tensor([0, 6, 3, 3, 1])
    expected = ops.cross_entropy(logits, labels)
    assert_same_bits(ops.cross_entropy(layout(logits), spaced(labels)), expected)
    assert_same_bits(ops.cross_entropy(layout(logits)[2:4], labels[2:4]), tuple(x[2:4] for x in expected))


@pytest.mark.parametrize("layout", [*LAYOUTS, lambda x: x[:, :1].expand(5, 7)])
def test_the_slope_is_laid_out_as_logits_are(backend_on_cpu, layout):
    """As the op's fake says, by which torch.compile goes."""
    logits, labels = layout(torch.randn(5, 7)), spaced(torch.tensor([0, 6, 3, 3, 1]))
    loss, slope = ops.cross_entropy(logits, labels)
    assert loss.stride() == (1,)
    assert slope.stride() == torch.empty_like(logits).stride()


def test_no_samples(backend):
    loss, slope = ops.cross_entropy(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert loss.shape == (0,)
    assert slope.shape == (0, 3)


def test_backends_agree(backend):
    logits, labels = torch.randn(64, 100, dtype=torch.float64) * 20, torch.randint(100, (64,))
    got = ops.cross_entropy(logits, labels)
    with roli_fast.backend("reference"):
        expected = ops.cross_entropy(logits, labels)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2.0**-45, atol=0)


def test_threads_change_nothing():
    logits, labels = torch.randn(4096, 100), torch.randint(100, (4096,))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = ops.cross_entropy(logits, labels)
        torch.set_num_threads(3)
        assert_same_bits(ops.cross_entropy(logits, labels), expected)
    finally:
        torch.set_num_threads(threads)


GOOD = {"logits": torch.zeros(2, 3), "labels": torch.zeros(2, dtype=torch.int64)}
BAD = {
    "half precision": ({"logits": torch.zeros(2, 3).half()}, "logits: got dtype float16, accepted: float32"),
    "integers": ({"logits": torch.zeros(2, 3).long()}, "logits: got dtype int64, accepted: float32, float64"),
    "no classes": ({"logits": torch.zeros(2, 0)}, r"logits: got shape \(2, 0\), accepted: \(N, classes\)"),
    "one sample": ({"logits": torch.zeros(2)}, r"logits: got shape \(2,\), accepted: \(N, classes\)"),
    "pixels": ({"logits": torch.zeros(2, 3, 4, 4)}, r"logits: got shape \(2, 3, 4, 4\)"),
    "soft labels": ({"labels": torch.zeros(2, 3)}, "labels: got dtype float32, accepted: int64"),
    "short labels": ({"labels": torch.zeros(2).int()}, "labels: got dtype int32, accepted: int64"),
    "other samples": (
        {"labels": torch.zeros(3).long()},
        r"labels: got shape \(3,\), accepted: \(N,\) = \(2,\)",
    ),
    "a column": ({"labels": torch.zeros(2, 1).long()}, r"labels: got shape \(2, 1\)"),
    "no tensor": ({"labels": [0, 1]}, "labels: got a list, accepted: a tensor of dtype int64"),
    "meta": ({"labels": torch.zeros(2, device="meta").long()}, "labels: got device meta, accepted"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_arguments(guard, bad):
    arguments, message = BAD[bad]
    with pytest.raises((ValueError, TypeError), match=f"cross_entropy: {message}"):
        ops.cross_entropy(**GOOD | arguments)
    ops.cross_entropy(**GOOD)


def test_it_is_not_differentiable(guard):
    logits = torch.zeros(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="cross_entropy: logits: got a tensor that requires a gradient"):
        ops.cross_entropy(logits, GOOD["labels"])
    with torch.no_grad():
        assert not any(x.requires_grad for x in ops.cross_entropy(logits, GOOD["labels"]))


def test_opcheck(backend_on_cpu):
    op = {"cpu": torch.ops.roli_fast_native, "triton": torch.ops.roli_fast_triton}.get(
        backend_on_cpu, torch.ops.roli_fast
    )
    torch.library.opcheck(op.cross_entropy.default, (torch.randn(4, 3), torch.arange(4) % 3))


def test_fullgraph(backend_on_cpu):
    torch.compiler.reset()
    compiled = torch.compile(ops.cross_entropy, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n, classes in ((4, 3), (5, 7)):
            given = torch.randn(classes, n).T, torch.arange(n) % classes
            got, expected = compiled(*given), ops.cross_entropy(*given)
            assert_same_bits(got, expected)
            assert [x.stride() for x in got] == [x.stride() for x in expected]
    torch.compiler.reset()
