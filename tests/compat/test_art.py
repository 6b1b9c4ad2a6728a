"""ART's ways: numpy, labels in any form, masks, sizes per sample, parameters that change."""

import numpy
import pytest
import torch
from torch import nn

from roli_fast.attacks import attack as attack_module
from roli_fast.compat import art

from .cases import Coin, estimator


@pytest.fixture
def s(digits_subject):
    return digits_subject.first(40)


@pytest.fixture
def classifier(s):
    return estimator(s.model, (1, 8, 8))


def distance(found, s):
    return abs(found - s.images.numpy()).reshape(len(found), -1)


def test_numpy_in_and_out(s, classifier):
    images = s.images.numpy()
    before = images.copy()
    attack = art.ProjectedGradientDescentPyTorch(classifier, eps=0.1, eps_step=0.03, max_iter=5)
    found = attack.generate(x=images.astype(numpy.float64), y=s.labels.numpy())
    assert (found.dtype, found.shape) == (numpy.float32, images.shape)
    assert numpy.array_equal(images, before)
    assert distance(found, s).max() <= 0.1 + 1e-6


@pytest.mark.parametrize("starts", [False, True])
def test_random_starts_may_be_a_flag(s, classifier, starts):
    """ART takes it for a number, as Python does."""
    found = []
    for number in (starts, int(starts)):
        torch.manual_seed(0)
        attack = art.FastGradientMethod(classifier, eps=0.1, num_random_init=number)
        found.append(attack.generate(s.images.numpy(), s.labels.numpy()))
    assert numpy.array_equal(*found)


def test_labels_in_any_form(s, classifier):
    attack = art.BasicIterativeMethod(classifier, eps=0.1, eps_step=0.03, max_iter=5)
    y = s.labels.numpy()
    expected = attack.generate(s.images.numpy(), y)
    for form in (numpy.eye(10)[y], y[:, None], y.astype(numpy.float32)):
        assert numpy.array_equal(attack.generate(s.images.numpy(), form), expected)
    predicted = classifier.predict(s.images.numpy()).argmax(1)
    assert numpy.array_equal(attack.generate(s.images.numpy()), attack.generate(s.images.numpy(), predicted))


@pytest.mark.parametrize("batch_size", [1, 7, 40, 100])
def test_batches_change_nothing(s, classifier, batch_size):
    options = {"eps": 0.1, "eps_step": 0.03, "max_iter": 3, "verbose": False}
    expected = art.ProjectedGradientDescent(classifier, **options).generate(
        s.images.numpy(), s.labels.numpy()
    )
    attack = art.ProjectedGradientDescent(classifier, batch_size=batch_size, **options)
    differs = abs(attack.generate(s.images.numpy(), s.labels.numpy()) - expected) > 1e-5
    assert differs.mean() < 1e-2


@pytest.mark.parametrize("norm", [numpy.inf, 2, 1])
@pytest.mark.parametrize("starts", [0, 2])
def test_a_mask_keeps_pixels(s, classifier, norm, starts):
    eps = {numpy.inf: 0.1, 2: 0.8, 1: 3.0}[norm]
    options = {"norm": norm, "eps": eps, "eps_step": eps / 4, "max_iter": 5, "num_random_init": starts}
    attack = art.ProjectedGradientDescent(classifier, batch_size=16, verbose=False, **options)
    mask = numpy.zeros((8, 8), bool)
    mask[2:6] = True
    found = attack.generate(s.images.numpy(), s.labels.numpy(), mask=mask)
    change = found - s.images.numpy()
    assert (change[:, :, ~mask] == 0).all()
    assert (change[:, :, mask] != 0).any()
    order = {numpy.inf: numpy.inf, 2: 2, 1: 1}[norm]
    assert numpy.linalg.norm(change.reshape(40, -1), order, axis=1).max() <= eps * (1 + 1e-5)


def test_a_mask_takes_one_copy_of_the_model(s, classifier, monkeypatch):
    made = []
    view = attack_module.AttackView
    monkeypatch.setattr(attack_module, "AttackView", lambda *a, **o: made.append(a) or view(*a, **o))
    settings = {"norm": 2, "eps": 0.8, "eps_step": 0.2, "max_iter": 3, "num_random_init": 1}
    attack = art.ProjectedGradientDescent(classifier, batch_size=16, verbose=False, **settings)
    mask = torch.rand(40, 1, 8, 8) > 0.5  # another for each image; the last batch is of eight
    found = attack.generate(s.images.numpy(), s.labels.numpy(), mask=mask.numpy())
    assert len(made) == 1
    changed = torch.from_numpy(found) != s.images
    assert not (changed & ~mask).any()
    assert (changed & mask).flatten(1).any(1).all()


def test_sizes_per_sample(s, classifier):
    eps = numpy.linspace(0.01, 0.2, 40).reshape(40, 1, 1, 1)
    attack = art.ProjectedGradientDescent(
        classifier, eps=eps, eps_step=eps / 2, max_iter=4, batch_size=16, verbose=False
    )
    found = attack.generate(s.images.numpy(), s.labels.numpy())
    largest = distance(found, s).max(1)
    assert (largest <= eps.reshape(-1) + 1e-6).all()
    assert (largest > 0.9 * eps.reshape(-1)).mean() > 0.9
    with pytest.raises(ValueError, match=r"eps: got an array of shape \(8, 8\)"):
        art.FastGradientMethod(classifier, eps=numpy.ones((8, 8)), eps_step=numpy.ones((8, 8))).generate(
            s.images.numpy()
        )


def test_more_starts_find_more():
    """Of 200 images, one start fools half and eight fool 1 - 2^-8, each within five standard deviations."""
    images, labels = numpy.full((200, 1, 4, 4), 0.5, numpy.float32), numpy.zeros(200, numpy.int64)
    classifier = estimator(Coin(), (1, 4, 4))
    fooled = []
    for starts in (1, 8):
        torch.manual_seed(0)
        attack = art.ProjectedGradientDescent(
            classifier, eps=0.1, eps_step=0.1, max_iter=1, num_random_init=starts, verbose=False
        )
        fooled.append(classifier.predict(attack.generate(images, labels)).argmax(1) != 0)
    assert 65 <= fooled[0].sum() <= 135
    assert fooled[1].sum() >= 195
    assert (fooled[1] >= fooled[0]).all()  # the first start is among the eight


def test_parameters_may_be_set(s, classifier):
    attack = art.ProjectedGradientDescent(classifier, max_iter=3, verbose=False)
    attack.set_params(eps=0.05, eps_step=0.02, norm=numpy.inf, targeted=True, batch_size=8)
    fresh = art.ProjectedGradientDescent(
        classifier, eps=0.05, eps_step=0.02, max_iter=3, targeted=True, batch_size=8, verbose=False
    )
    targets = ((s.labels + 1) % 10).numpy()
    found = [a.generate(s.images.numpy(), targets) for a in (attack, fresh)]
    assert numpy.array_equal(*found)
    with pytest.raises(ValueError, match="speed: got an attribute to set, accepted: norm, eps"):
        attack.set_params(speed=1)
    with pytest.raises(ValueError, match="norm: got 3"):
        attack.set_params(norm=3, eps=0.1)
    assert (attack.norm, attack.eps) == (numpy.inf, 0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": 3}, "norm: got 3, accepted: inf, 'inf', 1, 2"),
        ({"eps": -1}, "eps: got -1"),
        ({"targeted": 1}, "targeted: got 1"),
        ({"num_random_init": -1}, "num_random_init: got -1"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"max_iter": 0}, "max_iter: got 0"),
        ({"decay": -1}, "decay: got -1"),
        ({"random_eps": True}, "random_eps: got True, accepted: False"),
        ({"summary_writer": True}, "summary_writer: got True, accepted: False"),
    ],
)
def test_settings_that_are_refused(classifier, settings, message):
    with pytest.raises(ValueError, match=message):
        art.ProjectedGradientDescent(classifier, **settings)


def test_calls_that_are_refused(s, classifier):
    attack = art.ProjectedGradientDescent(classifier, targeted=True, max_iter=1)
    with pytest.raises(ValueError, match="y: got None, accepted: targets"):
        attack.generate(s.images.numpy())
    with pytest.raises(ValueError, match="y: got rows that are not one-hot"):
        attack.generate(s.images.numpy(), numpy.full((40, 10), 0.1))
    with pytest.raises(ValueError, match=r"y: got shape \(3,\)"):
        attack.generate(s.images.numpy(), numpy.zeros(3))
    with pytest.raises(ValueError, match="patch: got an argument of generate, accepted: x, y, mask"):
        attack.generate(s.images.numpy(), s.labels.numpy(), patch=1)
    with pytest.raises(ValueError, match="minimal: got True"):
        art.FastGradientMethod(classifier, minimal=True)


def test_estimators_that_are_refused(s):
    preprocessor = pytest.importorskip("art.defences.preprocessor")
    classification = pytest.importorskip("art.estimators.classification")
    with pytest.raises(ValueError, match=r"estimator: got a torch.*Sequential, accepted: art\."):
        art.FastGradientMethod(s.model)
    kind = type("Mine", (classification.PyTorchClassifier,), {"loss_gradient": lambda self, x, y: x})
    mine = kind(s.model, nn.CrossEntropyLoss(), (1, 8, 8), 10, device_type="cpu")
    with pytest.raises(ValueError, match=r"estimator: got a .*Mine, accepted: .*, and no subclass of it"):
        art.FastGradientMethod(mine)
    replaced = estimator(s.model, (1, 8, 8))
    replaced.loss_gradient = print
    with pytest.raises(ValueError, match="PyTorchClassifier with a loss_gradient of its own"):
        art.FastGradientMethod(replaced)
    other = classification.PyTorchClassifier(s.model, nn.MultiMarginLoss(), (1, 8, 8), 10, device_type="cpu")
    with pytest.raises(ValueError, match="estimator: got one with the loss MultiMarginLoss"):
        art.FastGradientMethod(other)
    for options, said in (
        ({"weight": torch.ones(10)}, "with weight"),
        ({"label_smoothing": 0.1}, "with label_smoothing"),
        ({"weight": torch.ones(10), "label_smoothing": 0.1}, "with weight and label_smoothing"),
    ):
        loss = nn.CrossEntropyLoss(**options)
        other = classification.PyTorchClassifier(s.model, loss, (1, 8, 8), 10, device_type="cpu")
        message = rf"the loss CrossEntropyLoss\(\) {said}, accepted: torch\.nn\.CrossEntropyLoss\(\) without"
        with pytest.raises(ValueError, match=message):
            art.FastGradientMethod(other)
    squeezing = preprocessor.FeatureSqueezing((0, 1))
    with pytest.raises(ValueError, match="estimator: got one with FeatureSqueezing"):
        art.FastGradientMethod(estimator(s.model, (1, 8, 8), preprocessing_defences=squeezing))


def test_a_normalising_estimator_and_one_without_a_box(s):
    library = pytest.importorskip("art.attacks.evasion")
    for options in ({"preprocessing": (0.1, 0.9)}, {"clip_values": None}):
        classifier = estimator(s.model, (1, 8, 8), **options)
        settings = {"eps": 0.1, "eps_step": 0.03, "max_iter": 5, "verbose": False}
        theirs, ours = (
            module.ProjectedGradientDescentPyTorch(classifier, **settings).generate(
                s.images.numpy(), s.labels.numpy()
            )
            for module in (library, art)
        )
        assert (abs(theirs - ours) > 1e-5).mean() <= 1e-2
    assert ours.min() < 0


def test_it_says_what_it_is(classifier):
    text = repr(art.FastGradientMethod(classifier, eps=0.2))
    assert text.startswith("FastGradientMethod(norm=inf, eps=0.2,")
