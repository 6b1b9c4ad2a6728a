"""Each row of what changes with the switch (docs/switching.md)."""

import contextlib
import copy
import gc
import math
import re
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

import roli_fast.compat.cleverhans as cleverhans
import roli_fast.compat.foolbox as foolbox
import roli_fast.compat.torchattacks as torchattacks
from roli_fast.attacks import attack as attack_module
from roli_fast.attacks import verify
from roli_fast.compat import art, options
from roli_fast.compat.autoattack import AutoAttack
from roli_fast.models import Normalized

from .cases import Coin, estimator, original

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "switching.md"
ROWS: dict[str, str] = {}


def row(title):
    """Marks the test of a row."""

    def mark(test):
        ROWS[title] = test.__name__
        return test

    return mark


def test_every_row_has_its_test():
    table = DOCUMENT.read_text().partition("## What changes")[2]
    titles = re.findall(r"^\| ([^|]+?) \|", table, re.M)
    assert titles[0] == "what"
    assert titles[1:] == list(ROWS)


def test_the_imports_of_the_document_work():
    (block,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)
    exec(block, {})


def test_an_import_that_is_refused_without_a_reason():
    """As the document says: Python keeps what the module would say."""
    assert "is a plain ImportError" in DOCUMENT.read_text()
    with pytest.raises(ImportError, match="cannot import name 'CarliniL2Method'") as caught:
        exec("from roli_fast.compat.art import CarliniL2Method", {})
    assert "accepted" not in str(caught.value)
    with pytest.raises(AttributeError, match="got 'CarliniL2Method', accepted: "):
        _ = art.CarliniL2Method


def test_what_is_covered_is_what_there_is():
    text = DOCUMENT.read_text()
    for module in (torchattacks, art, cleverhans):
        for name in module.__all__:
            assert name in text, name


# --- every face in one step, from a model, images and labels -----------------------------------------------


def by_torchattacks(model, images, labels, library=torchattacks):
    return library.PGDL2(model, eps=0.5, alpha=0.2, steps=2)(images, labels)


def by_foolbox(model, images, labels, library=foolbox):
    wrapped = library.PyTorchModel(model, bounds=(0, 1), device="cpu")
    return library.attacks.L2PGD(steps=2)(wrapped, images, labels, epsilons=0.5)[0]


def by_art(model, images, labels, library=art):
    classifier = estimator(model, tuple(images.shape[1:]))
    sizes = {"norm": 2, "eps": 0.5, "eps_step": 0.2, "max_iter": 2}
    attack = library.ProjectedGradientDescent(classifier, **sizes, verbose=False)
    return torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))


def by_cleverhans(model, images, labels, library=cleverhans):
    sizes = {"eps": 0.5, "eps_iter": 0.2, "nb_iter": 2, "norm": 2, "clip_min": 0.0, "clip_max": 1.0}
    return library.projected_gradient_descent(model, images, y=labels, **sizes)


def by_autoattack(model, images, labels):
    kind = {"version": "custom", "attacks_to_run": ["square"], "norm": "L2", "verbose": False}
    return AutoAttack(model, eps=5.0, device="cpu", **kind).run_standard_evaluation(images, labels)


FACES = [by_torchattacks, by_foolbox, by_art, by_cleverhans, by_autoattack]
every_face = pytest.mark.parametrize("attack", FACES)


def theirs(attack):
    """The same call of the library itself; skips where it is not installed."""
    library = original(attack.__name__.removeprefix("by_"))
    return lambda *batch: attack(*batch, library=library)


@pytest.fixture
def net():
    """In train mode, but for a frozen BatchNorm; its parameters have gradients."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    ).train()
    model[1].eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model


@pytest.fixture
def batch():
    return torch.rand(5, 1, 8, 8), torch.randint(0, 10, (5,))


@row("Modes")
@every_face
def test_modes(attack, net, batch):
    before = [module.training for module in net.modules()]
    attack(net, *batch)
    assert [module.training for module in net.modules()] == before


@pytest.mark.parametrize("attack", [by_torchattacks, by_art])
def test_modes_in_the_original(attack, net, batch):
    before = [module.training for module in net.modules()]
    theirs(attack)(net, *batch)
    assert [module.training for module in net.modules()] != before


@row("Training mode")
@every_face
def test_training_mode(attack, net, batch):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(0)
    found = attack(net, *batch)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    torch.manual_seed(0)
    torch.testing.assert_close(attack(net.eval(), *batch), found)


@row("Gradients")
@every_face
def test_gradients(attack, net, batch):
    attack(net, *batch)
    assert all((parameter.grad == 1).all() for parameter in net.parameters())


@pytest.mark.parametrize("attack", [by_foolbox, by_art, by_cleverhans])
def test_gradients_in_the_original(attack, net, batch):
    theirs(attack)(net, *batch)
    assert not all(p.grad is not None and (p.grad == 1).all() for p in net.parameters())


@row("`torch.no_grad`")
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@every_face
def test_no_grad(attack, context, net, batch):
    torch.manual_seed(0)
    expected = attack(net, *batch)
    torch.manual_seed(0)
    with context():
        found = attack(net, *batch)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("attack", [by_torchattacks, by_foolbox, by_art, by_cleverhans])
def test_no_grad_in_the_original(attack, net, batch):
    call = theirs(attack)
    with torch.no_grad(), pytest.raises(Exception, match="grad"):
        call(net, *batch)


@row("Channels-last")
@every_face
def test_channels_last(attack, batch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10)).eval()
    images = torch.rand(5, 3, 8, 8)
    found = []
    for given in (images, images.to(memory_format=torch.channels_last)):
        torch.manual_seed(0)
        found.append(attack(model, given, batch[1]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)
    if attack is not by_art:  # numpy's have one layout
        assert found[1].is_contiguous(memory_format=torch.channels_last)


def test_layouts_and_shapes_in_the_original():
    call = theirs(by_torchattacks)
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 10)).eval()
    images, labels = torch.rand(5, 3, 8, 8), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="view"):
        call(conv, images.to(memory_format=torch.channels_last), labels)
    flat = nn.Linear(12, 10).eval()
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        call(flat, torch.rand(5, 12), labels)


@row("Shapes")
@pytest.mark.parametrize("attack", FACES[:-1])  # Square changes squares
@pytest.mark.parametrize("shape", [(12,), (4, 6), (2, 2, 3, 2)])
def test_shapes(attack, shape):
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 10)).eval()
    images = torch.rand(5, *shape)
    found = attack(model, images, torch.zeros(5, dtype=torch.int64))
    assert found.shape == images.shape
    assert not torch.equal(found, images)


@row("Half precision")
@pytest.mark.parametrize("attack", [by_torchattacks, by_foolbox, by_cleverhans, by_autoattack])
def test_half_precision(attack, net, batch):
    images, labels = batch[0].bfloat16(), batch[1]
    found = attack(net.eval().bfloat16(), images, labels)
    assert found.dtype == torch.bfloat16
    eps = 5.0 if attack is by_autoattack else 0.5
    assert ((found - images).float().flatten(1).norm(dim=1) <= eps * (1 + 1e-3)).all()


@pytest.mark.parametrize("attack", [by_art, by_cleverhans])
def test_half_precision_in_the_original(attack, net, batch):
    call = theirs(attack)
    images = batch[0].bfloat16()
    with pytest.raises((RuntimeError, TypeError)):
        call(net.eval().bfloat16(), images, batch[1])


@row("Result")
@every_face
def test_result(attack, net, batch):
    assert not attack(net, batch[0].requires_grad_(attack is not by_art), batch[1]).requires_grad


def test_a_result_in_the_original(net, batch):
    assert theirs(by_cleverhans)(net, *batch).requires_grad


@row("Seeds")
@every_face
def test_seeds(attack, net, batch):
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        numpy.random.seed(seed + len(found))
        found.append(attack(net, *batch) if attack is not by_art else by_art_at_random(net, *batch))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    state = torch.get_rng_state()
    torchattacks.APGD(net, steps=2, seed=0)(*batch)
    AutoAttack(
        net, version="custom", attacks_to_run=["apgd-ce"], eps=1.0, seed=0, device="cpu", verbose=False
    ).run_standard_evaluation(*batch)
    assert torch.equal(torch.get_rng_state(), state)


def by_art_at_random(model, images, labels):
    classifier = estimator(model, tuple(images.shape[1:]))
    attack = art.ProjectedGradientDescent(classifier, max_iter=1, num_random_init=1)
    return torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))


def test_seeds_in_the_original(net, batch):
    library = original("torchattacks")
    state = torch.get_rng_state()
    library.APGD(net.eval(), steps=2, seed=0)(*batch)
    assert not torch.equal(torch.get_rng_state(), state)


@row("Range")
@every_face
def test_range(attack, net, batch):
    with pytest.raises((ValueError, AssertionError), match=r"(images|x): got values in"):
        attack(net, 2 * batch[0] - 1, batch[1])
    own = {
        by_torchattacks: r"attack\.set_normalization_used\(mean, std\), and they stay as they are",
        by_foolbox: r"images in \[0, 1\] and PyTorchModel\(model, bounds, preprocessing=",
        by_art: r"PyTorchClassifier\(\.\.\., clip_values=\(0, 1\), preprocessing=\(mean, std\)\)",
        by_cleverhans: r"x in \[0\.0, 1\.0\] and roli_fast\.models\.Normalized\(model_fn, mean, std\)",
        by_autoattack: r"images in \[0, 1\] and AutoAttack\(roli_fast\.models\.Normalized\(model, mean, std",
    }
    with pytest.raises((ValueError, AssertionError), match=own[attack]) as caught:
        attack(net, 2 * batch[0] - 1, batch[1])
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_the_way_out_of_a_wrong_range_works(net, batch):
    """What each error says leads to the images of the attack on pixels."""
    images, labels = batch
    mean, std = [0.5], [0.25]
    normalised = (images - 0.5) / 0.25
    pixels = Normalized(net, mean, std)
    expected = torchattacks.BIM(pixels, eps=0.1)(images, labels)
    attack = torchattacks.BIM(net, eps=0.1)
    attack.set_normalization_used(mean, std)
    torch.testing.assert_close(attack.inverse_normalize(attack(normalised, labels)), expected)
    with pytest.raises(ValueError, match="set_normalization_used takes what they were normalised by"):
        attack(3 * normalised, labels)
    preprocessing = {"mean": mean, "std": std, "axis": -3}
    wrapped = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu", preprocessing=preprocessing)
    descent = foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=2 / 255)
    torch.testing.assert_close(descent(wrapped, images, labels, epsilons=0.1)[0], expected)


def test_a_range_is_checked_of_all_images_before_any_is_attacked(net, batch):
    asked = []
    net.register_forward_hook(lambda module, inputs, output: asked.append(len(output)))
    images = batch[0].clone()
    images[-1] = 2.0
    evaluate = AutoAttack(net, eps=0.1, device="cpu", verbose=False).run_standard_evaluation
    attack = art.FastGradientMethod(estimator(net, (1, 8, 8)), batch_size=1)
    asked.clear()
    for call in (
        lambda: evaluate(images, batch[1], bs=1),
        lambda: attack.generate(images.numpy(), batch[1].numpy()),
    ):
        with pytest.raises(ValueError, match="images: got values in"):
            call()
    assert asked == []


@pytest.mark.parametrize("library", ["ours", "theirs"])
def test_a_range_that_is_not_checked(library, net, batch):
    """Of cleverhans, without its sanity checks: images from outside of the box end in it."""
    library = cleverhans if library == "ours" else original("cleverhans")
    images = 2 * batch[0] - 1
    with contextlib.nullcontext() if library is not cleverhans else pytest.warns(match="is it normalised"):
        found = library.fast_gradient_method(net.eval(), images, 0.1, math.inf, 0.0, 1.0, y=batch[1])
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(net(x), batch[1]), x)
    torch.testing.assert_close(found.detach(), (images + 0.1 * gradient.sign()).clamp(0, 1))


@row("Rounding")
@pytest.mark.parametrize("attack", [by_torchattacks, by_art, by_autoattack])
def test_rounding(attack, net, batch):
    images = batch[0].clone()
    images[:, 0, 0] = 1.0000002
    torch.manual_seed(0)
    expected = attack(net, images.clamp(max=1), batch[1])
    torch.manual_seed(0)
    assert torch.equal(attack(net, images, batch[1]), expected)
    with pytest.raises((ValueError, AssertionError), match=r"(images|x): got values in \[.*, 1\.0000"):
        attack(net, images + 1e-5, batch[1])


@pytest.mark.parametrize("attack", [by_torchattacks, by_art])
def test_range_in_the_original(attack, net, batch):
    found = theirs(attack)(net, 2 * batch[0] - 1, batch[1])
    assert (found.min() >= 0) == (attack is by_torchattacks)


@pytest.mark.parametrize("attack", [by_foolbox, by_cleverhans])
def test_range_where_the_original_raises(attack, net, batch):
    call = theirs(attack)
    with pytest.raises(AssertionError):
        call(net, 2 * batch[0] - 1, batch[1])


@row("Confident images")
def test_confident_images(batch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        model[1].weight.mul_(100)
        labels = model(batch[0]).argmax(1)
        margins = model(batch[0]).topk(2).values.diff(dim=1).abs()[:, 0]
    sure = (margins > 17) & (margins < 90)
    assert sure.any()
    images = batch[0][sure].double().requires_grad_()
    exact = nn.functional.cross_entropy(copy.deepcopy(model).double()(images), labels[sure], reduction="sum")
    (gradient,) = torch.autograd.grad(exact, images)

    def wrong(library):
        found = library.FGSM(model, eps=0.1)(batch[0], labels)[sure]
        moved = (found - batch[0][sure]).sign()
        return ((moved != gradient.sign()) & (moved != 0)).double().mean().item()

    assert wrong(torchattacks) == 0
    assert wrong(original("torchattacks")) > 0.05


def test_zero_gradients(batch):
    class Half(nn.Module):
        """Of constant output for all images but the first."""

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            return self.linear(x.flatten(1)) * (torch.arange(len(x)) == 0)[:, None]

    for kind in (torchattacks.MIFGSM, torchattacks.PGDL2, torchattacks.BIM):
        attack = kind(Half().eval(), eps=0.1, alpha=0.05, steps=2)
        attack.random_start = False
        found = attack(*batch)
        assert found.isfinite().all()
        assert not torch.equal(found[0], batch[0][0])
        torch.testing.assert_close(found[1:], batch[0][1:])


@row("Small gradients")
def test_small_gradients():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        model[1].weight.mul_(1e-9)
    images = torch.full((5, 1, 8, 8), 0.5)
    attack = torchattacks.PGDL2(model, eps=1.0, alpha=0.3, steps=1, random_start=False)
    length = (attack(images, torch.zeros(5, dtype=torch.int64)) - images).flatten(1).norm(dim=1)
    torch.testing.assert_close(length, torch.full((5,), 0.3))
    attack = original("torchattacks").PGDL2(model, eps=1.0, alpha=0.3, steps=1, random_start=False)
    length = (attack(images, torch.zeros(5, dtype=torch.int64)) - images).flatten(1).norm(dim=1)
    assert (length < 0.299).all()
    call = {"eps": 0.3, "norm": 2, "y": torch.zeros(5, dtype=torch.int64)}
    lengths = [
        (library.fast_gradient_method(model, images, **call).detach() - images).flatten(1).norm(dim=1)
        for library in (cleverhans, original("cleverhans"))
    ]
    torch.testing.assert_close(lengths[0], torch.full((5,), 0.3))
    assert (lengths[1] < 0.299).all()


@row("Settings that would do nothing")
def test_settings_that_would_do_nothing(net):
    with pytest.raises(ValueError, match="model_training: got True"):
        torchattacks.PGD(net).set_model_training_mode(True)
    with pytest.raises(AttributeError, match="'apgd': for settings of single attacks"):
        AutoAttack(net).apgd.n_restarts = 2
    classifier = estimator(net, (1, 8, 8))
    for name, kind in (
        ("random_eps", art.ProjectedGradientDescent),
        ("summary_writer", art.ProjectedGradientDescent),
        ("minimal", art.FastGradientMethod),
    ):
        with pytest.raises(ValueError, match=f"{name}: got True, accepted: False"):
            kind(classifier, **{name: True})


def by_apgd(model, images, labels, library=torchattacks):
    return library.APGD(model, "L2", eps=0.5, steps=2)(images, labels)


@row("No gradient")
@pytest.mark.parametrize("attack", [*FACES[:-1], by_apgd])
def test_no_gradient(attack, batch):
    """Of a last image, which a user's loop attacks alone."""
    dead = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Threshold(100.0, 0.0)).eval()
    image, label = batch[0][:1], torch.zeros(1, dtype=torch.int64)
    with warnings.catch_warnings(record=True) as said:
        found = attack(dead, image, label)
    assert (found - image).norm() <= 0.5 * (1 + 1e-6)
    if attack in (by_foolbox, by_apgd):
        assert "1 of 1 images withstood without a gradient to follow" in str(said[-1].message)
        assert said[-1].filename == __file__


def test_no_gradient_for_an_image_of_an_ensemble(net, batch):
    """Square breaks it, which needs none."""

    class Stairs(nn.Module):
        def forward(self, x):
            return net.eval()((x * 20).round() / 20)

    labels = Stairs()(batch[0]).argmax(1)
    ensemble = torchattacks.AutoAttack(Stairs(), eps=1.0)
    with pytest.warns(RuntimeWarning, match="images withstood without a gradient"):
        found = ensemble(batch[0], labels)
    assert (Stairs()(found).argmax(1) != labels).any()


@row("Unusual arguments")
def test_unusual_arguments(net, batch):
    images, labels = batch
    with pytest.raises(ValueError, match=r"alpha: got -0\.1"):
        torchattacks.PGD(net, alpha=-0.1)(images, labels)
    with pytest.raises(ValueError, match=r"eps: got a torch.float32 tensor of shape \(1, 3, 1, 1\)"):
        torchattacks.PGD(net, eps=torch.ones(1, 3, 1, 1))(images, labels)
    with pytest.raises(ValueError, match="steps: got 0"):
        torchattacks.PGD(net, steps=0)(images, labels)
    with pytest.raises(ValueError, match="labels: got "):
        torchattacks.PGD(net)(images, torch.full((5, 10), 0.1))
    wrapped = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    with pytest.raises(ValueError, match=r"eps: got -0.1"):
        foolbox.attacks.LinfPGD()(wrapped, images, labels, epsilons=-0.1)
    with pytest.raises(
        ValueError, match=r"labels: got torch.int64 of shape \(5, 8, 8\), accepted: .* \(5,\)"
    ):
        torchattacks.PGD(nn.Conv2d(1, 3, 1))(images, torch.zeros(5, 8, 8, dtype=torch.int64))
    per_pixel = {"eps": numpy.ones((1, 8, 8)), "eps_step": numpy.ones((1, 8, 8))}
    attack = art.ProjectedGradientDescent(estimator(net, (1, 8, 8)), **per_pixel, verbose=False)
    with pytest.raises(
        ValueError, match=r"eps: got an array of shape \(1, 8, 8\), accepted: a number, or one"
    ):
        attack.generate(images.numpy(), labels.numpy())


def test_unusual_arguments_in_the_original(net, batch):
    images, labels = batch
    attack = original("torchattacks").PGD(nn.Conv2d(1, 3, 1))
    assert not torch.equal(attack(images, torch.zeros(5, 8, 8, dtype=torch.int64)), images)
    per_pixel = {"eps": numpy.ones((1, 8, 8)), "eps_step": numpy.ones((1, 8, 8)), "max_iter": 1}
    kind = original("art").ProjectedGradientDescent
    attack = kind(estimator(net, (1, 8, 8)), **per_pixel, verbose=False)
    assert attack.generate(images.numpy(), labels.numpy()).shape == (5, 1, 8, 8)


@row("Other attacks' arguments")
def test_adversarial_trainers_of_art(net, batch):
    trainer = pytest.importorskip("art.defences.trainer")
    classifier = estimator(net, (1, 8, 8))
    attack = art.FastGradientMethod(classifier)
    with pytest.raises(ValueError, match="attack"):
        trainer.AdversarialTrainer(classifier, attack)
    assert trainer.AdversarialTrainer(classifier, [attack]).attacks == [attack]


@row("Losses and defences")
def test_losses_and_defences(net):
    classification = pytest.importorskip("art.estimators.classification")
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.1)
    classifier = classification.PyTorchClassifier(net, smoothed, (1, 8, 8), 10, device_type="cpu")
    with pytest.raises(ValueError, match="estimator: got one with the loss CrossEntropyLoss"):
        art.FastGradientMethod(classifier)


def fooled_in_six_starts(library):
    """Which of 200 images, of which a start fools each with a probability of a half."""
    images, labels = numpy.full((200, 1, 4, 4), 0.5, numpy.float32), numpy.zeros(200, numpy.int64)
    classifier = estimator(Coin(), (1, 4, 4))
    attack = library.FastGradientMethod(classifier, eps=0.1, num_random_init=6, batch_size=200)
    return classifier.predict(attack.generate(images, labels)).argmax(1) != 0


@row("Restarts")
def test_restarts():
    assert fooled_in_six_starts(art).mean() > 0.9  # 1 - 2^-6 is expected


def test_restarts_in_the_original():
    assert fooled_in_six_starts(original("art")).mean() < 0.75  # six standard deviations above a half


@row("Clipped images")
def test_clipped_images(digits_subject):
    s = digits_subject.first(40)
    wrapped = foolbox.PyTorchModel(s.model, bounds=(0, 1), device="cpu")
    for kind, norm in (("LinfPGD", "linf"), ("L2PGD", "l2"), ("L1PGD", "l1")):
        eps = getattr(s, norm)
        found, clipped, _ = getattr(foolbox.attacks, kind)()(wrapped, s.images, s.labels, epsilons=eps)
        assert torch.equal(found, clipped)
        assert verify(s.model, s.images, found, s.labels, norm, eps * (1 + 1e-6)).in_ball.all()


@row("State")
def test_state(digits_subject, tmp_path):
    s = digits_subject.first(6)
    kind = {"version": "custom", "attacks_to_run": ["apgd-ce"], "seed": 0, "verbose": False}
    evaluate = AutoAttack(s.model, eps=0.5, device="cpu", **kind).run_standard_evaluation
    evaluate(s.images, s.labels, bs=3, state_path=tmp_path / "state")
    again = evaluate(s.images, s.labels, bs=3, state_path=tmp_path / "state")
    assert torch.equal(again, s.images)  # all were done


def copies_made(attack, net, batch, monkeypatch):
    """By an attack that is made anew for each of three batches."""
    made = []
    view = attack_module.AttackView
    monkeypatch.setattr(attack_module, "AttackView", lambda *a, **o: made.append(a) or view(*a, **o))
    for _ in range(3):
        attack(net, *batch)
    return len(made)


@row("Copies")
@every_face
def test_copies(attack, net, batch, monkeypatch):
    """Of the model one, though each batch has an attack of its own."""
    assert copies_made(attack, net, batch, monkeypatch) == 1


def test_the_copies_of_an_ensemble(net, batch, monkeypatch):
    made = []
    view = attack_module.AttackView
    monkeypatch.setattr(attack_module, "AttackView", lambda *a, **o: made.append(a) or view(*a, **o))
    attacks = [torchattacks.FGSM(net, eps=0.01), torchattacks.APGD(net, eps=0.01, steps=2)]
    ensemble = torchattacks.MultiAttack(attacks)
    ensemble(*batch)
    attacks[0].eps, attacks[1].steps = 0.02, 3
    ensemble(*batch)
    assert len(made) == 1


def by_normalising_torchattacks(model, images, labels):
    attack = torchattacks.FGSM(model, eps=0.01)
    attack.set_normalization_used([0.1], [0.9])
    return attack(attack.normalize(images), labels)


def by_normalising_foolbox(model, images, labels):
    preprocessing = {"mean": [0.1], "std": [0.9], "axis": -3}
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu", preprocessing=preprocessing)
    return foolbox.attacks.FGSM()(wrapped, images, labels, epsilons=0.01)[0]


def by_normalising_art(model, images, labels):
    pytest.importorskip("art.estimators.classification")
    classifier = estimator(model, tuple(images.shape[1:]), preprocessing=(0.1, 0.9))
    return art.FastGradientMethod(classifier, eps=0.01).generate(images.numpy(), labels.numpy())


def by_a_normalising_ensemble(model, images, labels):
    ensemble = torchattacks.MultiAttack([torchattacks.FGSM(model), torchattacks.BIM(model)])
    ensemble.set_normalization_used([0.1], [0.9])
    return ensemble(ensemble.normalize(images), labels)


@pytest.mark.parametrize(
    "attack",
    [
        by_normalising_torchattacks,
        by_normalising_foolbox,
        by_normalising_art,
        by_a_normalising_ensemble,
    ],
)
def test_copies_of_a_model_that_a_face_normalises(attack, net, batch, monkeypatch):
    assert copies_made(attack, net, batch, monkeypatch) == 1


def test_a_model_that_was_normalised_lives_until_another_is(batch):
    """Or as long as the attack that normalises it."""
    model, others = (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval(),
        [nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval() for _ in range(2)],
    )
    attack = torchattacks.FGSM(model)
    attack.set_normalization_used([0.1], [0.9])
    attack(attack.normalize(batch[0]), batch[1])
    alive = weakref.ref(model)
    del model
    by_normalising_torchattacks(others[0], *batch)
    assert alive() is not None
    del attack
    gc.collect()
    assert alive() is None


def test_copies_outlive_the_first_attack_but_not_its_graphs(net, batch):
    """Of which there are some for each attack on a GPU."""
    attack = torchattacks.BIM(net)
    attack(*batch)
    core, view = weakref.ref(attack._made()), weakref.ref(attack._made().view(net))
    del attack
    gc.collect()
    assert core() is None
    assert view() is not None


def shared_by_threads(call, threads=3, times=4):
    """What call(number of the thread) returns in each, called at once."""
    together = threading.Barrier(threads)

    def several(number):
        together.wait()
        return [call(number) for _ in range(times)]

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(several, range(threads)))


@row("Threads")
@pytest.mark.parametrize("face", ["torchattacks", "foolbox", "cleverhans"])
def test_threads(face, net, batch):
    """One attack and one model, in threads with other sizes."""
    images, labels = torch.full_like(batch[0], 0.5), batch[1]
    wrapped = foolbox.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    descent = foolbox.attacks.LinfPGD(steps=3)
    fixed = torchattacks.PGD(net, eps=0.1, alpha=0.1, steps=3)
    calls = {
        "torchattacks": lambda eps: fixed(images, labels),
        "foolbox": lambda eps: descent(wrapped, images, labels, epsilons=eps)[0],
        "cleverhans": lambda eps: cleverhans.projected_gradient_descent(
            net, images, eps, eps, 3, math.inf, 0.0, 1.0, y=labels
        ),
    }
    sizes = (0.1, 0.1, 0.1) if face == "torchattacks" else (0.1, 0.2, 0.3)
    for eps, results in zip(sizes, shared_by_threads(lambda n: calls[face](sizes[n])), strict=True):
        for found in results:
            assert (found - images).abs().max().item() == pytest.approx(eps, abs=1e-6)


def test_a_copy_lives_as_long_as_its_model(batch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    attack = torchattacks.FGSM(model)
    attack(*batch)
    view = weakref.ref(attack._made().view(model))
    del attack
    assert view() is not None
    del model
    gc.collect()
    assert view() is None


@row("Precision")
def test_precision(digits_subject):
    s = digits_subject.first(60)
    attack = torchattacks.BIM(s.model, eps=0.1, alpha=0.03, steps=5)
    assert attack._made().precision == "fp32"
    exact = attack(s.images, s.labels)
    with options(precision="bf16"):
        assert attack._made().precision == "bf16"
        fast = attack(s.images, s.labels)
    with torch.no_grad():
        right = [(s.model(images).argmax(1) == s.labels).sum().item() for images in (exact, fast)]
    assert abs(right[0] - right[1]) <= 3


def in_bfloat16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


@row("Autocast")
@every_face
def test_autocast(attack, net, batch):
    torch.manual_seed(0)
    expected = attack(net, *batch)
    torch.manual_seed(0)
    with in_bfloat16(), pytest.warns(RuntimeWarning, match='options.precision="bf16"') as said:
        found = attack(net, *batch)
    assert said[-1].filename == __file__
    if attack is not by_autoattack:  # whose search follows the model itself
        assert torch.equal(found, expected)


@every_face
def test_a_precision_that_was_chosen_is_meant(attack, net, batch):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for precision in ("fp32", "bf16"):
            with in_bfloat16(), options(precision=precision):
                attack(net, *batch)
        attack(net, *batch)


@pytest.mark.parametrize("attack", [by_torchattacks, by_foolbox, by_cleverhans])
def test_autocast_in_the_original(attack, net, batch):
    call, found = theirs(attack), set()
    net[-1].register_forward_hook(lambda module, inputs, output: found.add(output.dtype))
    with in_bfloat16():
        call(net.eval(), *batch)
    assert found == {torch.bfloat16}


class Spread(nn.DataParallel):
    """As over two GPUs, but for what it computes."""

    def __init__(self, module):
        super().__init__(module)
        self.device_ids = [0, 1]

    def forward(self, x):
        return self.module(x)


@row("Several GPUs")
@every_face
def test_several_gpus(attack, net, batch):
    model = Spread(net)
    with pytest.warns(RuntimeWarning, match="one GPU, without torch.nn.DataParallel") as said:
        attack(model, *batch)
    assert said[-1].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        attack(model, *batch)
        model = Spread(net)
        model.device_ids = [0]
        attack(model, *batch)


def by_an_ensemble(model, images, labels):
    attacks = [torchattacks.FGSM(model, eps=0.02), torchattacks.Square(model, eps=0.2, n_queries=20)]
    return torchattacks.MultiAttack(attacks)(images, labels)


@row("Integers")
@pytest.mark.parametrize(
    "attack", [by_torchattacks, by_apgd, by_an_ensemble, by_foolbox, by_cleverhans, by_autoattack]
)
def test_integers(attack, net, batch):
    """The same images as for what they mean, of which some are attacked, and some wrong from the start."""
    pixels = (batch[0] * 255).round().to(torch.uint8)
    labels = net.eval()(pixels / 255).argmax(1)
    labels[0] = (labels[0] + 1) % 10
    if attack is not by_cleverhans:
        expected, found = repeated(attack, net, [(pixels / 255, labels), (pixels, labels)])
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)
        assert not torch.equal(found, pixels / 255)
    for dtype in (torch.uint8, torch.int32):
        expected, found = repeated(attack, net, [(batch[0], labels), (batch[0], labels.to(dtype))])
        assert torch.equal(found, expected)


def repeated(attack, model, batches):
    """From the same draws."""
    found = []
    for batch in batches:
        torch.manual_seed(0)
        found.append(attack(model, *batch))
    return found


@pytest.mark.parametrize("attack", [by_torchattacks, by_apgd, by_foolbox])
def test_integers_in_the_original(attack, net, batch):
    library = original("foolbox" if attack is by_foolbox else "torchattacks")
    pixels = (batch[0] * 255).round().to(torch.uint8)
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError, ValueError)):
        attack(net.eval(), pixels, batch[1], library=library)


def saved_in_batches(library, model, path, images, monkeypatch):
    """How often the file is written, where the loader fails after six batches of eight."""

    def loader():
        for number, image in enumerate(images.split(1)):
            if number == 6:
                raise KeyboardInterrupt
            yield image, torch.zeros(1, dtype=torch.int64)

    class Loader(list):
        def __iter__(self):
            return loader()

    writes, save = [], torch.save
    monkeypatch.setattr(torch, "save", lambda *a, **o: writes.append(1) or save(*a, **o))
    with pytest.raises(KeyboardInterrupt):
        library.FGSM(model).save(Loader(range(8)), path, verbose=True)
    assert len(torch.load(path)["adv_inputs"]) == 6
    return len(writes)


@row("Saving")
def test_saving(net, tmp_path, monkeypatch):
    images = torch.rand(8, 1, 8, 8)
    assert saved_in_batches(torchattacks, net, tmp_path / "images.pt", images, monkeypatch) == 4  # 1, 2, 4, 6
    assert [path.name for path in tmp_path.iterdir()] == ["images.pt"]


def test_saving_in_the_original(net, tmp_path, monkeypatch):
    images = torch.rand(8, 1, 8, 8)
    path = tmp_path / "images.pt"
    assert saved_in_batches(original("torchattacks"), net.eval(), path, images, monkeypatch) == 6
