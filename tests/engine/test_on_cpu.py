"""What is rewritten for the CPU computes the same."""

import itertools
import threading

import pytest
import torch
from torch import nn

from roli_fast.engine import AttackView
from roli_fast.engine.on_cpu import StemConv2d, attention, cut_stems


@pytest.mark.parametrize("kernel", [(7, 7), (4, 4), (4, 6), (5, 9)])
@pytest.mark.parametrize("stride", [(2, 2), (4, 4), (3, 2)])
def test_a_stem_in_blocks_is_the_convolution(kernel, stride):
    """For any size and padding, rests that no window covers included."""
    for channels, padding, height in itertools.product(
        (1, 3), ((0, 0), (1, 1), (3, 3), (2, 1)), (16, 17, 23)
    ):
        layer = nn.Conv2d(channels, 5, kernel, stride, padding, dtype=torch.float64)
        x = torch.randn(2, channels, height, height + 1, dtype=torch.float64, requires_grad=True)
        expected = layer(x)
        slope = torch.autograd.grad(expected.square().sum(), x)[0]
        cut_stems(layer)
        assert type(layer) is StemConv2d
        got = layer(x)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(got.square().sum(), x)[0], slope, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(16, 4, 7, 2),
        nn.Conv2d(3, 4, 7, 1),
        nn.Conv2d(3, 4, 3, 2),
        nn.Conv2d(3, 3, 7, 2, groups=3),
        nn.Conv2d(3, 4, 7, 2, dilation=2),
        nn.Conv2d(3, 4, 7, 2, 3, padding_mode="reflect"),
    ],
)
def test_other_convolutions_stay_as_they_are(layer):
    cut_stems(layer)
    assert type(layer) is nn.Conv2d


def test_the_model_keeps_its_convolution(batch):
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(), nn.Linear(16, 5))
    view = AttackView(model)
    torch.testing.assert_close(view(view.prepare(batch[0])), model(batch[0]), rtol=1e-5, atol=1e-5)
    assert type(view._copy.module[0]) is StemConv2d
    assert type(model[0]) is nn.Conv2d


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_is_near_and_the_setting_is_as_it_was(dtype):
    q, k, v = torch.randn(3, 2, 3, 9, 8)
    expected = nn.functional.scaled_dot_product_attention(q, k, v)
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    with attention(q.to(dtype)):
        got = nn.functional.scaled_dot_product_attention(*(x.to(dtype) for x in (q, k, v)))
    assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() == before
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.05)


def test_threads_leave_the_setting_as_it_was():
    """One enters before another leaves: the last restores what the first has found."""
    half, before = torch.zeros(1, dtype=torch.bfloat16), settings()
    first, second = threading.Event(), threading.Event()

    def early():
        with attention(half):
            first.set()
            assert second.wait(60)

    def late():
        assert first.wait(60)
        with attention(half):
            second.set()
            one.join(60)

    one, other = threading.Thread(target=early), threading.Thread(target=late)
    one.start()
    other.start()
    other.join(60)
    assert not one.is_alive()
    assert not other.is_alive()
    assert settings() == before


def settings():
    cuda = torch.backends.cuda
    return (
        *(cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()),
        cuda.fp16_bf16_reduction_math_sdp_allowed(),
    )
