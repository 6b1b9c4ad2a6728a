"""With a random start, a face starts where its library does, and leaves as much robust accuracy."""

import dataclasses

import numpy
import pytest
import torch
from scipy.stats import ks_2samp, kstest
from torch import nn

from roli_fast.compat import torchattacks
from roli_fast.evaluation import Accuracy, difference

from .cases import RANDOM, both, estimator, face, original
from .conftest import Subject

SEEDS = (0, 1, 2)


def robust(s, attack):
    """Which images of all seeds are right and stay so."""
    right = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        numpy.random.seed(seed)  # ART's
        adversarial = attack(s).detach()
        with torch.no_grad():
            right.append(
                (s.model(s.images).argmax(1) == s.labels) & (s.model(adversarial).argmax(1) == s.labels)
            )
    return Accuracy(torch.cat(right))


@pytest.mark.parametrize("case", RANDOM)
def test_robust_accuracy(case, subject):
    s = subject.first(200)
    theirs, ours = both(case, RANDOM)
    mine, other = robust(s, ours), robust(s, theirs)
    gap = difference(mine, other, confidence=0.99)
    assert gap.within_noise, f"{mine.value:.2%} left, {other.value:.2%} by the original: {gap}"
    assert 0 < mine.value < 1


# --- the starts themselves ---------------------------------------------------------------------------------


@pytest.fixture
def middle():
    """Images that the box hinders nowhere, and a model whose gradient is so small that steps of tiny size are
    all that follows the start."""
    images = torch.full((4000, 1, 3, 4), 0.5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 10)).eval()
    return Subject(model, images, torch.zeros(4000, dtype=torch.int64), linf=0.1, l2=0.1, l1=0.1)


def starts(library, name, s):
    """Where attacks are after one step of nearly no size."""
    tiny = 1e-9
    if name.startswith("torchattacks"):
        attack = getattr(library, name.split()[1])(s.model, eps=0.1, alpha=0.0)
        if hasattr(attack, "steps") and name != "torchattacks FFGSM":
            attack.steps = 1
        return attack(s.images, s.labels)
    if name.startswith("foolbox"):
        attack = getattr(library.attacks, name.split()[1])(abs_stepsize=0.0, steps=1)
        model = library.PyTorchModel(s.model, bounds=(0, 1), device="cpu")
        return attack(model, s.images, s.labels, epsilons=0.1)[0]
    norm = {"L1": 1, "L2": 2}.get(name.split()[-1], float("inf"))
    if name.startswith("art"):
        options = {"norm": norm, "eps": 0.1, "eps_step": tiny, "max_iter": 1, "num_random_init": 1}
        kind = library.ProjectedGradientDescentPyTorch
        attack = kind(estimator(s.model, (1, 3, 4)), batch_size=4000, verbose=False, **options)
        return torch.from_numpy(attack.generate(s.images.numpy(), s.labels.numpy()))
    return library.projected_gradient_descent(s.model, s.images, 0.1, tiny, 1, norm, 0.0, 1.0, y=s.labels)


STARTS = [
    "torchattacks PGD",
    "torchattacks PGDL2",
    "torchattacks FFGSM",
    "foolbox LinfPGD",
    "foolbox L2PGD",
    "foolbox L1PGD",
    "art PGD",
    "art PGD L2",
    "art PGD L1",
    "cleverhans PGD",
    "cleverhans PGD L2",
]


@pytest.mark.parametrize("name", STARTS)
def test_starts_have_the_originals_distribution(name, middle):
    """By length in both norms, and by one of the pixels."""
    library = name.split()[0]
    theirs, ours = (
        (starts(namespace(library), name, middle).detach() - 0.5).flatten(1) for namespace in (original, face)
    )
    for measure in (lambda d: d.norm(dim=1), lambda d: d.abs().sum(1), lambda d: d[:, 5]):
        assert ks_2samp(measure(ours).numpy(), measure(theirs).numpy()).pvalue > 1e-3


def test_torchattacks_l2_start_has_a_uniform_radius_and_any_direction(middle):
    change = (starts(torchattacks, "torchattacks PGDL2", middle) - 0.5).flatten(1).double()
    radius = change.norm(dim=1)
    assert kstest((radius / 0.1).numpy(), "uniform").pvalue > 1e-3
    direction = change / radius[:, None]
    assert direction.mean(0).norm() < 4 / 4000**0.5  # standard deviation of the mean: 1 / sqrt(N)
    assert ks_2samp(direction[:2000, 0].numpy(), direction[2000:, 11].numpy()).pvalue > 1e-3
    correlation = torch.corrcoef(torch.stack([radius, change[:, 0].abs() / radius]))[0, 1]
    assert correlation.abs() < 4 / 4000**0.5


def test_rfgsm_starts_at_a_corner(middle):
    s = dataclasses.replace(middle, images=middle.images[:100], labels=middle.labels[:100])
    attack = torchattacks.RFGSM(s.model, eps=0.1, alpha=0.03, steps=1)
    change = attack(s.images, s.labels) - 0.5
    moved = change.abs()  # back to the image, or a second step ahead
    assert (
        torch.isclose(moved, torch.tensor(0.06)) | torch.isclose(moved, torch.tensor(0.0), atol=1e-7)
    ).all()
    assert 0.4 < (moved > 0.03).double().mean() < 0.6


def test_a_seed_repeats_a_start(middle):
    s = middle
    for name in ("torchattacks PGDL2", "torchattacks PGD"):
        runs = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            runs.append(starts(torchattacks, name, s))
        assert torch.equal(runs[0], runs[1])
        assert not torch.equal(runs[0], runs[2])
