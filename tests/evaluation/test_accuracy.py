"""Accuracy, its intervals and differences."""

import pytest
import torch
from torch import nn

from roli_fast.attacks import PGD
from roli_fast.evaluation import Accuracy, difference, evaluate


def accuracy(right: int, total: int) -> Accuracy:
    return Accuracy(torch.arange(total) < right)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],  # Newcombe 1998, method 3
)
def test_wilson_interval(right, total, low, high):
    assert accuracy(right, total).interval() == pytest.approx((low, high), abs=1e-4)
    assert accuracy(right, total).value == right / total


def test_a_larger_confidence_is_another_interval():
    """With z = 2.5758, Wilson's for 0 of 10 ends at z^2 / (10 + z^2)."""
    assert accuracy(0, 10).interval(0.99) == pytest.approx((0, 0.3989), abs=1e-4)
    a, b = accuracy(60, 100), accuracy(50, 100)
    ten = accuracy(10, 10), accuracy(0, 10)
    assert difference(*ten, confidence=0.99).low == pytest.approx(2 * 0.6011 - 1, abs=1e-4)
    usual, sure = difference(a, b), difference(a, b, confidence=0.99)
    assert sure.low < usual.low < usual.high < sure.high


def test_a_difference_is_paired():
    """The same ten images flipped: no spread where the two agree."""
    a, b = accuracy(60, 100), accuracy(50, 100)
    gap = difference(a, b)
    assert gap.value == pytest.approx(0.1)
    assert 0.03 < gap.low < 0.07
    assert 0.13 < gap.high < 0.18
    assert not gap.within_noise
    assert difference(a, a).within_noise
    # As many right, but other images: much wider than the paired one.
    other = Accuracy(a.right.flip(0))
    assert difference(a, other).within_noise
    assert difference(a, other).high - difference(a, other).low > 2 * (gap.high - gap.low)
    with pytest.raises(ValueError, match="a, b: got 100 and 50 images"):
        difference(a, accuracy(10, 50))


@pytest.mark.parametrize(
    ("a", "b", "images", "low", "high"),
    [
        (1, 0, 1, 2 * 0.2065 - 1, 1),  # one image says next to nothing of others
        (0, 3, 3, -1, 1 - 2 * 0.4385),  # Wilson: 3 of 3 images are at least 43.85 % of all
        (10, 0, 10, 2 * 0.7225 - 1, 1),
        (7, 7, 10, -0.2775, 0.2775),
    ],
)
def test_images_that_all_agree_are_no_certainty(a, b, images, low, high):
    gap = difference(accuracy(a, images), accuracy(b, images))
    assert gap.value == (a - b) / images
    assert (gap.low, gap.high) == pytest.approx((low, high), abs=1e-4)


def test_robust_accuracy_of_a_linear_model_is_its_margin():
    """Right under every perturbation exactly where the margin exceeds eps times the weights' L1 norm."""
    model = nn.Linear(10, 2, dtype=torch.float64)
    images = torch.rand(200, 10, dtype=torch.float64) * 0.4 + 0.3  # the box stays out of reach
    labels = model(images).argmax(1)
    logits = model(images).detach()
    margin = (logits.gather(1, labels[:, None]) - logits.gather(1, 1 - labels[:, None]))[:, 0]
    eps = 0.05
    robust = margin > eps * (model.weight[0] - model.weight[1]).abs().sum()
    batches = [(images[i : i + 64], labels[i : i + 64]) for i in range(0, 200, 64)]
    assert evaluate(model, batches).value == 1
    measured = evaluate(model, batches, PGD(eps=eps, step_size=eps / 2, steps=5))
    assert torch.equal(measured.right, robust)
    assert 0 < measured.value < 1


def test_a_sample_keeps_its_index_in_any_batch_size(convnet):
    model = convnet.double()
    images, labels = torch.rand(20, 3, 8, 8, dtype=torch.float64), torch.randint(0, 5, (20,))

    def robust(size):
        attack = PGD(eps=0.02, step_size=0.005, generator=torch.Generator().manual_seed(0), iterate="best")
        return attack.run(model, images[:size], labels[:size]).adversarial[:7]

    torch.testing.assert_close(robust(7), robust(20))


def test_what_is_wrong_already_is_never_robust():
    """An attack of no strength moves images about; none that is misclassified may come out right."""
    images, labels = torch.rand(50, 3), torch.zeros(50, dtype=torch.int64)

    def model(x):  # right only where the first pixel has left its place a little
        moved = (x[:, 0] * 1024).round() / 1024 != x[:, 0]
        return torch.stack([moved.float() + 0 * x[:, 0], 0.5 + 0 * x[:, 1]], dim=1)

    images = (images * 1024).round() / 1024
    assert evaluate(model, [(images, labels)]).value == 0
    assert evaluate(model, [(images, labels)], PGD(eps=0.01, step_size=0.0, steps=1)).value == 0


def test_bad_input(convnet, batch):
    with pytest.raises(ValueError, match="labels: got values in"):
        evaluate(convnet, [(batch[0], batch[1] + 5)])
    with pytest.raises(ValueError, match=r"labels: got torch\.int64 of shape \(6, 1\)"):
        evaluate(convnet, [(batch[0], batch[1][:, None])])
    with pytest.raises(ValueError, match="attack: got an eps, step size or sparsity per sample"):
        evaluate(convnet, [batch], PGD(eps=torch.full((6,), 0.1)))
    with pytest.raises(ValueError, match="attack: got a targeted one"):
        evaluate(convnet, [batch], PGD(targeted=True))
    with pytest.raises(ValueError, match="batches: got none"):
        evaluate(convnet, [])


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.5), ("l1", 3.0)])
def test_an_attack_that_cheats_is_not_believed(norm, eps, convnet, batch):
    """It goes half as far again as it may, and stays in the box."""
    images = batch[0] * 0.2 + 0.4
    labels = convnet.eval()(images).argmax(1)

    class Cheat(PGD):
        def run(self, *args, **kwargs):
            result = super().run(*args, **kwargs)
            result.adversarial.lerp_(images, -0.5)
            assert 0 < result.adversarial.min() < result.adversarial.max() < 1
            return result

    sizes = {"norm": norm, "eps": eps, "step_size": eps / 5, "sparsity": 0.5}
    evaluate(convnet, [(images, labels)], PGD(**sizes))
    with pytest.raises(RuntimeError, match="returned images outside its ball or box"):
        evaluate(convnet, [(images, labels)], Cheat(**sizes))
