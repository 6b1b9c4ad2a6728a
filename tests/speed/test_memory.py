"""Peak memory."""

import torch

from roli_fast.speed.memory import peak_bytes

MEGABYTE = 2**20


def test_the_peak_counts_what_lives_at_the_same_time():
    def call():
        first = torch.empty(MEGABYTE, dtype=torch.uint8)
        second = torch.empty(2 * MEGABYTE, dtype=torch.uint8)
        del first
        return second, torch.empty(MEGABYTE // 2, dtype=torch.uint8)

    assert peak_bytes(call, torch.device("cpu")) == 3 * MEGABYTE
