"""What the tests of several processes run, in forks or under torchrun: ``launched.py WHAT FOLDER``."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from roli_fast.models import find_classifier
from roli_fast.training import Rounds, probe, train
from roli_fast.training.learner import Learner
from roli_fast.training.processes import join, leave, rank
from tests.training.cases import blobs, recipe, small_model, splits_of

SETTINGS = {"epochs": 2, "batch_size": 16, "steps": 2, "lr": 0.02, "opt": "momentum"}


def with_layer_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3))


def with_batch_norm() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3))
    return nn.Sequential(*layers)


CASES = {
    "layer norm": (with_layer_norm, {}),
    "batch norm": (with_batch_norm, {}),
    "batch norm, attacked in train mode": (with_batch_norm, {"attack_mode": "train"}),
    "TRADES, averaged": (with_layer_norm, {"loss": "trades", "ema_decay": 0.5}),
    "N-FGSM": (with_layer_norm, {"attack": "nfgsm"}),
}


def probed() -> list[float]:
    """The head of probing by rounds."""
    model = small_model()
    probe(model, splits_of(blobs, 63, 12, 12), recipe(**SETTINGS), Rounds(2, other_weight_decays=()))
    return find_classifier(model).head.weight.flatten().tolist()


def curves() -> dict[str, list[dict]]:
    """The loss curves of all, each with the same global batch."""
    found = {}
    for name, (make, more) in CASES.items():
        done = train(make(), splits_of(blobs, 64, 12, 12), recipe(**SETTINGS, **more), sync_bn=True)
        found[name] = done.history
    return found


def count_averagings() -> list[list[int]]:
    """Of each training from now on, two numbers that grow: how often the model that averages gradients over
    the processes is asked, and how often it averages them."""
    counts = []
    begin = Learner.__init__

    def counting(self, *settings):
        begin(self, *settings)
        count = [0, 0]

        def asked(*_):
            count[0] += 1

        def averaged(group, bucket):
            count[1] += bucket.is_last()
            return allreduce_hook(group, bucket)

        self._net.register_forward_pre_hook(asked)
        self._net.register_comm_hook(None, averaged)
        counts.append(count)

    Learner.__init__ = counting
    return counts


def dies_once(folder: Path) -> None:
    """The second process is killed in the second epoch of the first launch."""
    step = Learner.step

    def until(self, number, *batch):
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and number == 5 and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, number, *batch)

    Learner.step = until
    train(small_model(), splits_of(blobs, 64, 12, 12), recipe(**SETTINGS), folder=folder, resume=True)


def stops_within_an_epoch(folder: Path) -> None:
    """Saves after every step, fails in the second epoch, and goes on."""
    from roli_fast.training import stage

    stage._LOOK, stage._SAVE_EVERY = 1, -1.0
    step = Learner.step

    def until(self, number, *batch):
        if number == 6:
            raise RuntimeError("stopped by the test")
        return step(self, number, *batch)

    Learner.step = until
    arguments = (splits_of(blobs, 64, 12, 12), recipe(**SETTINGS))
    with pytest.raises(RuntimeError, match="stopped by the test"):
        train(small_model(), *arguments, folder=folder, sync_bn=True)
    dist.barrier()
    Learner.step = step
    # Synchronised, since without it each process has running statistics of its own between two steps.
    resumed = train(small_model(), *arguments, folder=folder, resume=True, sync_bn=True)
    whole = train(small_model(), *arguments, sync_bn=True)
    counted = ("train_loss", "train_accuracy", "val_clean", "val_robust")
    for a, b in zip(resumed.history, whole.history, strict=True):
        assert all(abs(a[name] - b[name]) < 1e-6 for name in counted), (a, b)


def main(what: str, folder: Path) -> None:
    join("cpu")
    assert dist.get_world_size() == 2
    if what == "curves":
        counts = count_averagings()
        found = {"curves": curves(), "counts": counts[: len(CASES)], "head": probed()}
        if rank() == 0:
            (folder / "found.json").write_text(json.dumps(found))
        stops_within_an_epoch(folder / "stopped")
    else:
        dies_once(folder)
    leave()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
