"""A small network and a batch for the tests of docs/switching.md."""

import pytest
import torch
from torch import nn


@pytest.fixture
def net():
    """In train mode, but for a frozen BatchNorm; its parameters have gradients."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    ).train()
    model[1].eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model


@pytest.fixture
def batch():
    return torch.rand(5, 1, 8, 8), torch.randint(0, 10, (5,))
