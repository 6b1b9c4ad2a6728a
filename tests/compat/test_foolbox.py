"""foolbox's ways: epsilons, criteria, models with preprocessing, eagerpy tensors, repetitions."""

import contextlib
import importlib
import sys

import pytest
import torch
from torch import nn

import roli_fast.compat.foolbox as foolbox
from roli_fast.attacks import verify
from roli_fast.models import Normalized


@pytest.fixture
def s(digits_subject):
    return digits_subject.first(40)


@pytest.fixture
def fmodel(s):
    return foolbox.PyTorchModel(s.model, bounds=(0, 1), device="cpu")


@pytest.mark.parametrize("kind", ["LinfPGD", "L2PGD", "L1PGD", "MIFGSM", "L2FastGradientAttack"])
def test_several_epsilons(s, fmodel, kind):
    attack = getattr(foolbox.attacks, kind)()
    norm = "linf" if attack.norm == "linf" else attack.norm
    epsilons = [0.02, getattr(s, norm), torch.tensor(3 * getattr(s, norm))]
    raw, clipped, is_adv = attack(fmodel, s.images, s.labels, epsilons=epsilons)
    assert isinstance(raw, list)
    assert isinstance(clipped, list)
    assert (is_adv.shape, is_adv.dtype) == ((3, 40), torch.bool)
    for found, within, fooled, epsilon in zip(raw, clipped, is_adv, epsilons, strict=True):
        assert torch.equal(found, within)
        assert found.data_ptr() != within.data_ptr()
        checked = verify(s.model, s.images, found, s.labels, norm, float(epsilon))
        assert torch.equal(checked.success, fooled)
    assert is_adv.sum(1).diff().min() > 0  # the larger, the more


def test_one_epsilon_gives_no_list(s, fmodel):
    raw, clipped, is_adv = foolbox.attacks.FGSM()(fmodel, s.images, s.labels, epsilons=0.1)
    assert raw.shape == clipped.shape == s.images.shape
    assert is_adv.shape == (40,)


def test_several_epsilons_take_one_copy_of_the_model(s, fmodel):
    attack = foolbox.attacks.LinfPGD(steps=2)
    attack(fmodel, s.images, s.labels, epsilons=[0.1])
    core = attack._make._attack
    view = core.view(s.model)
    attack(fmodel, s.images, s.labels, epsilons=[0.05, 0.1, 0.2])
    assert attack._make._attack is core
    assert core.view(s.model) is view


def test_what_is_adversarial_is_asked_once(s, fmodel):
    attack = foolbox.attacks.LinfPGD(steps=3)
    asked = []
    handle = s.model.register_forward_hook(lambda module, inputs, output: asked.append(len(output)))
    counts = []
    try:
        attack(fmodel, s.images, s.labels, epsilons=0.1)  # which copies and confirms the model
        for call in (
            lambda: attack(fmodel, s.images, s.labels, epsilons=0.1),
            lambda: attack._make._attack.run(s.model, s.images, s.labels),
        ):
            asked.clear()
            call()
            counts.append(asked.copy())
    finally:
        handle.remove()
    assert counts[0] == counts[1] != []


def test_criteria(s, fmodel):
    attack = foolbox.attacks.LinfPGD(rel_stepsize=0.2, steps=20)
    targets = (s.labels + 3) % 10
    for criterion, fooled in (
        (s.labels, lambda c: c != s.labels),
        (foolbox.Misclassification(s.labels), lambda c: c != s.labels),
        (foolbox.TargetedMisclassification(targets), lambda c: c == targets),
    ):
        found, _, is_adv = attack(fmodel, s.images, criterion, epsilons=0.5)
        logits = fmodel(found)
        assert torch.equal(fooled(logits.argmax(1)), is_adv)
        assert is_adv.double().mean() > 0.9
    criterion = foolbox.TargetedMisclassification(targets)
    assert torch.equal(criterion(found, logits), logits.argmax(1) == targets)
    with pytest.raises(ValueError, match=r"criterion: got a builtins\.str, accepted: labels"):
        attack(fmodel, s.images, "all", epsilons=0.5)
    with pytest.raises(ValueError, match="accepted by LinfFastGradientAttack: labels"):
        foolbox.attacks.FGSM()(fmodel, s.images, criterion, epsilons=0.5)


def test_what_is_refused(s, fmodel):
    attack = foolbox.attacks.LinfPGD()
    with pytest.raises(NotImplementedError, match="epsilons: got None, accepted: numbers"):
        attack(fmodel, s.images, s.labels, epsilons=None)
    with pytest.raises(ValueError, match="epsilons: got none, accepted: a number, or one at least"):
        attack(fmodel, s.images, s.labels, epsilons=[])
    with pytest.raises(TypeError, match="unexpected keyword argument 'early_stop'"):
        attack(fmodel, s.images, s.labels, epsilons=0.1, early_stop=True)
    with pytest.raises(ValueError, match=r"model: got a torch.*Sequential, accepted: foolbox\.PyTorchModel"):
        attack(s.model, s.images, s.labels, epsilons=0.1)
    with pytest.raises(ValueError, match="images: got values in"):
        attack(fmodel, 2 * s.images, s.labels, epsilons=0.1)
    with pytest.raises(TypeError, match="images: got a ndarray, accepted: a tensor"):
        foolbox.attacks.LinfPGD().run(fmodel, s.images.numpy(), s.labels, epsilon=0.1)
    with pytest.raises(TypeError, match="labels: got a list, accepted: a tensor"):
        attack(fmodel, s.images, foolbox.Misclassification(s.labels.tolist()), epsilons=0.1)


def test_criteria_of_a_users_own(s, fmodel):
    """What only looks like a criterion may judge otherwise."""
    modules = [foolbox]
    with contextlib.suppress(ImportError):
        modules.append(importlib.import_module("foolbox"))
    for module in modules:

        class Mine(module.Misclassification):
            def __call__(self, perturbed, outputs):
                return outputs.argmax(-1) == self.labels

        with pytest.raises(ValueError, match=r"criterion: got a .*Mine, accepted: labels"):
            foolbox.attacks.FGSM()(fmodel, s.images, Mine(s.labels), epsilons=0.5)


def test_methods_that_nothing_would_call():
    for name in ("get_loss_fn", "project", "run"):
        with pytest.raises(ValueError, match=f"{name}: got one of Mine's own, accepted: none"):
            type("Mine", (foolbox.attacks.LinfPGD,), {name: lambda self: None})
        with pytest.raises(ValueError, match=f"{name}: got one of LinfProjected"):
            setattr(foolbox.attacks.LinfPGD(), name, print)


def test_names_that_are_not_there():
    assert foolbox.__version__ == "3.3.4"
    with pytest.raises(AttributeError, match=r"roli_fast\.compat\.foolbox: got 'samples', accepted: Mis"):
        _ = foolbox.samples
    with pytest.raises(AttributeError, match="no attribute 'distance': it is the norm, 'linf'"):
        _ = foolbox.attacks.LinfPGD().distance


@pytest.mark.parametrize(
    ("module", "name", "accepted"),
    [
        ("utils", "samples", "accuracy"),
        ("criteria", "Criterion", "Misclassification, TargetedMisclassification"),
        ("models", "TensorFlowModel", "PyTorchModel"),
    ],
)
def test_names_that_are_not_in_its_modules(module, name, accepted):
    with pytest.raises(AttributeError) as caught:
        getattr(getattr(foolbox, module), name)
    text = f"roli_fast.compat.foolbox.{module}: got {name!r}, accepted: {accepted}; the rest is in "
    assert str(caught.value) == f"{text}foolbox.{module}"


def test_samples_and_distances_of_the_library(s, fmodel):
    """Its own functions take our model, and our images."""
    library = pytest.importorskip("foolbox")
    pytest.importorskip("PIL")
    images, labels = library.samples(fmodel, dataset="mnist", batchsize=3)
    assert (images.shape, images.dtype, labels.dtype) == ((3, 1, 28, 28), torch.float32, torch.int64)
    assert 0 <= images.min() < images.max() <= 1
    found = foolbox.attacks.FGSM()(fmodel, s.images, s.labels, epsilons=0.1)[0]
    assert library.distances.linf(s.images, found).max().item() == pytest.approx(0.1, abs=1e-6)


def test_a_model_without_eagerpy_has_no_dummy(fmodel, monkeypatch):
    monkeypatch.setitem(sys.modules, "eagerpy", None)
    assert fmodel.dummy is None


def test_other_bounds_in_place_and_wrapped(s):
    model = foolbox.PyTorchModel(s.model, bounds=(0, 1), device="cpu")
    logits = model(s.images)
    for options in ({}, {"wrapper": True}, {"inplace": True}):
        moved = model.transform_bounds((-1, 3), **options)
        torch.testing.assert_close(moved(4 * s.images - 1), logits, rtol=1e-4, atol=1e-4)
        assert (tuple(moved.bounds), moved is model) == ((-1, 3), "inplace" in options)
    with pytest.raises(ValueError, match="inplace and wrapper"):
        model.transform_bounds((0, 1), inplace=True, wrapper=True)
    library = pytest.importorskip("foolbox")
    wrapped = library.PyTorchModel(s.model, (0, 1), device="cpu").transform_bounds((-1, 1), wrapper=True)
    with pytest.raises(ValueError, match=r"TransformBoundsWrapper, accepted: one of transform_bounds"):
        foolbox.attacks.FGSM()(wrapped, s.images, s.labels, epsilons=0.1)


def test_repeated_attacks_keep_the_first_success(digits_subject, fmodel):
    s = digits_subject.first(200)
    attack = foolbox.attacks.LinfPGD(rel_stepsize=0.5, steps=1)
    torch.manual_seed(0)
    runs = [attack(fmodel, s.images, s.labels, epsilons=[0.12]) for _ in range(4)]
    torch.manual_seed(0)
    raw, clipped, is_adv = attack.repeat(2).repeat(2)(fmodel, s.images, s.labels, epsilons=[0.12])
    every = torch.stack([run[2][0] for run in runs])
    assert torch.equal(is_adv[0], every.any(0))
    assert every[0].sum() < is_adv.sum()
    first = every.int().argmax(0)  # the first run for what none has fooled
    expected = torch.stack([runs[run][0][0][i] for i, run in enumerate(first.tolist())])
    assert torch.equal(raw[0], expected)
    assert torch.equal(clipped[0], expected)


PREPROCESSING = {
    "per channel": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "axis": -3},
    "mean alone": {"mean": [0.4, 0.5, 0.6], "axis": -3},
    "std alone": {"std": torch.tensor([0.2, 0.3, 0.25]), "axis": -3},
    "numbers": {"mean": 0.5, "std": 0.25},
    "flipped": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "axis": -3, "flip_axis": -3},
    "none": None,
}


def colourful():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10)).eval()
    return net, torch.rand(6, 3, 8, 8), torch.randint(0, 10, (6,))


@pytest.mark.parametrize("preprocessing", PREPROCESSING.values(), ids=PREPROCESSING)
def test_models_with_preprocessing_are_taken_from_foolbox_and_from_here(preprocessing):
    library = pytest.importorskip("foolbox")
    net, images, labels = colourful()
    theirs, ours = (
        module.PyTorchModel(net, bounds=(0, 1), device="cpu", preprocessing=preprocessing)
        for module in (library, foolbox)
    )
    torch.testing.assert_close(ours(images), theirs(images))
    expected = library.attacks.LinfBasicIterativeAttack()(theirs, images, labels, epsilons=0.05)
    for model in (ours, theirs):
        found = foolbox.attacks.LinfBasicIterativeAttack()(model, images, labels, epsilons=0.05)
        differs = (found[0] - expected[0]).abs() > 1e-5
        assert differs.double().mean() <= 1e-2
        assert torch.equal(found[2], expected[2])


def test_other_bounds():
    library = pytest.importorskip("foolbox")
    net, images, labels = colourful()
    preprocessing = PREPROCESSING["per channel"]
    theirs, ours = (
        module.PyTorchModel(net, bounds=(0, 1), device="cpu", preprocessing=preprocessing)
        for module in (library, foolbox)
    )
    attack = foolbox.attacks.LinfBasicIterativeAttack()
    expected = attack(ours, images, labels, epsilons=0.05)[0]
    moved = ours.transform_bounds((-1, 1))
    assert moved.bounds == (-1, 1)
    found = attack(moved, 2 * images - 1, labels, epsilons=0.1)[0]
    assert ((found + 1) / 2 - expected).abs().mean() < 1e-4
    theirs.transform_bounds((-1, 1), inplace=True)
    found = attack(theirs, 2 * images - 1, labels, epsilons=0.1)[0]
    assert ((found + 1) / 2 - expected).abs().mean() < 1e-4


def test_a_model_is_unwrapped_once():
    library = pytest.importorskip("foolbox")
    from roli_fast.compat.foolbox.models import pixel_model

    net, *_ = colourful()
    plain = library.PyTorchModel(net, bounds=(0, 1), device="cpu")
    assert pixel_model(plain) is net
    wrapped = library.PyTorchModel(net, (0, 1), device="cpu", preprocessing=PREPROCESSING["per channel"])
    assert isinstance(pixel_model(wrapped), Normalized)
    assert pixel_model(wrapped) is pixel_model(wrapped)


def test_eagerpy_tensors_in_and_out(s):
    eagerpy = pytest.importorskip("eagerpy")
    library = pytest.importorskip("foolbox")
    model = library.PyTorchModel(s.model, bounds=(0, 1), device="cpu")
    images, labels = eagerpy.astensors(s.images, s.labels)
    criterion = library.criteria.Misclassification(labels)
    found, clipped, is_adv = foolbox.attacks.FGSM()(model, images, criterion, epsilons=0.1)
    for tensor in (found, clipped, is_adv):
        assert isinstance(tensor, eagerpy.PyTorchTensor)
    expected = foolbox.attacks.FGSM()(model, s.images, s.labels, epsilons=0.1)
    assert torch.equal(found.raw, expected[0])
    assert torch.equal(is_adv.raw, expected[2])
    several = foolbox.attacks.FGSM()(model, images, labels, epsilons=[0.1, 0.2])
    assert isinstance(several[2], eagerpy.PyTorchTensor)
    ours = foolbox.PyTorchModel(s.model, bounds=(0, 1), device="cpu")
    assert isinstance(ours(images), eagerpy.PyTorchTensor)


def test_accuracy(s, fmodel):
    with torch.no_grad():
        expected = (s.model(s.images).argmax(1) == s.labels).double().mean().item()
    assert foolbox.accuracy(fmodel, s.images, s.labels) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": len}, "model: got a builtin_function_or_method, accepted: a torch.nn.Module"),
        ({"bounds": (1, 0)}, "bounds: got"),
        (
            {"preprocessing": {"means": [0.5]}},
            "preprocessing: got means, accepted: mean, std, axis",
        ),
        ({"preprocessing": {"mean": [0.5], "axis": 1}}, "axis: got 1"),
    ],
)
def test_models_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        foolbox.PyTorchModel(**{"model": nn.Flatten(), "bounds": (0, 1), "device": "cpu", **arguments})


def test_it_says_what_it_is():
    text = repr(foolbox.attacks.LinfPGD(steps=7))
    assert text.startswith("LinfProjectedGradientDescentAttack(")
    assert "steps=7" in text


def test_bytes_are_taken_by_their_value():
    """As foolbox takes them, whose bounds say what they mean."""
    given = {"mean": [124.0, 116.0, 104.0], "std": [58.0, 57.0, 57.0], "axis": -3}
    model = foolbox.PyTorchModel(nn.Flatten().eval(), (0, 255), device="cpu", preprocessing=given)
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(model(pixels), model(pixels.float()))
