"""Recording and replaying, with the eager stand-in for CUDA graphs."""

import warnings

import pytest
import torch

from roli_fast.engine import GraphRunner
from roli_fast.engine.graphs import Recording, Snapshot


class Watched:
    """A function that counts its calls, and what records it."""

    def __init__(self, function=lambda x, factor: (x * factor, x.sum(1))):
        self.calls, self.recorded, self.function = 0, 0, function

    def __call__(self, *inputs):
        self.calls += 1
        return self.function(*inputs)

    def recorder(self, function, inputs, pool):
        self.recorded += 1
        return Recording(function, inputs)

    def runner(self, **options):
        return GraphRunner(self, recording=self.recorder, **options)


@pytest.fixture
def watched():
    return Watched()


def check(runner, x, factor=2.0):
    product, total = runner(x, factor)
    torch.testing.assert_close(product, x * factor)
    torch.testing.assert_close(total, x.sum(1))


def test_the_second_call_is_recorded_and_later_ones_are_replayed(watched):
    runner = watched.runner()
    for call in range(6):
        check(runner, torch.rand(3, 4))  # other values at each call
        assert watched.recorded == (call >= 1)
    assert runner.note is None


def test_a_later_call_is_recorded_where_that_repays(watched):
    runner = watched.runner(at=4)
    for samples in (1, 2, 1, 2, 1, 2):
        check(runner, torch.rand(samples, 4))
    assert watched.recorded == 0
    for call in range(3):
        check(runner, torch.rand(2, 4))
        assert watched.recorded == 1, call


def test_what_tells_calls_apart(watched):
    """Shape, strides, dtype and constants tell calls apart; values of tensors do not."""
    runner = watched.runner(limit=100)
    kinds = [
        lambda: (torch.rand(3, 4), 2.0),
        lambda: (torch.rand(4, 4), 2.0),
        lambda: (torch.rand(4, 3).T, 2.0),
        lambda: (torch.rand(3, 4).double(), 2.0),
        lambda: (torch.rand(3, 4), 3.0),
        lambda: (torch.rand(3, 4), 2),
        lambda: (torch.rand(3, 4), torch.tensor(2.0)),
        lambda: (torch.rand(3, 4), True),
    ]
    for kind in kinds:
        check(runner, *kind())
    assert watched.recorded == 0
    for kind in kinds * 3:
        check(runner, *kind())
    assert watched.recorded == len(kinds)
    for factor in (5.0, -1.0):  # a tensor's value is followed
        check(runner, torch.rand(3, 4), torch.tensor(factor))
    assert watched.recorded == len(kinds)


def test_what_a_recording_would_get_wrong_is_not_recorded(watched):
    runner = watched.runner(obstacle=lambda: "it reads what it likes")
    check(runner, torch.rand(3, 4))
    with pytest.warns(UserWarning, match="runs without a CUDA graph: it reads what it likes"):
        check(runner, torch.rand(3, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            check(runner, torch.rand(3, 4))
    assert watched.recorded == 0
    assert watched.calls == 5
    assert "it reads what it likes" in runner.note


def test_recordings_are_forgotten_when_what_they_depend_on_is_another(watched):
    """Noticed after a call that runs eagerly, in which it may have changed, or where the owner asks."""
    state = [0]
    runner = watched.runner(depends=lambda: state[0])

    def change():
        state[0] += 1

    for later in (lambda: check(runner, torch.rand(2, 4)), runner.forget_changed):
        recorded = watched.recorded
        for _ in range(3):
            check(runner, torch.rand(3, 4))
        assert watched.recorded == recorded + 1
        change()
        later()
        assert not runner._recordings
    assert runner.note is None


def test_recordings_share_memory_as_long_as_there_are_any():
    """And what a call returned stays as it is, though other sizes' replays overwrite it there."""
    pools = []

    class Shared(Recording):
        def __init__(self, function, inputs, pool):
            pools.append(pool)
            super().__init__(function, inputs, [] if pool is None else pool)
            self.pool.append(self)

        def replay(self, inputs, **options):
            for other in self.pool:
                torch._foreach_zero_(other._outputs)
            return super().replay(inputs, **options)

    runner = GraphRunner(lambda x: (x + 1, x * 2), recording=Shared, limit=2)
    for _ in range(4):
        returned = [(size, runner(torch.ones(size))) for size in (3, 4)]
        assert all(torch.equal(more, torch.full((size,), 2.0)) for size, both in returned for more in both)
    for _ in range(2):
        runner(torch.ones(5))  # takes the place of the first
    assert pools[0] is None
    assert pools[1] is pools[2] is not None
    runner.clear()
    for _ in range(2):
        runner(torch.ones(3))
    assert pools[3] is None


class Pooled(Recording):
    """Holds the memory of a call, as a graph does."""

    held = 0

    def __init__(self, function, inputs, pool):
        super().__init__(function, inputs)
        Pooled.held += 1

    def __del__(self):
        Pooled.held -= 1


def test_what_fits_into_memory_without_a_graph_is_computed():
    """A call of the size that is recorded needs its memory before the graph has as much, and one of another
    size gets what the graph has."""
    state = torch.zeros(())

    class Before(Snapshot):
        def __init__(self):
            self.value = state.clone()

        def put_back(self):
            state.copy_(self.value)

    def function(x):
        state.add_(1)
        if Pooled.held > 0 and not inside:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (x * 2 + state,)

    inside = []

    class Inside(Pooled):
        def replay(self, inputs, **options):
            inside.append(True)
            try:
                return super().replay(inputs, **options)
            finally:
                inside.pop()

    runner = GraphRunner(function, recording=Inside, snapshot=Before)
    runner(torch.ones(2))
    for call in range(2, 5):
        assert torch.equal(runner(torch.ones(3))[0], torch.full((3,), 2.0 + call))
    assert Pooled.held == 1
    assert runner.note is None
    with pytest.warns(UserWarning, match="runs without a CUDA graph: no memory is left beside it"):
        assert torch.equal(runner(torch.ones(2))[0], torch.full((2,), 7.0))
    assert Pooled.held == 0
    assert torch.equal(runner(torch.ones(3))[0], torch.full((3,), 8.0))


def test_a_lack_of_memory_that_is_no_graph_s_is_the_callers(watched):
    def function(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    runner = GraphRunner(function, recording=Recording)
    for _ in range(3):
        with pytest.raises(torch.OutOfMemoryError):
            runner(torch.ones(2))
    assert runner.note is None


def test_nothing_is_a_constant_too():
    runner = GraphRunner(lambda x, y: (x if y is None else x + y,), recording=Recording)
    for _ in range(3):
        assert torch.equal(runner(torch.ones(2), None)[0], torch.ones(2))
        assert torch.equal(runner(torch.ones(2), torch.ones(2))[0], torch.full((2,), 2.0))


def test_the_least_recently_used_is_dropped(watched):
    runner = watched.runner(limit=2)

    def use(samples):
        before = watched.recorded
        check(runner, torch.rand(samples, 2))
        return watched.recorded > before

    for samples in (1, 2):
        assert [use(samples) for _ in range(3)] == [False, True, False]
    use(1)
    assert [use(3), use(3)] == [False, True]  # drops 2
    assert len(runner._recordings) == 2
    assert [use(1), use(1), use(1)] == [False] * 3
    assert [use(2), use(2)] == [False, True]


def test_clear_forgets_everything(watched):
    runner = watched.runner()
    for _ in range(3):
        check(runner, torch.rand(3, 4))
    runner.clear()
    assert not runner._recordings
    check(runner, torch.rand(3, 4))
    assert watched.recorded == 1
    check(runner, torch.rand(3, 4))
    assert watched.recorded == 2


def test_what_is_remembered_is_bounded(watched):
    runner = watched.runner()
    for samples in range(400):
        runner(torch.zeros(samples, 1), 1.0)
    assert len(runner._calls) <= 256
    assert watched.recorded == 0


def test_results_belong_to_the_caller(watched):
    runner = watched.runner()
    inputs = [torch.rand(3, 4) for _ in range(5)]
    results = [runner(x, 2.0) for x in inputs]
    results[2][0].zero_()  # what the caller does with one, the next does not see
    for i in (0, 1, 3, 4):
        assert torch.equal(results[i][0], inputs[i] * 2)
    assert len({r[0].data_ptr() for r in results}) == 5


@pytest.mark.parametrize(
    "layout", [lambda x: x, lambda x: x.T, lambda x: x[:, ::2], lambda x: x[:1].expand(4, 6)]
)
def test_inputs_are_not_modified(layout, watched):
    runner = watched.runner()
    inputs = [layout(torch.rand(6, 6)) for _ in range(5)]
    kept = [x.clone() for x in inputs]
    for x in inputs:
        check(runner, x)
    assert watched.recorded == 1
    assert all(torch.equal(x, k) for x, k in zip(inputs, kept, strict=True))


def test_a_recording_that_fails_is_given_up_with_one_warning():
    def fails(function, inputs, pool):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    runner = GraphRunner(lambda x: (x * 2,), recording=fails)

    def use():
        for samples in (1, 2, 1, 2, 1, 2):
            assert torch.equal(runner(torch.ones(samples))[0], torch.full((samples,), 2.0))

    with pytest.warns(UserWarning, match="roli_fast: the attack runs without a CUDA graph") as caught:
        use()
    assert len(caught) == 1
    reason = "runs without a CUDA graph: RuntimeError: operation not permitted when stream is capturing"
    assert runner.note == reason
    assert not runner._calls


class Wrong(Recording):
    """Computes something else."""

    def __init__(self, function, inputs, how):
        super().__init__(function, inputs)
        self.how = how

    def replay(self, inputs, **options):
        return self.how(super().replay(inputs, **options))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (lambda outputs: (outputs[0] * 1.1, outputs[1]), "differs from the eager one for 100%"),
        (lambda outputs: (outputs[0] * torch.nan, outputs[1]), "differs from the eager one for 100%"),
        (lambda outputs: (outputs[0], outputs[1].double()), "another shape or dtype"),
        (lambda outputs: (outputs[0], outputs[1][:1]), "another shape or dtype"),
        (lambda outputs: outputs[:1], "ValueError"),
    ],
)
def test_a_recording_of_something_else_is_noticed(how, reason):
    function = Watched()
    runner = GraphRunner(function, recording=lambda f, inputs, pool: Wrong(f, inputs, how))
    x = torch.rand(8, 4)
    check(runner, x)
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        check(runner, x)
    check(runner, x)
    assert reason in runner.note


def test_a_little_noise_is_no_other_function():
    """Sums whose order is free differ in the last digits, and a few signs with them."""

    def noisy(outputs):
        moved = outputs[0] * (1 + 1e-6)
        moved[0, :2] += 1
        return moved, outputs[1]

    runner = GraphRunner(Watched(), recording=lambda f, inputs, pool: Wrong(f, inputs, noisy))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            runner(torch.rand(8, 4), 2.0)
    assert runner.note is None


def test_nan_and_empty_outputs_agree():
    runner = GraphRunner(lambda x: (x / 0 * 0, x[:0]), recording=Recording)
    for _ in range(3):
        assert runner(torch.ones(3))[0].isnan().all()
    assert runner.note is None


def test_an_error_of_the_function_is_the_callers():
    def broken(x):
        raise ValueError("broken")

    runner = GraphRunner(broken, recording=Recording)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"):
            runner(torch.ones(2))
    assert runner.note is None


def test_nothing_is_recorded_on_a_cpu(watched):
    runner = GraphRunner(watched)
    for _ in range(4):
        check(runner, torch.rand(3, 4))
    assert watched.calls == 4
    assert not runner._recordings
