"""The trainer on a GPU: without waiting for it, through graphs, and to the same end as on the CPU."""

import warnings

import pytest
import torch

from roli_fast.training import stage, train
from roli_fast.training.learner import Learner

from .cases import blobs, recipe, small_model, splits_of, weights

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


def test_a_resumed_run_goes_on(tmp_path):
    splits = splits_of(blobs, 48, 12, 12)
    train(small_model().cuda(), splits, recipe(), folder=tmp_path)
    done = train(small_model().cuda(), splits, recipe(), folder=tmp_path, resume=True)
    assert len(done.history) == 2
