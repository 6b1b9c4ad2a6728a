"""A comparison where graphs are captured and memory is the device's."""

import pytest
import torch

from roli_fast.speed.comparison import BEST, OURS, compare
from roli_fast.speed.peers import PEERS, Settings, find
from roli_fast.speed.subjects import labelled, random_images, settle, timm_model

pytestmark = pytest.mark.gpu


def test_a_comparison_on_a_gpu():
    model = timm_model("test_resnet", (3, 32, 32)).cuda()
    images = [random_images(8, (3, 32, 32)).cuda() for _ in range(2)]
    settle(model, images)
    peers, _ = find(PEERS)
    settings = Settings("linf", 1 / 255, 0.25 / 255, 3)
    found = compare(model, labelled(model, images), settings, peers=peers, rounds=2)
    entries = {(entry.column, entry.contender): entry for entry in found.entries}
    for column in ("fp32", "bf16", BEST):
        for name in (OURS, *peers):
            entry = entries[column, name]
            assert entry.ms_per_image is not None, entry.notes
            assert entry.peak_bytes > images[0].nbytes
    assert set(found.overhead) == {"fp32", "bf16"}
    assert found.device == "cuda:0"


def test_the_peak_on_a_gpu():
    from roli_fast.speed.memory import peak_bytes

    def call():
        first = torch.empty(2**21, dtype=torch.uint8, device="cuda")
        second = torch.empty(2**22, dtype=torch.uint8, device="cuda")
        del first
        return second

    assert peak_bytes(call, torch.device("cuda")) == 2**21 + 2**22
