"""The trainer on a GPU: without waiting for it, through graphs, and to the same end as on the CPU."""

import copy
import warnings

import pytest
import torch

from roli_fast.engine import GraphRunner
from roli_fast.training import stage, train
from roli_fast.training.learner import Learner

from .cases import Odd, blobs, recipe, small_model, splits_of, steps, weights

pytestmark = pytest.mark.gpu


def test_no_step_waits_for_the_device(monkeypatch):
    """From the third step on: the first two confirm the copy of the model and capture the graph."""
    monkeypatch.setattr(stage, "_LOOK", 10**9)
    step = stage._Stage._train_step

    def watched(self, *batch):
        torch.cuda.set_sync_debug_mode("error" if self.step >= 3 else "default")
        try:
            return step(self, *batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(stage._Stage, "_train_step", watched)
    for settings in (
        {},
        {"loss": "trades"},
        {"attack": "nfgsm"},
        {"epochs": 2, "eps_warmup_epochs": 1},
        {"clip_grad": 1.0},
    ):
        with warnings.catch_warnings():  # waiting fails a capture, which would go on without a graph
            warnings.filterwarnings("error", message=".*without a CUDA graph")
            train(small_model().cuda(), splits_of(blobs, 96, 12, 12), recipe(**({"epochs": 1} | settings)))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_it_learns_as_on_the_cpu(precision):
    splits = splits_of(blobs, 96, 48, 12)
    on_cpu = train(small_model(), splits, recipe(epochs=6))
    model = small_model().cuda()
    done = train(model, splits, recipe(epochs=6, precision=precision))
    assert done.precision == precision
    assert done.history[-1]["train_loss"] == pytest.approx(on_cpu.history[-1]["train_loss"], abs=0.2)
    assert done.cost.attack > 0
    assert done.cost.training > 0


def test_fp16_training_scales_its_loss():
    images, labels = torch.rand(8, 1, 8, 8).cuda(), torch.randint(0, 3, (8,)).cuda()
    model = small_model().cuda().train()
    before = weights(model)
    learner = Learner(model, recipe(amp_dtype="float16"), "fp32", 10)
    for number in range(3):
        learner.step(number, images, images, labels)
    assert learner.state()["scaler"]["scale"] > 0
    assert any(not torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(v.isfinite().all() for v in model.state_dict().values())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "trades"},
        {"clip_grad": 0.1, "ema_decay": 0.9},
        {"opt": "momentum", "weight_decay": 0.1},
        {"precision": "bf16"},
        {"amp_dtype": "float16"},
    ],
)
@pytest.mark.parametrize("make", [Odd, small_model])
def test_a_step_is_the_same_as_a_graph(make, settings, monkeypatch):
    """Dropout draws the same, statistics of BatchNorm move as often, a layer that takes no part stays."""
    settings = recipe(lr=0.05, **settings)
    torch.manual_seed(1)
    graphed = make()
    eager = copy.deepcopy(graphed)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*without a CUDA graph")
        got, learner = steps(graphed.cuda(), settings)
    assert len(learner._passes._recordings) == 2
    monkeypatch.setattr(GraphRunner, "_recorder", lambda self, inputs: None)
    expected, _ = steps(eager.cuda(), settings)
    for (loss, _), (eager_loss, _) in zip(got, expected, strict=True):
        torch.testing.assert_close(loss, eager_loss, rtol=0.02, atol=0.02)
    before, after = (torch.cat([w.double().flatten() for w in weights(m).values()]) for m in (eager, graphed))
    torch.manual_seed(1)
    start = torch.cat([w.double().flatten() for w in weights(make().cuda()).values()])
    assert (after - before).norm() < 0.05 * (before - start).norm()


def test_a_graph_of_a_step_uses_what_the_optimiser_left():
    """Weights are read anew in each replay: the loss of a batch that is trained on falls."""
    learner = Learner(small_model().cuda(), recipe(lr=0.01), "fp32", 30)
    learner.train()
    images, labels = torch.rand(12, 1, 8, 8, device="cuda"), torch.arange(12, device="cuda") % 3
    losses = [learner.step(number, images, images, labels)[0].item() for number in range(30)]
    assert learner._passes._recordings
    assert losses[-1] < losses[10] < losses[2]


def test_a_step_that_cannot_be_captured_runs_eagerly():
    class Waiting(Odd):
        def forward(self, x):
            return super().forward(x) * (1.0 if x.sum().item() > 0 else 2.0)

    with pytest.warns(UserWarning, match="the training step runs without a CUDA graph"):
        found, learner = steps(Waiting().cuda(), recipe())
    assert not learner._passes._recordings
    assert all(loss.isfinite() for loss, _ in found)


def test_a_resumed_run_goes_on(tmp_path):
    splits = splits_of(blobs, 48, 12, 12)
    train(small_model().cuda(), splits, recipe(), folder=tmp_path)
    done = train(small_model().cuda(), splits, recipe(), folder=tmp_path, resume=True)
    assert len(done.history) == 2
