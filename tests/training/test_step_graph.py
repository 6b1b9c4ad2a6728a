"""A training step's passes, recorded and replayed: with the eager stand-in for CUDA graphs."""

import copy
import functools
import random

import numpy
import pytest
import torch
from torch import nn

from roli_fast.engine import GraphRunner
from roli_fast.engine.graphs import Recording
from roli_fast.training import step_graph, train
from roli_fast.training.learner import Learner

from .cases import Odd, blobs, recipe, same, small_model, splits_of, steps, weights


@pytest.fixture
def replays(monkeypatch):
    """Makes training record: a list of the replays' batch sizes."""
    found = []

    class Counted(Recording):
        def replay(self, inputs, **options):
            found.append(len(inputs[-1]))
            return super().replay(inputs, **options)

    monkeypatch.setattr(step_graph, "GraphRunner", functools.partial(GraphRunner, recording=Counted))
    return found


def odd():
    torch.manual_seed(1)
    return Odd()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "trades"},
        {"clip_grad": 0.1, "ema_decay": 0.9},
        {"opt": "momentum", "weight_decay": 0.1},
        {"precision": "bf16"},
    ],
)
@pytest.mark.parametrize("make", [odd, small_model])
def test_training_is_the_same_recorded(make, settings, request):
    """To the bit: dropout, statistics of BatchNorm, a layer that takes no part, two sizes of batch."""
    settings = recipe(lr=0.05, **settings)
    recorded, eager = make(), make()
    losses, _ = steps(eager, settings)
    replays = request.getfixturevalue("replays")
    got, _ = steps(recorded, settings)
    assert replays == [8, 8, 8, 8, 4, 4]  # the first of a size confirms the recording
    assert same(weights(recorded), weights(eager))
    for (loss, right), (eager_loss, eager_right) in zip(got, losses, strict=True):
        assert torch.equal(loss, eager_loss)
        assert torch.equal(right, eager_right)


def test_a_stage_is_the_same_recorded(request):
    splits = splits_of(blobs, 48, 12, 12)
    eager, recorded = small_model(drop_path_rate=0.0), small_model(drop_path_rate=0.0)
    expected = train(eager, splits, recipe())
    replays = request.getfixturevalue("replays")
    done = train(recorded, splits, recipe())
    assert len(replays) == 5
    assert same(weights(recorded), weights(eager))
    assert [row["train_loss"] for row in done.history] == [row["train_loss"] for row in expected.history]


def test_a_model_that_moved_in_memory_is_recorded_anew(replays):
    torch.manual_seed(0)
    model = odd()
    learner = Learner(model, recipe(), "fp32", 10)
    batch = torch.rand(8, 1, 8, 8), torch.rand(8, 1, 8, 8), torch.randint(0, 3, (8,))
    for number in range(3):
        learner.step(number, *batch)
    assert len(replays) == 2
    model.head.weight.data = model.head.weight.data.clone()
    learner.step(3, *batch)
    assert len(replays) == 2
    for number in (4, 5):
        learner.step(number, *batch)
    assert len(replays) == 4


class Following(Odd):
    """With weights and a plain tensor that follow others, and no optimiser."""

    def __init__(self):
        super().__init__()
        self.slow = nn.Linear(64, 16).requires_grad_(False)
        self.centre = [torch.zeros(16)]

    @torch.no_grad()
    def follow(self, x):
        self.slow.weight.lerp_(self.first.weight, 0.1)
        self.centre[0].lerp_(self.first(x).mean(0), 0.1)

    def forward(self, x):
        if self.training:
            self.follow(self.flat(x))
        return super().forward(x) + (self.slow(self.flat(x)) - self.centre[0]).sum(1, keepdim=True)


def test_what_no_optimiser_moves_moves_once_in_a_step(request):
    torch.manual_seed(1)
    eager = Following()
    recorded = copy.deepcopy(eager)
    steps(eager, recipe(lr=0.05))
    replays = request.getfixturevalue("replays")
    steps(recorded, recipe(lr=0.05))
    assert replays
    assert same(weights(recorded), weights(eager))
    assert torch.equal(recorded.centre[0], eager.centre[0])


class Annealed(Odd):
    """Sharper after each epoch."""

    sharpness = 1.0

    def forward(self, x):
        return super().forward(x) * self.sharpness


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "sharpness", model.sharpness + 1),
        lambda model: model.norm.requires_grad_(False),
        lambda model: setattr(model, "drop", nn.Dropout(0.1)),
    ],
)
def test_what_changes_between_epochs_is_recorded_anew(change, replays):
    torch.manual_seed(1)
    model = Annealed()
    learner = Learner(model, recipe(), "fp32", 10)
    batch = torch.rand(8, 1, 8, 8), torch.rand(8, 1, 8, 8), torch.randint(0, 3, (8,))
    for epoch in range(2):
        learner.train()
        for number in range(3):
            learner.step(3 * epoch + number, *batch)
        assert len(replays) == 2 * (epoch + 1)
        change(model)


class Drawing(Odd):
    def __init__(self, generator):
        super().__init__()
        self.generator = generator


@pytest.mark.parametrize("generator", [random.Random(0), numpy.random.default_rng(0), torch.Generator()])
def test_a_generator_of_the_models_own_is_drawn_from_in_every_step(generator, replays):
    with pytest.warns(
        UserWarning, match="holds a random generator, 'generator', from which a graph does not"
    ):
        steps(Drawing(generator), recipe())
    assert not replays


class Changing(Odd):
    def __init__(self, change):
        super().__init__()
        self.change, self.calls = change, 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.change(self)
        return super().forward(x)


def count(model):
    model.calls += 1


def swap(model):
    """Two buffers take turns, so that the memory that a step sees comes again."""
    model.seen, SPARE[:] = SPARE[0], [model.seen]


SPARE = [torch.ones(())]


CHANGES = {
    "python": (lambda model: random.random(), "random numbers on the host"),
    "numpy": (lambda model: numpy.random.rand(), "random numbers on the host"),
    "count": (count, "changes calls in each pass"),
    "buffer": (swap, "changes _buffers in each pass"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_graph_would_not_repeat_is_not_recorded(change, replays):
    act, reason = CHANGES[change]
    torch.manual_seed(1)
    model = Changing(act)
    with pytest.warns(
        UserWarning, match=f"the training step runs without a CUDA graph: .*{reason}"
    ) as caught:
        steps(model, recipe())
    assert len([w for w in caught if "CUDA graph" in str(w.message)]) == 1
    assert not replays


@pytest.mark.filterwarnings("ignore:roli_fast. the training step runs without")
def test_what_failed_to_be_recorded_leaves_no_trace(request):
    """A host's random numbers, too, go on as if nobody had tried."""

    def run():
        torch.manual_seed(1)
        random.seed(3)
        draws = []
        model = Changing(lambda model: draws.append(random.random()))
        steps(model, recipe())
        return draws, weights(model)

    draws, expected = run()
    request.getfixturevalue("replays")
    more, got = run()
    assert more == draws
    assert same(got, expected)


@pytest.mark.parametrize(
    "hook",
    [
        lambda model: model.norm.register_forward_hook(lambda *_: None),
        lambda model: model.norm.register_forward_pre_hook(lambda *_: None),
        lambda model: model.norm.register_full_backward_hook(lambda *_: None),
        lambda model: model.norm.weight.register_hook(lambda _: None),
        lambda model: model.norm.weight.register_post_accumulate_grad_hook(lambda _: None),
    ],
)
def test_hooks_are_called_in_every_step(hook, replays):
    model = odd()
    hook(model)
    with pytest.warns(UserWarning, match="'norm.*' has hooks, which a graph does not call"):
        steps(model, recipe())
    assert not replays


def test_a_model_on_several_devices_is_not_recorded():
    model = odd()
    model.register_buffer("elsewhere", torch.empty(1, device="meta"))
    assert "several devices" in step_graph.obstacle(model)
    assert step_graph.obstacle(odd()) is None


def passes(gradient_scale=1.0):
    torch.manual_seed(0)
    return torch.tensor(2.0), torch.ones(8) > 0, torch.randn(4, 4) * gradient_scale, torch.randn(0)


def test_a_replay_of_something_else_is_noticed():
    expected = passes()
    assert step_graph.differ(expected, expected) is None
    other = (expected[0], expected[1], torch.randn(4, 4), expected[3])
    assert "the gradients of a replay differ" in step_graph.differ(other, expected)
    assert "the gradients" in step_graph.differ(passes(gradient_scale=0), expected)
    assert "the loss" in step_graph.differ((torch.tensor(3.0), *expected[1:]), expected)
    assert "the loss" in step_graph.differ((torch.tensor(torch.nan), *expected[1:]), expected)


def test_another_part_of_the_model_is_no_rounding():
    expected = passes()
    assert "of other parts" in step_graph.differ((*expected[:3], torch.randn(3)), expected)


def test_rounding_is_no_other_function():
    expected = passes()
    near = (expected[0] * 1.01, expected[1], expected[2] * (1 + 0.1 * torch.randn(4, 4)), expected[3])
    assert step_graph.differ(near, expected) is None
    overflown = (expected[0], expected[1], expected[2] * torch.inf, expected[3])
    assert step_graph.differ(overflown, overflown) is None
