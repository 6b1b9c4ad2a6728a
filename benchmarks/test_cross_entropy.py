"""Cross-entropy and its slope at the logits: the op against torch's own loss with autograd, and compiled.

``pytest benchmarks/test_cross_entropy.py``, with ``--device cuda`` on a GPU. Timings are never asserted on;
contenders that do not compute the same fail.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import roli_fast
from roli_fast import ops
from roli_fast.speed.timing import Call, Measurement, interleaved, on_the_clock

from .baselines.ops import compiled
from .shared import CLOCK, QUICK, enter, on_the_gpu

Pair = tuple[Tensor, Tensor]
SHAPES = {"64x10": (64, 10), "64x1000": (64, 1000), "1024x1000": (1024, 1000), "64x21843": (64, 21843)}
ROUNDS, REPEATS = (3, 2) if QUICK else (30, 50)


def by_autograd(logits: Tensor, labels: Tensor) -> Pair:
    leaf = logits.detach().requires_grad_()
    loss = F.cross_entropy(leaf, labels, reduction="none")
    (slope,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss))
    return loss.detach(), slope


def formula(logits: Tensor, labels: Tensor) -> Pair:
    log_softmax = logits.log_softmax(1)
    loss = -log_softmax.gather(1, labels[:, None])[:, 0]
    one_hot = F.one_hot(labels, logits.shape[1])
    return loss, log_softmax.exp() - one_hot


def on_triton(logits: Tensor, labels: Tensor) -> Pair:
    with roli_fast.backend("triton"):
        return ops.cross_entropy(logits, labels)


CONTENDERS: dict[str, Callable[[], Callable[[Tensor, Tensor], Pair]]] = {
    "ours": lambda: ops.cross_entropy,
    "triton": lambda: on_triton,
    "torch": lambda: by_autograd,
    "compiled": lambda: compiled(formula),
    "expression": lambda: formula,
}


def contenders(device: str) -> list[str]:
    return [who for who in CONTENDERS if device == "cuda" or who != "triton"]


def pytest_generate_tests(metafunc: Any) -> None:
    device = metafunc.config.getoption("--device")
    cases = [(device, shape, who) for shape in SHAPES for who in contenders(device)]
    metafunc.parametrize(("device", "shape", "contender"), cases)


@functools.cache
def measure(device: str, shape: str) -> Measurement:
    torch.manual_seed(0)
    logits = 3 * torch.randn(SHAPES[shape], device=device)
    labels = torch.randint(SHAPES[shape][1], SHAPES[shape][:1], device=device)
    functions = {who: CONTENDERS[who]() for who in contenders(device)}
    ours = functions["ours"](logits, labels)
    for who, function in functions.items():
        for got, expected in zip(function(logits, labels), ours, strict=True):
            torch.testing.assert_close(
                got.float(), expected.float(), rtol=1e-5, atol=1e-5, msg=f"{who} differs from ours"
            )
    calls: dict[str, list[Call]] = {who: [partial(f, logits, labels)] for who, f in functions.items()}
    return interleaved(calls, ROUNDS, REPEATS, on_the_gpu if device == "cuda" else on_the_clock)


@pytest.mark.benchmark(timer=CLOCK)
def test_cross_entropy(
    benchmark: Any, record_case: Callable, device: str, shape: str, contender: str
) -> None:
    measured = measure(device, shape)
    enter(
        benchmark,
        measured,
        contender,
        f"cross_entropy {shape}",
        ratio_to_ours=measured.ratio(contender, "ours"),
    )
    if contender == "ours":
        record_case("cross_entropy", shape, measured)
