"""What a precision does to torch's settings, and to a gradient that half precision cannot hold."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from roli_fast.attacks import PGD
from roli_fast.engine import PRECISIONS, AttackView, InputGradient
from roli_fast.engine.precision import get_precision


def cross_entropy(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


PLACES = {
    "all": torch.backends,
    "matmul": torch.backends.cuda.matmul,
    "conv": torch.backends.cudnn.conv,
    "rnn": torch.backends.cudnn.rnn,
    "mkldnn matmul": torch.backends.mkldnn.matmul,
    "mkldnn conv": torch.backends.mkldnn.conv,
}


def settings():
    found = {name: place.fp32_precision for name, place in PLACES.items()}
    try:
        return found | {"legacy": torch.get_float32_matmul_precision()}
    except RuntimeError:  # it contradicts the newer ones
        return found


NEWER = {
    "ieee everywhere": ("all", "ieee"),
    "tf32 everywhere": ("all", "tf32"),
    "tf32 matmul": ("matmul", "tf32"),
    "bf16 mkldnn": ("mkldnn matmul", "bf16"),
    "ieee convolutions": ("conv", "ieee"),
    "tf32 convolutions": ("conv", "tf32"),
}


@pytest.fixture(params=["default", "high", *NEWER])
def caller(request):
    """Settings of a caller; torch's own again afterwards."""
    before = {name: place.fp32_precision for name, place in PLACES.items()}
    if request.param == "high":
        torch.set_float32_matmul_precision("high")
    elif request.param in NEWER:
        place, products = NEWER[request.param]
        PLACES[place].fp32_precision = products
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.fp32_precision = "none"  # cudnn.flags() sets it
    for name, place in PLACES.items():
        place.fp32_precision = before[name]


@pytest.mark.parametrize(("precision", "seen"), [("fp32", False), ("tf32", True)])
def test_a_model_may_look_at_torchs_older_flags(caller, precision, seen, convnet, batch):
    """Where these and the newer settings say different things, torch raises: within an attack they agree,
    whatever the caller's do."""

    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = convnet

        def forward(self, x):
            if torch.is_grad_enabled():  # not when the model itself judges
                found.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
                with torch.backends.cudnn.flags(deterministic=True):
                    return self.model(x)
            return self.model(x)

    found = []
    before = settings()
    PGD(steps=1, precision=precision)(Looks().eval(), *batch)
    assert settings() == before
    assert set(found) == {(seen, seen)}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_settings_are_as_before(caller, precision, convnet, batch):
    before = settings()
    PGD(steps=1, precision=precision).run(convnet, *batch)
    assert settings() == before

    def broken(logits, labels):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        PGD(steps=1, precision=precision, loss=broken)(convnet, *batch)
    assert settings() == before


def test_a_general_setting_still_reaches_everything(convnet, batch):
    """What was inherited is inherited again, and not set to what it was."""
    PGD(steps=1)(convnet, *batch)
    try:
        torch.backends.fp32_precision = "tf32"
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.backends.mkldnn.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.fp32_precision = "none"


@pytest.mark.parametrize(("precision", "products"), [("fp32", "ieee"), ("tf32", "tf32")])
def test_what_holds_inside(precision, products):
    seen = []

    def model(x):
        seen.append({place.fp32_precision for name, place in PLACES.items() if name != "all"})
        return x

    x, labels = torch.rand(2, 3), torch.zeros(2, dtype=torch.int64)
    gradient = InputGradient(model, cross_entropy, precision=precision)
    gradient(x, labels), gradient.loss(x, labels), gradient.output(x)
    assert seen == [{products}] * 3


def test_other_precisions_leave_the_settings_to_the_caller(caller):
    for name in ("bf16", "fp16", "torch"):
        before = settings()
        with get_precision(name).arithmetic():
            assert settings() == before


@pytest.fixture
def confident():
    """A network so sure of class 0 that the slopes of its cross-entropy, times its weights, are below
    float16's smallest number."""
    net = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 5))
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.mul_(0.1)
        net[2].bias[0] = 12
    return net.eval(), torch.rand(8, 40), torch.zeros(8, dtype=torch.int64)


def cosines(a, b):
    return F.cosine_similarity(a.double().flatten(1), b.double().flatten(1))


def in_float64(model, x, labels):
    x = x.double().requires_grad_()
    model.double()
    gradient = torch.autograd.grad(cross_entropy(model(x), labels).sum(), x)[0]
    model.float()
    return gradient


def test_fp16_gradients_do_not_underflow(confident):
    model, images, labels = confident
    expected = in_float64(model, images, labels)
    view = AttackView(model, precision="fp16")
    x = view.prepare(images)
    assert x.dtype == torch.float16
    plain = torch.autograd.grad(cross_entropy(view(x.requires_grad_()).float(), labels).sum(), x)[0]
    assert (plain == 0).double().mean() > 0.5  # without a loss scale they are gone
    gradient, loss, _ = InputGradient(view, cross_entropy, precision="fp16")(x, labels)
    assert gradient.isfinite().all()
    similar = cosines(gradient, expected)
    assert similar.median() > 0.9999
    assert similar.min() > 0.98  # rounding may switch a ReLU
    torch.testing.assert_close(loss, cross_entropy(model(images), labels).detach(), rtol=0.05, atol=0)


def test_fp16_gradients_do_not_overflow():
    """A loss a million times as steep is the same direction."""
    model, images, labels = nn.Linear(30, 4), torch.rand(6, 30), torch.randint(0, 4, (6,))
    view = AttackView(model, precision="fp16")

    def steep(logits, labels):
        return 1e6 * cross_entropy(logits, labels)

    gradient, _, _ = InputGradient(view, steep, precision="fp16")(view.prepare(images), labels)
    assert gradient.isfinite().all()
    assert cosines(gradient, in_float64(model, images, labels)).min() > 0.999


@pytest.mark.parametrize(("precision", "least"), [("tf32", 0.9999), ("bf16", 0.98), ("fp16", 0.999)])
def test_every_precision_finds_the_direction(convnet, batch, precision, least):
    images, labels = batch
    view = AttackView(convnet, precision=precision)
    gradient, _, _ = InputGradient(view, cross_entropy, precision=precision)(view.prepare(images), labels)
    net = convnet.model.eval()
    mean, std = convnet.mean[:, None, None], convnet.std[:, None, None]
    expected = in_float64(net, (images - mean) / std, labels)
    assert cosines(gradient, expected).min() > least


def test_fp16_of_a_sample_without_slope_is_zero():
    view = AttackView(nn.Linear(3, 2), precision="fp16")
    x = view.prepare(torch.rand(4, 3))
    gradient, _, _ = InputGradient(view, lambda o, t: o[:, 0] * t, precision="fp16")(x, torch.arange(4.0))
    assert (gradient[0] == 0).all()
    assert (gradient[1:] != 0).all()


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_an_fp16_attack_moves_a_confident_model(confident, mode):
    """Where underflow would leave the images where they are."""
    model, images, labels = confident
    with mode():
        attack = PGD(norm="l2", eps=0.5, step_size=0.2, steps=5, random_start=False, precision="fp16")
        half = attack.run(model, images, labels)
    full = PGD(norm="l2", eps=0.5, step_size=0.2, steps=5, random_start=False).run(model, images, labels)
    torch.testing.assert_close(half.loss, full.loss, rtol=1e-3, atol=0)
