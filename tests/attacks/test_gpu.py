"""The attacks on a GPU."""

import pytest
import torch

import roli_fast
from roli_fast.attacks import PGD, verify
from roli_fast.models import Normalized, small_resnet

pytestmark = pytest.mark.gpu

DEVICE = "cuda"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pgd(gpu_backend, precision):
    torch.manual_seed(0)
    model = Normalized(small_resnet(10), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).to(DEVICE).train()
    images, labels = torch.rand(32, 3, 32, 32, device=DEVICE), torch.arange(32, device=DEVICE) % 10
    attack = PGD(eps=8 / 255, step_size=2 / 255, steps=10, precision=precision, iterate="best")
    result = attack.run(model, images, labels)
    checked = verify(model, images, result.adversarial, labels, "linf", 8 / 255)
    assert checked.in_ball.all()
    assert torch.equal(checked.success, result.success)
    assert result.adversarial.device == images.device
    assert model.training


def test_pgd_on_a_linear_model_is_that_of_the_cpu(gpu_backend):
    """In float64, where no gradient is near zero, every step has the same sign."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)).double()
    images, labels = torch.rand(8, 3, 8, 8, dtype=torch.float64), torch.arange(8) % 5

    def attack(device):
        pgd = PGD(eps=8 / 255, step_size=2 / 255, steps=10, random_start=False)
        return pgd(model.to(device), images.to(device), labels.to(device)).cpu()

    there = attack(DEVICE)
    with roli_fast.backend("cpu"):
        here = attack("cpu")
    torch.testing.assert_close(there, here, rtol=0, atol=1e-12)
