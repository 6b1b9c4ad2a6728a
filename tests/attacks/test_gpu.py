"""The attacks on a GPU, where the third batch of a shape is the first that is a graph's alone."""

import pytest
import torch

import roli_fast
from roli_fast.attacks import (
    APGD,
    APGDT,
    FABT,
    FGSM,
    MIFGSM,
    PGD,
    TPGD,
    AutoAttack,
    FeaturePGD,
    Square,
    verify,
)
from roli_fast.models import Normalized, small_resnet

pytestmark = pytest.mark.gpu

DEVICE = "cuda"


CALLS = 3


@pytest.fixture
def model():
    return Normalized(small_resnet(10), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).to(DEVICE).train()


@pytest.fixture
def batch():
    return torch.rand(32, 3, 32, 32, device=DEVICE), torch.arange(32, device=DEVICE) % 10


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_pgd(gpu_backend, model, batch, precision):
    images, labels = batch
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


EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
IN_A_NORM = {
    f"{kind.__name__}-{norm}": lambda kind=kind, norm=norm, **options: kind(
        norm=norm, eps=EPS[norm], **options
    )
    for kind in (FGSM, MIFGSM, PGD, TPGD)
    for norm in EPS
}


@pytest.mark.parametrize("make", IN_A_NORM.values(), ids=IN_A_NORM)
def test_every_attack_verifies_eager_and_replayed(gpu_backend, model, batch, make):
    """The default step size is Linf's: small in L2, tiny in L1, and no matter here."""
    images, labels = batch
    attack = make(precision="bf16")
    for _ in range(CALLS):
        result = attack.run(model, images, labels)
        checked = verify(model, images, result.adversarial, labels, attack.norm, attack.eps)
        assert (checked.finite & checked.in_box & checked.in_ball).all()
        assert torch.equal(checked.success, result.success)
        assert (result.adversarial != images).flatten(1).any(1).all()
        assert result.notes == ()


@pytest.mark.parametrize("kind", [PGD, MIFGSM, TPGD])
def test_a_replay_repeats_what_was_eager(gpu_backend, model, batch, kind):
    """With the same key. A few gradients near zero may change their sign with the order of a sum."""

    def once():
        torch.manual_seed(1)
        return attack(model, *batch)

    attack = kind(precision="fp32")
    eager, *others = (once() for _ in range(CALLS))
    for other in others:
        assert (other == eager).double().mean() > 0.99


def test_what_a_replay_returned_is_not_written_again(gpu_backend, model, batch):
    images, labels = batch
    attack = PGD(steps=2)
    results = [attack(model, images.roll(n, 0), labels) for n in range(CALLS)]
    kept = results[-1].clone()
    attack(model, images.flip(0), labels)
    assert torch.equal(results[-1], kept)


def test_a_replay_uses_the_weights_of_today(gpu_backend, model, batch):
    images, labels = batch
    attack = PGD(steps=3, random_start=False)
    for _ in range(CALLS):
        before = attack(model, images, labels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    now = attack(model, images, labels)
    fresh = PGD(steps=3, random_start=False)(model, images, labels)
    assert (now == fresh).double().mean() > 0.99
    assert (now != before).double().mean() > 0.05


@pytest.mark.filterwarnings("ignore:.*runs without a CUDA graph:UserWarning")
def test_a_loss_reads_what_there_is_today(gpu_backend, model, batch):
    images, labels = batch
    held = {}

    def soft(logits, _):
        return -(held["soft"] * logits.log_softmax(1)).sum(1)

    attack = PGD(steps=3, random_start=False, loss=soft)
    for _ in range(2 * CALLS):
        held["soft"] = torch.rand(len(images), 10, device=DEVICE).softmax(1)
        fresh = PGD(steps=3, random_start=False, loss=soft)(model, images, labels)
        assert (attack(model, images, labels) == fresh).double().mean() > 0.99
    assert any("loss may read" in note for note in attack.run(model, images, labels).notes)


def test_features_move(gpu_backend, model, batch):
    images, _ = batch
    model.eval()
    attack = FeaturePGD(eps=EPS["linf"], precision="bf16")
    for _ in range(CALLS):
        result = attack.run(model, images)
        assert result.success is None
        assert (result.adversarial - images).abs().max() <= EPS["linf"] + 1e-6
        noise = images + EPS["linf"] * (2 * torch.rand_like(images) - 1)
        moved, by_noise = (
            (model(x) - model(images)).norm(dim=1) for x in (result.adversarial, noise.clamp(0, 1))
        )
        assert moved.mean() > 2 * by_noise.mean()


@pytest.mark.parametrize("norm", EPS)
def test_early_stop_keeps_success(gpu_backend, model, batch, norm):
    """On random labels some samples are fooled at once, others on the way."""
    images, labels = batch
    options = {"norm": norm, "eps": EPS[norm] / 4, "step_size": EPS[norm] / 16, "iterate": "best"}

    def success(**more):
        return PGD(**options, generator=torch.Generator(DEVICE).manual_seed(0), **more).run(model, *batch)

    whole, stopping = success(), success(early_stop=True)
    assert (
        whole.success == stopping.success
    ).double().mean() > 0.9  # a sample on the edge may fall either way
    assert stopping.gradients < whole.gradients
    checked = verify(model, images, stopping.adversarial, labels, norm, EPS[norm] / 4)
    assert (checked.in_box & checked.in_ball).all()
    assert torch.equal(checked.success, stopping.success)


@pytest.mark.parametrize("norm", EPS)
def test_eps_of_each_sample(gpu_backend, model, batch, norm):
    """In a tensor whose values change between replays."""
    images, labels = batch
    eps = torch.linspace(0, EPS[norm], len(images), device=DEVICE)
    attack = PGD(norm=norm, eps=eps, step_size=EPS[norm] / 2, steps=3)
    for _ in range(CALLS + 1):
        adv = attack(model, images, labels)
        assert verify(model, images, adv, labels, norm, eps).in_ball.all()
        assert torch.equal(adv[eps == 0], images[eps == 0])
        assert (adv[eps > 0] != images[eps > 0]).flatten(1).any(1).all()
        eps.copy_(eps.roll(1))


def test_float64(gpu_backend, model, batch):
    images, labels = batch[0].double(), batch[1]
    model.double()
    attack = PGD()
    for _ in range(CALLS):
        result = attack.run(model, images, labels)
        checked = verify(model, images, result.adversarial, labels, "linf", 8 / 255)
        assert result.adversarial.dtype == torch.float64
        assert (checked.in_box & checked.in_ball).all()
        assert torch.equal(checked.success, result.success)


def test_uint8_and_channels_last_images(gpu_backend, model, batch):
    images = (255 * batch[0]).round().to(torch.uint8)
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        attack = PGD(precision="bf16")
        for _ in range(CALLS):
            adv = attack(model, given, batch[1])
            assert adv.dtype == torch.float32
            assert adv.stride() == given.stride()
            assert (adv - given / 255).abs().max() <= 8 / 255 + 1e-6


ADAPTIVE = {
    "APGD": lambda norm, **options: APGD(norm, EPS[norm], 20, **options),
    "APGDT": lambda norm, **options: APGDT(norm, EPS[norm], 20, targets=2, **options),
    "FABT": lambda norm, **options: FABT(norm, EPS[norm], 20, targets=2, **options),
    "Square": lambda norm, **options: Square(norm, EPS[norm], queries=100, **options),
    "AutoAttack": lambda norm, **options: AutoAttack(norm, EPS[norm], steps=10, queries=50, **options),
}


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_attacks_that_adapt_verify_eager_and_replayed(gpu_backend, model, batch, name, norm):
    """With the same key, replays find about what the eager call found."""
    images, labels = batch
    attack, key = ADAPTIVE[name](norm), torch.tensor([5], device=DEVICE)
    found = [attack.run(model, images, labels, key=key) for _ in range(CALLS)]
    for result in found:
        checked = verify(model, images, result.adversarial, labels, norm, EPS[norm])
        assert (checked.finite & checked.in_box & checked.in_ball).all()
        assert torch.equal(checked.success, result.success)
        assert not any("CUDA graph" in note for note in result.notes)
        assert (result.success != found[0].success).sum() <= 2


def test_square_on_a_linear_model_is_that_of_the_cpu(gpu_backend):
    """In float64 the draws decide: the same queries, and the same answers."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)).double()
    images, labels = torch.rand(8, 3, 8, 8, dtype=torch.float64), torch.arange(8) % 5

    def attack(device):
        square = Square(eps=8 / 255, queries=200)
        key = torch.tensor([3], device=device)
        given = images.to(device), labels.to(device)
        return square.run(net.to(device), *given, key=key).adversarial.cpu()

    there = attack(DEVICE)
    with roli_fast.backend("cpu"):
        here = attack("cpu")
    torch.testing.assert_close(there, here, rtol=0, atol=1e-12)
