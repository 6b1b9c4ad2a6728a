"""What the tests of several processes run under torchrun: ``launched.py WHAT FOLDER``."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from roli_fast.training import train
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


def curves() -> dict[str, list[dict]]:
    """The loss curves of both, each with the same global batch."""
    found = {}
    for name, make in (("layer norm", with_layer_norm), ("batch norm", with_batch_norm)):
        done = train(make(), splits_of(blobs, 64, 12, 12), recipe(**SETTINGS), sync_bn=True)
        found[name] = done.history
    return found


def dies_once(folder: Path) -> None:
    """The second process is killed in the second epoch of the first launch."""
    from roli_fast.training.learner import Learner

    step = Learner.step

    def until(self, number, *batch):
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and number == 5 and rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, number, *batch)

    Learner.step = until
    train(small_model(), splits_of(blobs, 64, 12, 12), recipe(**SETTINGS), folder=folder, resume=True)


if __name__ == "__main__":
    what, folder = sys.argv[1], Path(sys.argv[2])
    join("cpu")
    assert dist.get_world_size() == 2
    if what == "curves":
        found = curves()
        if rank() == 0:
            (folder / "curves.json").write_text(json.dumps(found))
    else:
        dies_once(folder)
    leave()
