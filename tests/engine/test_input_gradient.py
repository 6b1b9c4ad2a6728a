"""The gradient with respect to the input, whatever mode the caller is in, and nothing else."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from roli_fast.attacks import losses
from roli_fast.engine import AttackView, InputGradient


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


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_tensors_that_were_made_in_that_mode(problem, mode):
    model, x, labels = problem
    want = expected(model, x, labels)
    with mode():
        x, labels = x.clone(), labels.clone()
        gradient, loss, _ = InputGradient(model, cross_entropy)(x, labels)
    assert torch.equal(gradient, want[0])
    assert torch.equal(loss, want[1])


# --- losses ----------------------------------------------------------------------------------------------


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


# --- expectation over transformation ---------------------------------------------------------------------


def test_eot_averages_gradients_losses_and_outputs(problem):
    model, x, labels = problem
    shifts = torch.randn(3, *x.shape)
    calls = iter(shifts)
    gradient, loss, output = InputGradient(lambda x: model(x + next(calls)), cross_entropy, eot=3)(x, labels)
    single = [expected(model, x + shift, labels) for shift in shifts]
    torch.testing.assert_close(gradient, torch.stack([g for g, _ in single]).mean(0))
    torch.testing.assert_close(loss, torch.stack([value for _, value in single]).mean(0))
    torch.testing.assert_close(output, torch.stack([model(x + s) for s in shifts]).mean(0).detach())


def test_eot_nears_the_expectation():
    """The expected gradient of |x + noise| at 0 is 0, of any one draw +-1."""
    x = torch.full((1, 4000), 0.0)
    gradient = InputGradient(
        lambda x: (x + torch.randn_like(x)).abs().sum(1, keepdim=True), lambda o, t: o[:, 0], eot=200
    )(x, torch.zeros(1))[0]
    assert gradient.abs().mean() < 0.1
    assert gradient.std() == pytest.approx(200**-0.5, rel=0.1)


def test_loss_and_output_alone(problem):
    model, x, labels = problem
    gradient = InputGradient(model, cross_entropy)
    _, loss, output = gradient(x, labels)
    for mode in (torch.enable_grad, torch.inference_mode):
        with mode():
            alone = gradient.loss(x, labels)
            assert torch.equal(alone[0], loss)
            assert torch.equal(alone[1], output)
            assert torch.equal(gradient.output(x), output)
            assert not alone[0].requires_grad
