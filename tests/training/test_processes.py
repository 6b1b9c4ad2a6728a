"""Two processes train as one does, and a run outlives a process."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from roli_fast.training import train
from roli_fast.training.processes import synchronize_norms, with_torchs_norms

from ..forks import forked
from .cases import blobs, recipe, same, small_model, splits_of, weights
from .launched import CASES, SETTINGS, curves, main, probed

HERE = Path(__file__).resolve().parent

# Relative, of the loss: gradients are summed in another order. TRADES begins its attack where the
# gradient all but vanishes, so that some signs hang on the rounding.
TOLERANCE = dict.fromkeys(CASES, 1e-5) | {"TRADES, averaged": 1e-3}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_synchronised_norms_of_one_process_are_torchs(dtype):
    """In half precision with sums in float32: 5,000 values far from 0 have none in bfloat16."""
    torch.manual_seed(0)
    x = (20 + torch.randn(50, 3, 10, 10)).to(dtype)
    theirs, ours = (nn.BatchNorm2d(3).to(torch.promote_types(dtype, torch.float32)) for _ in range(2))
    synchronize_norms(nn.Sequential(ours))
    found, expected = ours(x), theirs(x)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-2 if dtype.itemsize == 2 else 1e-3)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (100, 0.05), (1000, 0.1)])
def test_synchronised_norms_keep_what_varies_little(mean, std):
    """Around a large mean; in values and in gradients, within the rounding of the images themselves."""
    torch.manual_seed(0)
    x = mean + std * torch.randn(20, 3, 8, 8)
    weights = torch.randn_like(x).double()
    exact, ours = nn.BatchNorm2d(3).double(), nn.BatchNorm2d(3)
    synchronize_norms(nn.Sequential(ours))
    found = []
    for norm, images in ((exact, x.double()), (ours, x.clone())):
        normalized = norm(images.requires_grad_())
        (gradient,) = torch.autograd.grad((normalized * weights).sum(), images)
        found.append((normalized.double(), gradient.double(), norm.running_var.double()))
    for theirs, own in zip(*found, strict=True):
        assert (own - theirs).norm() < 2e-3 * theirs.norm()


def test_norms_that_an_earlier_stage_has_synchronised_stay():
    """With their activations, of which timm's conversion keeps nothing the second time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4)).eval()
    x = torch.randn(2, 3, 5, 5)
    expected = model(x)
    once = with_torchs_norms(model)
    assert isinstance(once[1], nn.SyncBatchNorm)
    twice = with_torchs_norms(once)
    assert torch.equal(twice(x), expected)
    assert expected.min() == 0  # there is an activation


def test_norms_that_cannot_be_synchronised_are_refused_before_any_changes():
    model = nn.Sequential(nn.BatchNorm2d(4), BatchNormAct2d(4))
    refused = "sync_bn: got True for 1, a BatchNormAct2d on the CPU, accepted: torch's BatchNorms"
    with pytest.raises(ValueError, match=refused):
        synchronize_norms(model)
    assert type(model[0]) is nn.BatchNorm2d


def launched(what, folder, *options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
    return subprocess.run(
        [*command, str(HERE / "launched.py"), what, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_two_processes_have_the_loss_curve_of_one_and_resume_within_an_epoch(tmp_path):
    """In the environment that torchrun gives its processes, which take long to start: the test below does."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    group = {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }

    def process(number):
        os.environ.update(group, RANK=str(number), LOCAL_RANK=str(number))
        main("curves", tmp_path)

    assert forked(*(functools.partial(process, number) for number in range(2))) == [0, 0]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["head"] == pytest.approx(probed(), rel=1e-2, abs=5e-3)  # L-BFGS ends nearby
    once_a_step = {kind: [8, 8] for kind in CASES}  # and never for an attack
    once_a_step["TRADES, averaged"] = [16, 8]  # of clean and of adversarial images
    assert found["counts"] == [*once_a_step.values()]
    together = found["curves"]
    for kind, alone in curves().items():
        for ours, one in zip(together[kind], alone, strict=True):
            assert ours["train_loss"] == pytest.approx(one["train_loss"], rel=TOLERANCE[kind]), kind
            for name in ("train_accuracy", "val_clean", "val_robust"):
                assert ours[name] == pytest.approx(one[name], abs=1.01 / 64), name
            assert ours["cost"]["weight_gradients"] == one["cost"]["weight_gradients"]


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_resumes(tmp_path):
    alone = tmp_path / "alone"
    killed = launched("dies", alone)
    assert killed.returncode != 0
    assert "SIGKILL" in killed.stderr or "Signal 9" in killed.stderr
    again = launched("dies", tmp_path / "restarted", "--max-restarts=1")
    assert again.returncode == 0, again.stderr
    rows = (tmp_path / "restarted" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + SETTINGS["epochs"]
    goes_on = train(
        small_model(), splits_of(blobs, 64, 12, 12), recipe(**SETTINGS), folder=alone, resume=True
    )  # what two processes began, one may finish
    assert len(goes_on.history) == SETTINGS["epochs"]
    assert not same(weights(goes_on.model), weights(small_model()))
