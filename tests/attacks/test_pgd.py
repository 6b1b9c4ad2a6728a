"""PGD: closed forms, semantics, randomness, and manners towards model and caller."""

import pickle
from fractions import Fraction

import numpy
import pytest
import torch
from torch import nn

from roli_fast.attacks import PGD, verify
from roli_fast.engine import eval_mode

EPS = 8 / 255


def two_class_linear(features: int, dtype=torch.float64) -> nn.Linear:
    return nn.Linear(features, 2, dtype=dtype)


def robust_accuracy(result) -> float:
    return 1 - result.success.double().mean().item()


# --- mathematics -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("targeted", [False, True])
def test_reaches_the_worst_case_of_a_linear_model(random_start, targeted):
    """Its gradient's sign is constant: the optimum is the corner of ball and box that it points to."""
    model = two_class_linear(20)
    images, labels = torch.rand(30, 20, dtype=torch.float64), torch.randint(0, 2, (30,))
    attack = PGD(eps=0.1, step_size=0.05, steps=6, random_start=random_start, targeted=targeted)
    result = attack.run(model, images, labels)
    direction = (model.weight[1 - labels] - model.weight[labels]).sign() * (-1 if targeted else 1)
    corner = (images + 0.1 * direction).clamp(images - 0.1, images + 0.1).clamp(0, 1)
    torch.testing.assert_close(result.adversarial, corner.detach(), rtol=0, atol=1e-15)
    assert torch.equal(result.success, (model(corner).argmax(1) == labels) == targeted)


def test_one_step_from_the_image_is_fgsm(convnet, batch):
    images, labels = batch
    adv = PGD(step_size=EPS, steps=1, random_start=False)(convnet, images, labels)
    x = images.clone().requires_grad_()
    with eval_mode(convnet):
        gradient = torch.autograd.grad(nn.functional.cross_entropy(convnet(x), labels), x)[0]
    expected = (images + EPS * gradient.sign()).clamp(images - EPS, images + EPS).clamp(0, 1)
    assert (adv == expected).double().mean() > 0.999  # folding may flip the sign of a gradient near zero


def test_more_work_never_helps_the_model(convnet, batch):
    def loss(**options):
        generator = torch.Generator().manual_seed(1)
        return PGD(generator=generator, **options).run(convnet, *batch).loss

    assert (loss(iterate="best") >= loss(iterate="last")).all()
    assert (loss(restarts=3) >= loss(restarts=1)).all()
    assert loss(steps=20).mean() > loss(steps=1).mean()


def test_the_best_iterate_may_be_the_last_one(convnet, batch):
    """One small step from the clean image always raises the loss: the final iterate must be looked at."""
    options = {"eps": 1e-3, "step_size": 1e-3, "steps": 1, "random_start": False}
    best = PGD(iterate="best", **options).run(convnet.double(), batch[0].double(), batch[1])
    last = PGD(iterate="last", **options).run(convnet.double(), batch[0].double(), batch[1])
    assert torch.equal(best.adversarial, last.adversarial)


def test_best_puts_fooled_before_loss():
    """The model is wrong at 0.51 alone, while the loss goes on rising with x."""

    def model(x):
        wrong = (x - 0.51).abs() < 0.005
        return torch.cat([torch.where(wrong, -1.0, 1.0), 0 * x, x - 9], dim=1)

    x, y = torch.tensor([[0.5]]), torch.tensor([0])
    options = {"eps": 0.1, "step_size": 0.01, "random_start": False, "loss": lambda logits, y: logits[:, 2]}
    best = PGD(iterate="best", **options).run(model, x, y)
    assert best.success.all()
    assert best.adversarial.item() == pytest.approx(0.51)
    last = PGD(iterate="last", **options).run(model, x, y)
    assert not last.success.any()
    assert last.loss > best.loss


def test_every_result_verifies(convnet, batch):
    images, labels = batch
    for options in ({}, {"targeted": True}, {"iterate": "best", "early_stop": True}, {"precision": "bf16"}):
        attack = PGD(**options)
        result = attack.run(convnet, images, labels)
        checked = verify(convnet, images, result.adversarial, labels, "linf", EPS, targeted=attack.targeted)
        assert (checked.finite & checked.in_box & checked.in_ball).all()
        assert torch.equal(checked.success, result.success)


def test_other_bounds(convnet, batch):
    images, labels = batch[0] * 255, batch[1]
    model = nn.Sequential(Scale(1 / 255), convnet)
    adv = PGD(eps=8.0, step_size=2.0, bounds=(0, 255))(model, images, labels)
    assert (adv - images).abs().max() <= 8 + 1e-4
    assert (adv - images).abs().max() > 7
    assert adv.min() >= 0
    assert adv.max() <= 255


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_custom_loss(convnet, batch):
    images, labels = batch

    def margin(logits, labels):
        right = logits.gather(1, labels[:, None])[:, 0]
        return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - right

    result = PGD(loss=margin).run(convnet, images, labels)
    with eval_mode(convnet):
        torch.testing.assert_close(result.loss, margin(convnet(result.adversarial), labels).detach())


# --- early stop and cost -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_early_stop_keeps_success_and_saves_work(convnet, precision):
    images, labels = torch.rand(40, 3, 8, 8), torch.randint(0, 5, (40,))
    options = {"eps": 0.02, "step_size": 0.005, "iterate": "best", "restarts": 2, "precision": precision}
    results = [
        PGD(early_stop=stop, generator=torch.Generator().manual_seed(0), **options).run(
            convnet, images, labels
        )
        for stop in (False, True)
    ]
    full, stopped = results
    assert 0 < full.success.sum() < 40
    assert torch.equal(full.success, stopped.success)
    assert full.gradients == 2 * 10 * 40
    assert stopped.gradients < full.gradients / 2


def test_early_stop_in_a_plain_call(convnet, batch):
    options = {"iterate": "best", "early_stop": True, "random_start": False}
    adv = PGD(**options)(convnet, *batch)
    assert adv.shape == batch[0].shape
    assert torch.equal(adv, PGD(**options).run(convnet, *batch).adversarial)


def test_no_model_is_asked_about_no_image():
    """Where everything is fooled at once, what is left is empty, and some models cannot take that."""
    net = nn.Linear(192, 5)

    def model(x):
        return net(x.contiguous().view(x.size(0), -1))

    images = torch.rand(6, 3, 8, 8)
    wrong = (model(images).argmax(1) + 1) % 5
    assert PGD(iterate="best", early_stop=True, restarts=2).run(model, images, wrong).success.all()


def test_a_training_call_spends_one_forward_per_step(convnet, batch):
    """Seven steps: seven gradients, no forward to judge; the first call also confirms the view."""
    calls = []

    def model(x):
        calls.append(len(x))
        with eval_mode(convnet):
            return convnet(x)

    PGD(steps=7)(model, *batch)
    assert calls == [4, 4] + [6] * 7 or calls == [4] + [6] * 7
    result = PGD(steps=7).run(model, *batch)
    assert (result.forwards, result.gradients) == (1 + 6 * 8, 6 * 7)  # one image, before the work


# --- randomness --------------------------------------------------------------------------------------------


def test_a_result_belongs_to_the_sample(convnet):
    """Not to the batch's size, order or layout."""
    model = convnet.double()
    images, labels = torch.rand(12, 3, 8, 8, dtype=torch.float64), torch.randint(0, 5, (12,))
    index = torch.arange(100, 112)

    def run(rows, images=images):
        attack = PGD(restarts=2, generator=torch.Generator().manual_seed(7))
        return attack.run(model, images[rows], labels[rows], index=index[rows]).adversarial

    whole = run(slice(None))
    torch.testing.assert_close(torch.cat([run(slice(0, 5)), run(slice(5, 12))]), whole)
    order = torch.randperm(12)
    torch.testing.assert_close(run(order), whole[order])
    torch.testing.assert_close(run(slice(None), images.to(memory_format=torch.channels_last)), whole)
    assert not torch.equal(whole, PGD(restarts=2).run(model, images, labels).adversarial)


def test_torch_manual_seed_repeats_a_run_and_nothing_is_reseeded(convnet, batch):
    def run():
        torch.manual_seed(3)
        return PGD()(convnet, *batch), torch.rand(2)

    (first, after), (second, after_again) = run(), run()
    assert torch.equal(first, second)
    assert torch.equal(after, after_again)
    torch.manual_seed(3)
    assert not torch.equal(after, torch.rand(2))  # the attack drew its key from the same stream
    assert not torch.equal(first, PGD()(convnet, *batch))


def test_a_generator_of_its_own_leaves_the_global_one_alone(convnet, batch):
    state = torch.get_rng_state()
    adv = PGD(generator=torch.Generator().manual_seed(0))(convnet, *batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(adv, PGD(generator=torch.Generator().manual_seed(0))(convnet, *batch))
    PGD(random_start=False)(convnet, *batch)
    assert torch.equal(torch.get_rng_state(), state)


def test_restarts_start_elsewhere(batch):
    starts = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))

    def watched(x):
        starts.append(x.detach().clone())
        return model(x)

    PGD(steps=1, restarts=3)(watched, *batch)
    runs = [x for x in starts if len(x) == 6][::2]
    assert len(runs) == 3
    assert not torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[1], runs[2])


# --- manners -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_model_is_as_it_was(convnet, batch, precision):
    convnet.train()
    convnet.model[1].eval()  # a frozen BatchNorm must stay frozen, and the other in train mode
    convnet.model[0].weight.requires_grad_(False)
    convnet.model[8].weight.grad = torch.ones_like(convnet.model[8].weight)
    modes = {name: module.training for name, module in convnet.named_modules()}
    state = {name: t.clone() for name, t in convnet.state_dict().items()}
    PGD(precision=precision).run(convnet, *batch)
    assert {name: module.training for name, module in convnet.named_modules()} == modes
    assert all(torch.equal(t, state[name]) for name, t in convnet.state_dict().items())
    assert [p.requires_grad for p in convnet.parameters()].count(False) == 1
    assert [p.grad is not None for p in convnet.parameters()].count(True) == 1
    assert (convnet.model[8].weight.grad == 1).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_works_under_every_mode(convnet, batch, mode):
    expected = PGD(random_start=False)(convnet, *batch)
    with mode():
        images, labels = batch[0].clone(), batch[1].clone()
        adv = PGD(random_start=False)(convnet, images, labels)
    assert torch.equal(adv, expected)


def test_the_result_is_the_callers(convnet, batch):
    images, labels = batch
    kept = images.clone()
    channels_last = images.to(memory_format=torch.channels_last).requires_grad_()
    adv = PGD()(convnet, channels_last, labels)
    assert adv.stride() == channels_last.stride()
    assert not adv.requires_grad
    assert torch.equal(images, kept)
    assert adv.data_ptr() != channels_last.data_ptr()
    adv.add_(1)  # a plain tensor, not an inference one


def test_weights_are_followed_between_calls(convnet, batch):
    attack = PGD(random_start=False)
    before = attack(convnet, *batch)
    with torch.no_grad():
        for parameter in convnet.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    after = attack(convnet, *batch)
    assert not torch.equal(before, after)
    assert torch.equal(after, PGD(random_start=False)(convnet, *batch))


@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 4), (5, 2, 3, 4, 3), (5,)])
def test_any_rank(shape):
    features = torch.Size(shape).numel() // 5
    model = nn.Linear(features, 3)
    images, labels = torch.rand(shape), torch.randint(0, 3, (5,))
    adv = PGD().run(lambda x: model(x.reshape(len(x), -1)), images, labels).adversarial
    assert adv.shape == images.shape
    assert 0 < (adv - images).abs().max() <= EPS + 1e-7


def test_eps_per_sample(convnet, batch):
    eps = torch.tensor([0.0, 0.01, 0.02, 0.03, 0.04, 0.05])
    options = {"eps": eps, "step_size": eps / 4, "iterate": "best", "early_stop": True, "restarts": 2}
    adv = PGD(**options).run(convnet, *batch).adversarial
    distance = (adv - batch[0]).abs().flatten(1).amax(1)
    assert (distance <= eps + 1e-7).all()
    assert torch.equal(adv[0], batch[0][0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("eps", [8 / 255, 1 / 255, 0.3])
def test_half_precision_images_stay_in_the_ball(convnet, batch, dtype, eps):
    images, labels = batch[0].to(dtype), batch[1]
    adv = PGD(eps=eps, step_size=eps / 3)(lambda x: convnet.eval()(x.float()), images, labels)
    assert adv.dtype == dtype
    assert ((adv.double() - images.double()).abs() <= eps * (1 + 1e-6)).all()
    assert adv.min() >= 0
    assert adv.max() <= 1
    assert (adv != images).double().mean() > 0.5 or eps < 2 / 255


def test_uint8_images(convnet, batch):
    images = (batch[0] * 255).to(torch.uint8)
    result = PGD(random_start=False).run(convnet, images, batch[1])
    assert result.adversarial.dtype == torch.float32
    same = PGD(random_start=False).run(convnet, images.float() / 255, batch[1])
    assert torch.equal(result.adversarial, same.adversarial)


def test_float64_and_bf16_models(convnet, batch):
    images, labels = batch
    result = PGD().run(convnet.double(), images.double(), labels)
    assert result.adversarial.dtype == torch.float64
    result = PGD().run(convnet.bfloat16(), images.bfloat16(), labels)
    assert result.adversarial.dtype == torch.bfloat16


def test_an_empty_batch(convnet):
    empty = torch.rand(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64)
    assert PGD()(convnet, *empty).shape == (0, 3, 8, 8)
    result = PGD().run(convnet, *empty)
    assert result.adversarial.shape == (0, 3, 8, 8)
    assert result.success.shape == (0,)


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l7"}, "norm: got 'l7', accepted: linf"),
        ({"eps": -0.1}, "eps: got -0.1, accepted: a number >= 0"),
        ({"eps": float("nan")}, "eps: got nan"),
        ({"eps": torch.ones(2, 2)}, r"eps: got a torch.float32 tensor of shape \(2, 2\)"),
        ({"step_size": -1.0}, "step_size: got -1.0"),
        ({"steps": 0}, "steps: got 0, accepted: an integer >= 1"),
        ({"steps": 2.5}, "steps: got 2.5"),
        ({"restarts": 0}, "restarts: got 0"),
        ({"restarts": 2, "random_start": False}, "restarts: got 2 without a random start"),
        ({"loss": "cross"}, "loss: got 'cross', accepted: ce"),
        ({"bounds": (1, 0)}, r"bounds: got \(1, 0\), accepted: two numbers"),
        ({"iterate": "first"}, "iterate: got 'first', accepted: last, best"),
        ({"early_stop": True}, "early_stop: got True with iterate='last'"),
        ({"precision": "fp8"}, "precision: got 'fp8', accepted: fp32, tf32, bf16, fp16"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        PGD(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"eps": "8/255"}, "eps: got a str"), ({"bounds": None}, "bounds: got None, accepted: two numbers")],
)
def test_settings_of_another_type(options, message):
    with pytest.raises(TypeError, match=message):
        PGD(**options)


@pytest.mark.parametrize("number", [numpy.float32(8 / 255), Fraction(8, 255)])
def test_numbers_of_other_libraries(convnet, batch, number):
    adv = PGD(eps=number, step_size=number, random_start=False)(convnet, *batch)
    torch.testing.assert_close(adv, PGD(eps=8 / 255, step_size=8 / 255, random_start=False)(convnet, *batch))


def test_bounds_are_numbers_of_the_images_precision(convnet, batch):
    images = batch[0].clamp(max=0.3)
    attack = PGD(bounds=(0, 0.3))
    adv = attack(convnet, images, batch[1])
    attack(convnet, adv, batch[1])  # its own output lies within them, too


def test_a_loss_that_is_not_per_sample_is_refused(convnet, batch):
    with pytest.raises(ValueError, match=r"loss: it returned shape \(\), accepted: one number per sample"):
        PGD(loss=nn.functional.cross_entropy)(convnet, *batch)


def test_a_model_that_cannot_be_asked_says_so_before_the_work(convnet, batch):
    calls = []
    convnet.model[0].register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=r"images: got torch\.float64 for a model of torch\.float32"):
        PGD(steps=50).run(convnet, batch[0].double(), batch[1])
    assert len(calls) < 10


def test_pickling(convnet, batch):
    attack = PGD(random_start=False, targeted=True)
    adv = attack(convnet, *batch)
    assert torch.equal(pickle.loads(pickle.dumps(attack))(convnet, *batch), adv)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, y: (x.numpy(), y), TypeError, "images: got a ndarray, accepted: a tensor"),
        (lambda x, y: (x, numpy.zeros(6)), TypeError, "labels: got a ndarray, accepted: a tensor"),
        (lambda x, y: (x, y.tolist()), TypeError, "labels: got a list, accepted: a tensor"),
        (lambda x, y: (x.int(), y), ValueError, "images: got dtype torch.int32, accepted: a float dtype"),
        (lambda x, y: (x[0, 0, 0, 0], y), ValueError, r"images: got shape \(\)"),
        (lambda x, y: (x, y[:3]), ValueError, r"labels: got torch.int64 of shape \(3,\)"),
        (lambda x, y: (x, y.float()), ValueError, "labels: got torch.float32"),
        (lambda x, y: (x, y + 5), ValueError, r"labels: got values in .*, accepted: 0 .. 4"),
        (lambda x, y: (x, y - 5), ValueError, r"labels: got values in \[-4, "),
        (lambda x, y: (x * 2 - 1, y), ValueError, "images: got values in .*normalised.*Normalized"),
        (lambda x, y: (x / 0 * 0, y), ValueError, "images: got NaN"),
    ],
)
def test_bad_inputs(convnet, batch, change, error, message):
    images, labels = change(*batch)
    for attack in (PGD(), PGD(iterate="best")):
        with pytest.raises(error, match=message):
            attack(convnet, images, labels)


def test_out_of_range_labels_are_noticed_on_a_known_model(convnet, batch):
    attack = PGD()
    attack(convnet, *batch)
    with pytest.raises(ValueError, match="labels: got values in"):
        attack(convnet, batch[0], batch[1] + 5)


def test_a_model_without_logits(batch):
    with pytest.raises(
        ValueError, match=r"model: got an output of shape \(N, 3, 8, 8\), accepted: float logits"
    ):
        PGD()(nn.Identity(), *batch)


def test_a_size_of_another_length(convnet, batch):
    with pytest.raises(ValueError, match=r"eps: got shape \(4,\), accepted: a number, \(\), or \(6,\)"):
        PGD(eps=torch.full((4,), 0.1))(convnet, *batch)


def test_a_bad_index_or_generator(convnet, batch):
    with pytest.raises(TypeError, match="index: got a list"):
        PGD().run(convnet, *batch, index=[0, 1])
    with pytest.raises(TypeError, match="generator: got a int"):
        PGD(generator=3)(convnet, *batch)


def test_nan_logits_are_never_robust_accuracy(batch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    with torch.no_grad():
        model[1].weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="logits are NaN"):
        PGD().run(model, *batch)


def test_its_settings_can_be_read():
    assert "steps=7" in repr(PGD(steps=7))
