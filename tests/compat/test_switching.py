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
    with pytest.raises(ValueError, match=r"Normalized\(model, mean, std\)"):
        torchattacks.FGSM(net)(2 * batch[0] - 1, batch[1])


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


def by_apgd(model, images, labels):
    return torchattacks.APGD(model, "L2", eps=0.5, steps=2)(images, labels)


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


@row("Copies")
@every_face
def test_copies(attack, net, batch, monkeypatch):
    """Of the model one, though each batch has an attack of its own."""
    made = []
    view = attack_module.AttackView
    monkeypatch.setattr(attack_module, "AttackView", lambda *a, **o: made.append(a) or view(*a, **o))
    for _ in range(3):
        attack(net, *batch)
    assert len(made) == 1


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
