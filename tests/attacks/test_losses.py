"""The losses, their gradients at every precision, and where they are undefined."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from roli_fast.attacks import PGD, TPGD, losses
from roli_fast.engine import AttackView, InputGradient


def written_out(name, z, target):
    """The loss of one sample in plain numbers, from its paper."""
    z = list(z)
    ordered = sorted(z, reverse=True)
    if name == "ce":
        return torch.logsumexp(torch.stack(z), 0) - z[target]
    if name == "margin":
        return max(z[:target] + z[target + 1 :]) - z[target]
    if name == "dlr":
        return -(z[target] - max(z[:target] + z[target + 1 :])) / (ordered[0] - ordered[2])
    if name == "targeted dlr":
        label, aim = target
        return -(z[label] - z[aim]) / (ordered[0] - (ordered[2] + ordered[3]) / 2)
    if name == "kl":
        q = torch.stack(z).softmax(0)
        return sum(p * (p.log() - r.log()) for p, r in zip(target, q, strict=True))
    assert name == "features"
    return sum((a - b) ** 2 for a, b in zip(z, target, strict=True))


LOSSES = {
    "ce": losses.cross_entropy,
    "margin": losses.margin,
    "dlr": losses.dlr,
    "targeted dlr": losses.targeted_dlr,
    "kl": losses.kl_divergence,
    "features": losses.feature_distance,
}


def targets(name, samples, classes):
    if name == "targeted dlr":
        return torch.stack([torch.randperm(classes)[:2] for _ in range(samples)])
    if name in ("kl", "features"):
        return torch.randn(samples, classes, dtype=torch.float64).softmax(1)
    return torch.randint(0, classes, (samples,))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients(name):
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5)).double()
    x, target = torch.randn(7, 6, dtype=torch.float64), targets(name, 7, 5)
    gradient, loss, logits = InputGradient(model, LOSSES[name])(x, target)
    leaf = x.clone().requires_grad_()
    rows = target if name in ("kl", "features") else target.tolist()
    want = torch.stack([written_out(name, z, t) for z, t in zip(model(leaf), rows, strict=True)])
    torch.testing.assert_close(loss, want.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(want.sum(), leaf)[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(logits, model(x).detach())


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("name", [*LOSSES, "callable"])
def test_losses_at_every_precision(name, precision):
    model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 5))
    images, target = torch.rand(8, 6), targets(name, 8, 5)
    loss = LOSSES.get(name, lambda output, target: output.sin().sum(1) * (target + 1))
    view = AttackView(model, precision=precision)
    x = view.prepare(images)
    gradient, value, output = InputGradient(view, loss, precision=precision)(x, target)
    assert gradient.dtype == x.dtype
    assert output.dtype == torch.float32  # the loss is always computed in it
    exact = InputGradient(model.double(), loss)(images.double(), target)[0]
    slopes = exact.norm(dim=1) > 1e-6  # DLR has none where the label's logit is the third
    assert slopes.any()
    least = {"fp32": 0.9999, "tf32": 0.999, "fp16": 0.99, "bf16": 0.9}[precision]
    # The largest logits may change places within rounding: then DLR is another function.
    assert F.cosine_similarity(gradient.double(), exact)[slopes].quantile(0.25) > least
    assert value.shape == (8,)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("shape", [(5,), (5, 2, 3, 2), (5, 4, 3)])
def test_features_of_any_rank(shape, precision):
    net = nn.Linear(7, torch.Size(shape).numel() // 5)
    net = net.half() if precision == "fp16" else net
    x, clean = torch.rand(5, 7, dtype=net.weight.dtype), torch.zeros(shape)
    gradient, loss, output = InputGradient(
        lambda x: net(x).reshape(shape), losses.feature_distance, precision=precision
    )(x, clean)
    assert output.shape == shape
    torch.testing.assert_close(loss, net(x).float().square().sum(1).detach(), rtol=1e-2, atol=1e-3)
    assert (gradient != 0).any(1).all()


@pytest.mark.parametrize(
    ("loss", "classes", "message"),
    [
        (
            losses.dlr,
            2,
            "got 'dlr' for a model of 2 classes, accepted: 3 or more; 'ce' and 'margin' take any",
        ),
        (losses.targeted_dlr, 3, "got 'targeted dlr' for a model of 3 classes, accepted: 4 or more"),
    ],
)
def test_dlr_of_few_classes_is_refused(loss, classes, message):
    target = torch.zeros(2, 2, dtype=torch.int64) if loss is losses.targeted_dlr else torch.zeros(2).long()
    with pytest.raises(ValueError, match=f"loss: {message}"):
        InputGradient(nn.Linear(3, classes), loss)(torch.rand(2, 3), target)


def test_dlr_where_logits_are_equal_is_a_number():
    z = torch.zeros(2, 5, requires_grad=True)
    for loss in (losses.dlr(z, torch.tensor([0, 1])), losses.targeted_dlr(z, torch.tensor([[0, 1], [2, 3]]))):
        assert torch.equal(loss, torch.zeros(2))
        assert torch.autograd.grad(loss.sum(), z)[0].isfinite().all()


@pytest.mark.parametrize("run", [False, True])
def test_an_attack_with_dlr_on_few_classes_says_so(run):
    model, images, labels = nn.Linear(3, 2), torch.rand(4, 3), torch.zeros(4, dtype=torch.int64)
    attack = PGD(loss="dlr")
    with pytest.raises(ValueError, match="loss: got 'dlr' for a model of 2 classes, accepted: 3 or more"):
        attack.run(model, images, labels) if run else attack(model, images, labels)
    attack = PGD(loss="margin")
    assert attack(model, images, labels).shape == images.shape


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([-math.inf, 0.0, 1.0], math.inf),
        ([0.0, math.inf, 1.0], math.inf),
        ([math.inf, 0.0, 1.0], 0.0),
        ([0.0, -math.inf, -math.inf], 0.0),
        ([0.0, 0.0, -math.inf], math.log(2)),
        ([-3e38, 3e38, 0.0], 2 * torch.tensor(3e38).item()),
    ],
)
def test_cross_entropy_of_infinite_logits(row, expected):
    """Such as those of classes that a model masks."""
    assert losses.cross_entropy(torch.tensor([row]), torch.tensor([0])).item() == expected


@pytest.mark.parametrize("confidence", [20.0, 60.0, 80.0])
def test_cross_entropy_of_a_confident_model_has_a_slope(confidence):
    """Where float32 rounds the label's probability to 1."""
    logits = torch.tensor([[0.0, confidence, 1.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(losses.cross_entropy(logits, torch.tensor([1])).sum(), logits)
    others = torch.tensor([0.0, 1.0], dtype=torch.float64).sub(confidence).exp()
    expected = torch.stack([others[0], -others.sum(), others[1]])[None]
    torch.testing.assert_close(slope.double(), expected, rtol=1e-6 if confidence < 30 else 1e-3, atol=1e-16)
    assert (slope[:, [0, 2]] > 0).all()


@pytest.mark.parametrize(
    ("scale", "precision"), [(1.0, "fp32"), (1e3, "fp32"), (1e5, "fp32"), (1e5, "bf16"), (1e2, "fp16")]
)
def test_confidence_hides_no_direction(scale, precision):
    """Logits times a constant are the same classifier, which cross-entropy breaks as often: at these margins,
    exp(-margin) is far below what float32 holds, and float64."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 4))

    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.net, self.factor = net, factor

        def forward(self, x):
            return self.net(x) * self.factor

    images = torch.rand(100, 3, 4, 4)
    labels = net(images).argmax(1)

    def fooled(factor):
        attack = PGD(eps=0.03, step_size=0.01, steps=10, random_start=False, precision=precision)
        return attack.run(Scaled(factor), images, labels)

    plain, sure = fooled(1e-3), fooled(scale)  # 1e-3: where the loss is nearly linear
    assert 10 < plain.success.sum() < 90
    assert sure.undirected == 0
    assert abs(int(sure.success.sum()) - int(plain.success.sum())) <= 6


def test_the_divergence_of_a_confident_model_is_a_number():
    """A class of probability 0 adds nothing to it."""
    model = nn.Linear(1, 3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e4], [-1e4], [0.0]]))
        model.bias.copy_(-0.5 * model.weight[:, 0])
    images = torch.linspace(0.51, 0.55, 30)[:, None]
    assert (model(images).softmax(1) == 0).any(1).all()
    result = TPGD(eps=0.1, step_size=0.02, steps=4).run(model, images, torch.zeros(30, dtype=torch.int64))
    assert result.loss.isfinite().all()
    assert result.adversarial.isfinite().all()


def test_a_masked_class_adds_nothing_to_the_divergence():
    """One whose logit is minus infinity for every image."""
    net, images = nn.Linear(6, 5), torch.rand(20, 6)
    masked = nn.Linear(6, 7)
    with torch.no_grad():
        masked.weight.copy_(torch.cat([net.weight, torch.zeros(2, 6)]))
        masked.bias.copy_(torch.cat([net.bias, torch.full((2,), -torch.inf)]))
    attack = TPGD(eps=0.1, step_size=0.03, steps=4, iterate="best")
    expected, found = (attack.run(model, images, key=torch.tensor([3])) for model in (net, masked))
    assert (expected.loss > 0).all()
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.adversarial, expected.adversarial)


def test_a_slope_that_float32_holds_is_left_as_it_is():
    logits = torch.tensor([[3.0, 1.0, -2.0], [0.0, 20.0, 1.0]], requires_grad=True)
    labels = torch.tensor([0, 1])
    (ours,) = torch.autograd.grad(losses.cross_entropy(logits, labels).sum(), logits)
    exact = logits.detach().double().requires_grad_()
    (theirs,) = torch.autograd.grad(F.cross_entropy(exact, labels, reduction="sum"), exact)
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("margin", [0.0, 10.0, 34.0, 37.0, 60.0, 300.0])
def test_cross_entropy_is_exact_for_sure_images(margin):
    """log(1 + exp(-m) + exp(-m - 1)), whose slope in the label's logit is minus the share of the others."""
    logits = torch.tensor([[0.0, -1.0, margin]], dtype=torch.float64, requires_grad=True)
    loss = losses.cross_entropy(logits, torch.tensor([2]))
    others = math.exp(-margin) + math.exp(-margin - 1)
    assert loss.item() == pytest.approx(math.log1p(others), rel=1e-12)
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    share = max(others / (1 + others), 2.0**-60)
    first = 1 / (1 + math.exp(-1))
    assert slope[0].tolist() == pytest.approx([share * first, share * (1 - first), -share], rel=1e-12)
