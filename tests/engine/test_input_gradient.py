"""The gradient with respect to the input, whatever mode the caller is in, and nothing else."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from roli_fast.attacks import FAB, PGD
from roli_fast.engine import InputGradient
from roli_fast.engine.modes import gradients


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


def test_the_callers_autocast_is_as_it_was_but_for_what_it_keeps():
    """Casts of weights, which may have changed in between, or be asked for in another type."""
    weight, x = torch.ones(1, 1, requires_grad=True), torch.ones(1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert x.mm(weight).item() == 1
        with gradients():
            assert x.mm(weight).dtype == torch.float32
            for value in (2, 3):
                weight.data.fill_(value)
                with torch.autocast("cpu", torch.float16):
                    assert x.mm(weight).item() == value
        assert x.mm(weight).item() == 3
        assert x.mm(weight).dtype == torch.bfloat16
    assert x.mm(weight).dtype == torch.float32


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_loop_of_calls(problem, mode):
    """Each is as a call by itself; autograd is on in no other part of the loop."""
    model, x, labels = problem
    gradient = InputGradient(model, cross_entropy)
    want = gradient(x, labels)
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        with gradient.repeated() as once:
            for _ in range(2):
                assert all(torch.equal(a, b) for a, b in zip(once(x, labels), want, strict=True))
                assert not torch.is_grad_enabled()
                assert not torch.is_inference_mode_enabled()
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before


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


@pytest.mark.parametrize("asked", ["loss", "output", "of_each_class"])
def test_eot_averages_whatever_is_asked(problem, asked):
    net, x, labels = problem
    shifts, visited = torch.randn(3, *x.shape), []
    calls = iter(shifts)

    def model(x):
        return net(x).tanh()

    gradient = InputGradient(lambda x: model(x + next(calls)), cross_entropy, eot=3)
    outputs = torch.stack([model(x + shift) for shift in shifts]).detach()
    if asked == "loss":
        loss, output = gradient.loss(x, labels)
        losses = torch.stack([cross_entropy(output, labels) for output in outputs])
        torch.testing.assert_close(loss, losses.mean(0))
    elif asked == "output":
        output = gradient.output(x)
    else:
        output = gradient.of_each_class(x, labels, lambda *found: visited.append(found))
    assert next(calls, None) is None  # as many calls as are averaged
    torch.testing.assert_close(output, outputs.mean(0))
    for c, gap, slope in visited:
        leaf = x.clone().requires_grad_()
        every = torch.stack([model(leaf + shift) for shift in shifts])
        expected = (every[:, :, c] - every[:, torch.arange(5), labels]).mean(0)
        torch.testing.assert_close(gap, expected.detach())
        torch.testing.assert_close(slope, torch.autograd.grad(expected.sum(), leaf)[0])
    assert len(visited) == (4 if asked == "of_each_class" else 0)


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


def test_a_gradient_of_a_sum_can_be_written_into():
    """Autograd has it as one number, expanded."""

    def model(x):
        return torch.arange(3.0) * x.sum() + torch.zeros(len(x), 3)

    gradient, _, _ = InputGradient(model, cross_entropy)(torch.rand(4, 7), torch.tensor([0, 1, 2, 0]))
    gradient[0] = 1.0
    assert not (gradient[1:] == 1).any()


def test_a_model_that_computes_in_its_backward_pass_does_so_in_eval_mode():
    """Checkpoints call layers again there; with a forward of its own, the model runs as it is."""
    norm = nn.BatchNorm2d(4)
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU())
    model = nn.Sequential(inner, nn.Flatten(), nn.Linear(144, 5)).train()
    model.forward = lambda x: model[2](model[1](checkpoint(inner, x, use_reentrant=False)))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    PGD(eps=0.05, step_size=0.02, steps=2).run(model, images, labels)
    FAB(eps=0.05, steps=2).run(model, images, labels)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_a_model_in_float16_gives_small_gradients_in_their_length():
    """Of a sample that it is sure of, the loss's slope is below float16's range."""
    torch.manual_seed(0)
    model = nn.Linear(7, 4)
    with torch.no_grad():
        model.bias[0] = 22
    x, labels = torch.randn(5, 7), torch.tensor([0, 0, 0, 1, 2])
    want = expected(model, x, labels)[0]
    half = model.half()
    gradient, *_ = InputGradient(lambda x: half(x.half()), cross_entropy)(x, labels)
    assert 0 < want[0].norm() < 1e-7
    length = want.norm(dim=1, keepdim=True)
    torch.testing.assert_close(gradient / length, want / length, atol=0.05, rtol=0)
