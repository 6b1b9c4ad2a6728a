"""The gradient with respect to the input, whatever mode the caller is in, and nothing else."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from roli_fast.engine import InputGradient


def cross_entropy(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


def expected(model, x, labels):
    x = x.clone().requires_grad_()
    loss = cross_entropy(model(x), labels)
    return torch.autograd.grad(loss.sum(), x)[0], loss.detach()


@pytest.fixture
def problem():
    return nn.Linear(7, 4), torch.randn(5, 7), torch.randint(0, 4, (5,))


@pytest.mark.parametrize(
    "mode",
    [torch.enable_grad, torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
)
def test_under_every_mode(problem, mode):
    model, x, labels = problem
    want = expected(model, x, labels)
    with mode():
        gradient, loss, logits = InputGradient(model, cross_entropy)(x, labels)
    assert torch.equal(gradient, want[0])
    assert torch.equal(loss, want[1])
    assert logits.dtype == torch.float32
    assert not any(t.requires_grad for t in (gradient, loss, logits))


def test_no_other_gradient_is_written(problem):
    model, x, labels = problem
    model.weight.grad = torch.full_like(model.weight, 7.0)
    InputGradient(model, cross_entropy)(x, labels)
    assert (model.weight.grad == 7).all()
    assert model.bias.grad is None
    assert not x.requires_grad
    assert x.grad is None


@pytest.mark.parametrize(
    "model", [lambda x: x.detach() @ torch.ones(7, 4), lambda x: torch.ones(5, 4, requires_grad=True)]
)
def test_a_model_without_gradient_is_refused(problem, model):
    _, x, labels = problem
    with pytest.raises(ValueError, match="no gradient with respect to the input"):
        InputGradient(model, cross_entropy)(x, labels)
