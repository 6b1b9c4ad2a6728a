"""Every attack against its paper's formula, written out in float64."""

import copy
import pickle

import pytest
import torch
from torch import nn

from roli_fast.attacks import FGSM, MIFGSM, NFGSM, PGD, TPGD, FeaturePGD
from roli_fast.models import Normalized

from ..selection import few
from .cases import SIZES, cross_entropy, divergence, each_descent, make, reference

NORMS = list(SIZES)


@pytest.fixture
def problem(randomize_norms):
    """A float64 model in eval mode, and a batch of which some are right."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, 5))
    model = Normalized(randomize_norms(net), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)).double().eval()
    images = torch.rand(10, 3, 8, 8, dtype=torch.float64)
    labels = model(images).argmax(1)
    labels[:2] = (labels[:2] + 1) % 5
    return model, images, labels


def near(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


class Starts(list):
    """Where an attack starts, taken down."""

    def of(self, kind, **options):
        class Noted(kind):
            def start(attack, clean, *arguments):  # noqa: N805
                self.append(kind.start(attack, clean, *arguments))
                return self[-1].clone()

        return Noted(**options, fold=False)


@pytest.mark.parametrize("norm", NORMS)
def test_fgsm(problem, norm):
    model, images, labels = problem
    eps = SIZES[norm][0]
    got = FGSM(norm, eps, fold=False)(model, images, labels)
    sizes = {"norm": norm, "eps": eps, "step_size": eps, "steps": 1}
    near(got, reference(model, images, labels, [images], loss=cross_entropy(labels), **sizes))


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("norm", NORMS)
def test_nfgsm(problem, norm, noise):
    """A step of eps from noise within noise eps, which the box alone holds back."""
    model, images, labels = problem
    eps = SIZES[norm][0] * torch.linspace(0.1, 1, len(images), dtype=torch.float64)
    starts = Starts()
    attack = starts.of(NFGSM, norm=norm, eps=eps, noise=noise)
    got = attack(model, images, labels)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    far = (starts[0] - images).flatten(1).norm(order, dim=1)
    assert (far <= noise * eps * (1 + 1e-12)).all()
    assert (far >= 0.8 * noise * eps).all()
    sizes = {"norm": norm, "eps": torch.inf, "step_size": eps, "steps": 1}
    near(got, reference(model, images, labels, starts, loss=cross_entropy(labels), **sizes))
    assert ((got - images).flatten(1).norm(order, dim=1) <= attack.eps * (1 + 1e-12)).all()
    near(attack.eps, (noise + 1) * eps)


@pytest.mark.parametrize(
    ("norm", "restarts", "keeps", "targeted"),
    few(NORMS, [0, 1, 3], ["last", "best", "stop"], [False, True], together=2),
)
def test_pgd(problem, norm, restarts, keeps, targeted):
    """restarts 0: from the clean image."""
    model, images, labels = problem
    eps, step_size = SIZES[norm]
    sizes = {"norm": norm, "eps": eps, "step_size": step_size, "steps": 4, "targeted": targeted}
    starts = Starts()
    attack = starts.of(
        PGD, random_start=restarts > 0, restarts=max(1, restarts), early_stop=keeps == "stop",
        iterate="last" if keeps == "last" else "best", **sizes,
    )  # fmt: skip
    result = attack.run(model, images, labels)
    if keeps == "stop" and restarts == 3:
        return  # only the rest starts again: the next test's subject
    expected = reference(
        model, images, labels, starts or [images], loss=cross_entropy(labels, targeted),
        best=keeps != "last", early_stop=keeps == "stop", **sizes,
    )  # fmt: skip
    near(result.adversarial, expected)
    assert torch.equal(result.success, (model(expected).argmax(1) == labels) == targeted)
    near(result.loss, cross_entropy(labels, targeted)(model(expected)).detach())


@pytest.mark.parametrize("norm", NORMS)
def test_a_restart_after_an_early_stop_is_that_of_the_rest(problem, norm):
    model, images, labels = problem
    eps, step_size = (s * 0.4 for s in SIZES[norm])
    sizes = {"norm": norm, "eps": eps, "step_size": step_size, "steps": 4}
    starts = Starts()
    attack = starts.of(PGD, restarts=2, early_stop=True, iterate="best", **sizes)
    result = attack.run(model, images, labels)

    def expected(rows, starts):
        loss = cross_entropy(labels[rows])
        options = {"loss": loss, "best": True, "early_stop": True, **sizes}
        return reference(model, images[rows], labels[rows], starts, **options)

    first = expected(slice(None), starts[:1])
    rest = (model(first).argmax(1) == labels).nonzero().flatten()
    assert len(starts[1]) == len(rest)
    assert 0 < len(rest) < len(images)
    first[rest] = expected(rest, [starts[0][rest], starts[1]])
    near(result.adversarial, first)


@pytest.mark.parametrize("norm", NORMS)
def test_sizes_per_sample_and_other_bounds(problem, norm):
    model, images, labels = problem
    share = torch.linspace(0.1, 1, len(images), dtype=torch.float64)
    eps, step_size = (s * share for s in SIZES[norm])
    sizes = {"norm": norm, "eps": eps, "step_size": step_size, "steps": 4}
    images = images * 3 - 1
    options = {"bounds": (-1.0, 2.0), "random_start": False, "sparsity": 0.2, "fold": False}
    got = PGD(**sizes, **options)(model, images, labels)
    loss = cross_entropy(labels)
    near(got, reference(model, images, labels, [images], loss=loss, lo=-1, hi=2, sparsity=0.2, **sizes))


class Noisy(nn.Module):
    """Another function at each call that wants a gradient, always in the same order."""

    def __init__(self, model, noise):
        super().__init__()
        self.model, self.noise, self.calls = model, noise, 0

    def forward(self, x):
        shift = self.noise[self.calls % len(self.noise)] if x.requires_grad else 0
        self.calls += x.requires_grad
        return self.model(x + shift)


@pytest.mark.parametrize("norm", NORMS)
def test_eot(problem, norm):
    model, images, labels = problem
    eps, step_size = SIZES[norm]
    sizes = {"norm": norm, "eps": eps, "step_size": step_size, "steps": 3, "eot": 4}
    noise = torch.randn(12, *images.shape[1:], dtype=torch.float64) / 10
    noisy = Noisy(model, noise)
    got = PGD(random_start=False, fold=False, **sizes)(lambda x: noisy(x), images, labels)
    assert noisy.calls == 12
    near(got, reference(Noisy(model, noise), images, labels, [images], loss=cross_entropy(labels), **sizes))


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("norm", NORMS)
def test_mifgsm(problem, norm, decay):
    model, images, labels = problem
    eps, step_size = SIZES[norm]
    sizes = {"norm": norm, "eps": eps, "step_size": step_size, "steps": 5, "decay": decay}
    got = MIFGSM(fold=False, **sizes)(model, images, labels)
    near(got, reference(model, images, labels, [images], loss=cross_entropy(labels), **sizes))


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_tpgd(problem, norm, best):
    model, images, labels = problem
    eps, step_size = SIZES[norm]
    sizes = {"norm": norm, "eps": eps, "step_size": step_size, "steps": 4}
    starts = Starts()
    attack = starts.of(TPGD, iterate="best" if best else "last", **sizes)
    result = attack.run(model, images, labels)
    loss = divergence(model(images))
    near(result.adversarial, reference(model, images, labels, starts, loss=loss, best=best, **sizes))
    near(result.loss, loss(model(result.adversarial)).detach())
    without = starts.of(TPGD, **sizes).run(model, images)  # success is another class than the clean image's
    assert torch.equal(without.success, model(without.adversarial).argmax(1) != model(images).argmax(1))


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_feature_pgd(problem, norm, best):
    model, images, labels = problem
    features = Normalized(model.model[:3], model.mean.tolist(), model.std.tolist()).double().eval()
    eps, step_size = SIZES[norm]
    sizes = {"norm": norm, "eps": eps, "step_size": step_size, "steps": 4}
    starts = Starts()
    attack = starts.of(FeaturePGD, iterate="best" if best else "last", **sizes)
    result = attack.run(features, images)
    clean = features(images).detach()

    def loss(output):
        return (output.flatten(1) - clean.flatten(1)).square().sum(1)

    def with_a_class(x):  # which is always the right one: features fool nobody
        return torch.cat([torch.full((len(x), 1), 1e9, dtype=x.dtype), features(x).flatten(1)], dim=1)

    right = torch.zeros_like(labels)
    options = {"loss": lambda z: loss(z[:, 1:]), "best": best, **sizes}
    expected = reference(with_a_class, images, right, starts, **options)
    near(result.adversarial, expected)
    torch.testing.assert_close(result.loss, loss(features(result.adversarial)).detach())
    assert result.success is None


def test_feature_pgd_heeds_no_labels(problem):
    """Even where they are given, features have no classes that they could be."""
    model, images, _ = problem
    features, wrong = model.model[:3], torch.full((len(images),), 10**6)
    for iterate in ("last", "best"):
        attack = FeaturePGD(iterate=iterate, generator=torch.Generator())
        torch.testing.assert_close(
            FeaturePGD(iterate=iterate, generator=torch.Generator()).run(features, images, wrong).adversarial,
            attack.run(features, images).adversarial,
        )


# --- TPGD's start ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-2.0, 3.0)])
def test_the_noise_of_tpgd_is_normal(dtype, bounds):
    clean = torch.full((20, 50_000), 0.5, dtype=dtype)
    seed, index = torch.tensor([3, 4]), torch.arange(20)
    noise = TPGD(bounds=bounds).start(clean, 0.1, seed, index).double() - 0.5
    noise = noise / (bounds[1] - bounds[0]) / 1e-3
    assert noise.mean().abs() < 0.004
    assert noise.std() == pytest.approx(1, abs=0.003)
    for quantile, z in ((0.001, -3.0902), (0.1, -1.2816), (0.5, 0.0), (0.9, 1.2816), (0.999, 3.0902)):
        assert (noise < z).double().mean() == pytest.approx(quantile, abs=0.002)
    assert 4 < noise.abs().max() < 7
    assert torch.corrcoef(noise)[0, 1:].abs().max() < 0.03


@pytest.mark.parametrize("norm", NORMS)
def test_the_noise_of_tpgd_belongs_to_the_sample_and_the_ball(norm):
    clean = torch.rand(6, 3, 8, 8)
    attack, seed, index = TPGD(norm), torch.tensor([3, 4]), torch.arange(100, 106)
    whole = attack.start(clean, 1e-4, seed, index)
    order = torch.tensor([4, 1, 5])
    assert torch.equal(attack.start(clean[order], 1e-4, seed, index[order]), whole[order])
    layout = clean.to(memory_format=torch.channels_last)
    assert torch.equal(attack.start(layout, 1e-4, seed, index), whole)
    assert not torch.equal(attack.start(clean, 1e-4, seed, index + 1), whole)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    assert (whole - clean).flatten(1).norm(order, dim=1).max() <= 1e-4 + 1e-5


# --- settings ----------------------------------------------------------------------------------------------


@each_descent
def test_settings_are_fixed(name, convnet, batch):
    attack = make(name)
    attack(convnet, *batch)
    for setting in ("eps", "steps", "loss", "decay", "new"):
        with pytest.raises(AttributeError, match=f"{setting}: the settings of an attack are fixed"):
            setattr(attack, setting, 1)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda a: pickle.loads(pickle.dumps(a))])
@each_descent
def test_copies_do_the_same(name, copied, convnet, batch):
    attack = make(name, generator=torch.Generator())
    before = copied(attack)
    attack.generator.manual_seed(3)
    expected = attack(convnet, *batch)
    for twin in (before, copied(attack)):  # and one made after views and recordings
        twin.generator.manual_seed(3)
        assert torch.equal(twin(convnet, *batch), expected)
        with pytest.raises(AttributeError, match="fixed"):
            twin.steps = 3


@each_descent
def test_its_settings_can_be_read(name):
    shown = repr(make(name, precision="bf16"))
    kind, norm = name.split("-")
    assert shown.startswith(f"{kind}(")
    assert f"norm='{norm}'" in shown
    assert f"eps={SIZES[norm][0]}" in shown
    assert "precision='bf16'" in shown
    assert "_oracles" not in shown


def test_a_size_in_a_tensor_may_change(convnet, batch):
    eps = torch.tensor(0.0)
    attack = PGD(eps=eps, random_start=False)
    assert torch.equal(attack(convnet, *batch), batch[0])
    eps.fill_(0.02)
    expected = PGD(eps=0.02, random_start=False)(convnet, *batch)
    torch.testing.assert_close(attack(convnet, *batch), expected)


def test_sparsity_per_sample(problem):
    """For each sample what the same number does for all; in a batch that samples leave, too."""
    model, images, labels = problem
    shares = torch.tensor([0.01, 0.1, 0.5, 1.0, 0.3] * 2)  # in another precision than the images
    sizes = {"norm": "l1", "eps": 3.0, "step_size": 1.0, "steps": 4, "random_start": False}
    for options in ({}, {"iterate": "best", "early_stop": True}):
        got = PGD(sparsity=shares, **sizes, **options)(model, images, labels)
        for i, share in enumerate(shares):
            alone = PGD(sparsity=share.item(), **sizes, **options)(
                model, images[i : i + 1], labels[i : i + 1]
            )
            near(got[i : i + 1], alone)
