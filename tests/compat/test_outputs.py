"""Models whose output is no tensor, which none of the libraries takes either."""

import math

import pytest
import torch
from torch import nn

from roli_fast.compat import art, cleverhans, foolbox, torchattacks
from roli_fast.compat.autoattack import AutoAttack

from .cases import estimator


class Wrapped(nn.Module):
    """As of Hugging Face's."""

    def __init__(self, kind):
        super().__init__()
        self.linear, self.kind = nn.Linear(12, 10), kind

    def forward(self, x):
        logits = self.linear(x.flatten(1))
        return {"logits": logits} if self.kind is dict else (logits, x)


def by_foolbox(model, images, labels):
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    return foolbox.attacks.LinfPGD()(wrapped, images, labels, epsilons=0.1)


CALLS = {
    "torchattacks": lambda m, x, y: torchattacks.PGD(m)(x, y),
    "torchattacks search": lambda m, x, y: torchattacks.Square(m)(x, y),
    "torchattacks ensemble": lambda m, x, y: torchattacks.AutoAttack(m)(x, y),
    "foolbox": by_foolbox,
    "foolbox accuracy": lambda m, x, y: foolbox.accuracy(
        foolbox.PyTorchModel(m, bounds=(0, 1), device="cpu"), x, y
    ),
    "art": lambda m, x, y: art.FastGradientMethod(estimator(m, (3, 2, 2))).generate(x.numpy(), y.numpy()),
    "cleverhans": lambda m, x, y: cleverhans.fast_gradient_method(m, x, 0.1, math.inf),
    "autoattack": lambda m, x, y: AutoAttack(m, device="cpu").run_standard_evaluation(x, y),
    "autoattack accuracy": lambda m, x, y: AutoAttack(m, device="cpu").clean_accuracy(x, y),
}


@pytest.mark.parametrize("kind", [dict, tuple])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_one_line_says_what_is_accepted(call, kind):
    model = Wrapped(kind).eval()
    with pytest.raises(ValueError, match=f"^model: got a {kind.__name__} .*, accepted: a tensor") as caught:
        call(model, torch.rand(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64))
    assert "\n" not in str(caught.value)
