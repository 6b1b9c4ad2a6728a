"""One clear error for what cannot be attacked, and never a wrong robust accuracy."""

import math
import pickle

import numpy
import pytest
import torch
from torch import nn

from roli_fast.attacks import (
    APGD,
    APGDT,
    FAB,
    FABT,
    FGSM,
    MIFGSM,
    NFGSM,
    PGD,
    TPGD,
    AutoAttack,
    FeaturePGD,
    Square,
    verify,
)
from roli_fast.evaluation import evaluate
from roli_fast.training import DivergedError

from .cases import ATTACKS, each_descent, make

each = each_descent
labelled = pytest.mark.parametrize(
    "name", [n for n in ATTACKS if n.split("-")[0] in ("FGSM", "PGD", "MIFGSM")]
)


def refused(attack, model, images, labels, message):
    """By every way into an attack; evaluation and verification give no number either."""
    for ask in (attack, attack.run):
        with pytest.raises(ValueError, match=message):
            ask(model, images, labels)
    with pytest.raises(ValueError, match=r".+: .+"):
        evaluate(model, [(images, labels)], attack)


@each
@pytest.mark.parametrize(
    "model",
    [
        lambda x: torch.ones(len(x), 5) + x.detach().flatten(1)[:, :5],
        lambda x: (x.flatten(1)[:, :5] > 0.5).float(),
        lambda x: torch.eye(5, requires_grad=True)[torch.arange(len(x)) % 5],
        nn.Sequential(nn.Flatten(), nn.Threshold(2.0, 0.0)),
    ],
    ids=["detached", "steps", "a constant that learns", "flat"],
)
def test_a_model_without_gradient(name, model, batch):
    """A flat one has a gradient of zero: there is nothing to refuse, and nothing to claim."""
    images, labels = batch
    if isinstance(model, nn.Module):
        assert make(name)(model, images, labels).isfinite().all()
        return
    labels = model(images).argmax(1)
    refused(make(name), model, images, labels, "model: its output has no gradient with respect to the input")


@pytest.mark.parametrize(
    ("brought", "way_out"),
    [
        (lambda pixels: (pixels - 0.5) / 0.25, r"If they are normalised, .*Normalized\(model, mean, std\)"),
        (lambda pixels: pixels * 255, "If they are pixels from 0 to 255: images / 255"),
    ],
    ids=["normalised", "bytes"],
)
def test_images_outside_of_the_bounds(brought, way_out, batch):
    """What can be done depends on what they are."""
    images, labels = batch
    refused(PGD(), nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), brought(images), labels, way_out)


@each
@pytest.mark.parametrize("where", [0, 5])
def test_nan_logits(name, where, batch):
    """Of all images, or of one that the first few do not show."""
    linear = nn.Linear(192, 5)

    def model(x):
        z = linear(x.flatten(1))
        hit = (x.flatten(1)[:, 0] - batch[0][where, 0, 0, 0]).abs() < 0.2
        return torch.where(hit[:, None], z * torch.nan, z)

    images, labels = batch
    if name[:7] == "Feature":
        assert make(name)(model, images).isfinite().all()
        return
    with pytest.raises(ValueError, match="model: its logits are NaN for samples"):
        make(name).run(model, images, labels)
    with pytest.raises(ValueError, match="model: its logits are NaN for samples"):
        evaluate(model, [(images, labels)], make(name))
    with pytest.raises(ValueError, match="model: its logits are NaN for samples"):
        verify(model, images, images, labels, "linf", 0.1)


@labelled
@pytest.mark.parametrize("by", [5, -5, 2**40])
def test_labels_out_of_range(name, by, convnet, batch):
    images, labels = batch
    refused(make(name), convnet, images, labels + by, r"labels: got values in \[.*accepted: 0 ")
    with pytest.raises(ValueError, match=r"labels: got values in \[.*accepted: 0 .. 4"):
        verify(convnet, images, images, labels + by, "linf", 0.1)


@pytest.mark.parametrize("name", ["PGD-linf", "AutoAttack-linf"])
def test_tensors_on_another_device_than_the_images(name, convnet, batch):
    """As an error that says which, before anything is attacked."""
    (images, labels), attack = batch, make(name)
    elsewhere = labels.to("meta")
    message = "labels: got device meta, accepted: images' device cpu"
    for ask in (attack, attack.run):
        with pytest.raises(ValueError, match=message):
            ask(convnet, images, elsewhere)
    with pytest.raises(ValueError, match=message):
        evaluate(lambda x: convnet(x), [(images, elsewhere)], attack)  # a module's device is where they go
    with pytest.raises(ValueError, match=message):
        verify(convnet, images, images, elsewhere, "linf", 0.1)
    with pytest.raises(ValueError, match="index: got device meta, accepted: images' device cpu"):
        attack.run(convnet, images, labels, index=torch.arange(6, device="meta"))
    with pytest.raises(ValueError, match=r"key: got torch.int64 of shape \(1,\) on meta, accepted: .*, cpu"):
        attack.run(convnet, images, labels, key=torch.zeros(1, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([3, 1], "got numbers that do not ascend, accepted: 0 .. 5, in ascending order, each once"),
        ([1, 1], "got numbers that do not ascend"),
        ([5, 4, 3, 2, 1, 0], "got numbers that do not ascend"),
        ([-1, 2], r"got values in \[-1, 2\], accepted: 0 .. 5"),
        ([2, 6], r"got values in \[2, 6\]"),
        ([[0, 1]], r"got torch.int64 of shape \(1, 2\) on cpu, accepted: torch.int64 of shape \(n,\)"),
        ([True, False] * 3, "got torch.bool"),
        ([0.0, 1.0], "got torch.float32"),
    ],
)
@pytest.mark.parametrize("name", ["PGD-linf", "AutoAttack-linf"])
def test_rows_that_are_not_some_of_the_batch_in_order(name, rows, message, convnet, batch):
    """In another order, an image would be taken for what the attack made of another one."""
    generator = torch.Generator()
    attack, before = make(name, generator=generator), generator.get_state()
    with pytest.raises(ValueError, match=f"^rows: {message}"):
        attack.run(convnet, *batch, rows=torch.tensor(rows))
    assert torch.equal(generator.get_state(), before)


def test_rows_of_another_kind_or_device(convnet, batch):
    with pytest.raises(TypeError, match=r"rows: got a list, accepted: torch.int64"):
        PGD().run(convnet, *batch, rows=[0, 2])
    with pytest.raises(ValueError, match=r"rows: got torch.int64 of shape .* on meta, accepted: .*, cpu"):
        PGD().run(convnet, *batch, rows=torch.arange(2, device="meta"))


@each
@pytest.mark.parametrize("change", [lambda x: x * 2 - 1, lambda x: x * 255, lambda x: x / 0])
def test_images_outside_the_bounds(name, change, convnet, batch):
    message = r"images: got (values in .*accepted: values within bounds=\(0.0, 1.0\)|NaN)"
    images = change(batch[0])
    for ask in (make(name), make(name).run):
        with pytest.raises(ValueError, match=message):
            ask(convnet, images, batch[1])


# What an attack sets itself, or has none of.
FIXED = {
    FGSM: ("step_size", "steps", "random_start", "decay"),
    NFGSM: ("step_size", "steps", "random_start", "decay"),
    MIFGSM: ("noise",),
    TPGD: ("random_start", "loss", "targeted"),
    FeaturePGD: ("random_start", "loss", "targeted"),
    APGD: ("step_size", "random_start", "iterate", "targets"),
    APGDT: ("step_size", "loss", "targeted"),
    FAB: ("step_size", "loss", "targeted", "targets"),
    FABT: ("step_size", "loss", "targeted"),
    Square: ("steps", "step_size", "random_start"),
}


@pytest.mark.parametrize(
    ("kind", "option"), [(kind, option) for kind, fixed in FIXED.items() for option in ("los", *fixed)]
)
def test_an_option_that_it_does_not_take(kind, option):
    """The class that was called says so, and what it takes: all that it can be made with."""
    with pytest.raises(TypeError, match=rf"^{kind.__name__}: got {option}=0, accepted: norm, eps") as refused:
        kind(**{option: 0})
    accepted = str(refused.value).partition("accepted: ")[2].split(", ")
    assert option not in accepted
    assert len(set(accepted)) == len(accepted)
    attack = kind()
    for name in accepted:
        assert hasattr(attack, name)


@pytest.mark.parametrize("kind", [PGD, AutoAttack])
def test_an_unknown_option_of_what_shows_all_of_them(kind):
    with pytest.raises(TypeError, match=f"{kind.__name__}.*'los'"):
        kind(los=0)


def test_a_subclass_is_named_as_what_was_called():
    class Mine(MIFGSM):
        def __init__(self, mine, **options):
            super().__init__(**options)

    with pytest.raises(TypeError, match=r"^Mine: got los='ce', accepted: mine, "):
        Mine(1, los="ce")


def test_features_cannot_be_fooled():
    with pytest.raises(ValueError, match="early_stop: got True, accepted: False"):
        FeaturePGD(early_stop=True, iterate="best")


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (FeaturePGD(), "attack: got FeaturePGD, which has no success, accepted: one against the labels"),
        (PGD(targeted=True), "attack: got a targeted one"),
        (MIFGSM(targeted=True), "attack: got a targeted one"),
        (FGSM(eps=torch.full((6,), 0.1)), "attack: got an eps, step size or sparsity per sample"),
        (PGD("l1", sparsity=torch.full((6,), 0.1)), "attack: got an eps, step size or sparsity per sample"),
    ],
)
def test_what_says_nothing_of_robustness_is_not_evaluated(attack, message, convnet, batch):
    with pytest.raises(ValueError, match=message):
        evaluate(convnet, [batch], attack)


@pytest.mark.parametrize("eps", [-0.1, torch.nan])
@each
def test_an_eps_in_a_tensor_that_is_no_size(name, eps, convnet, batch):
    """It counts as 0 for the kernels, and must not count as robust."""
    images = batch[0]
    labels = convnet.eval()(images).argmax(1)
    sizes = torch.full((len(images),), 0.1)
    sizes[-1] = eps
    message = r"eps: got values in \[.*\], accepted: numbers >= 0"
    refused(make(name, eps=sizes), convnet, images, labels, message)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (MIFGSM, {"decay": -0.1}, "decay: got -0.1, accepted: a number >= 0"),
        (MIFGSM, {"decay": float("inf")}, "decay: got inf"),
        (PGD, {"sparsity": 0.0}, "sparsity: got 0.0, accepted: a number above 0 and up to 1"),
        (PGD, {"sparsity": 1.5}, "sparsity: got 1.5"),
        (PGD, {"random_start": "no"}, "random_start: got 'no', accepted: True, False"),
        (PGD, {"targeted": 1}, "targeted: got 1, accepted: True, False"),
        (PGD, {"iterate": "best", "early_stop": "no"}, "early_stop: got 'no', accepted: True, False"),
        (Square, {"early_stop": "no"}, "early_stop: got 'no', accepted: True, False"),
        (Square, {"early_stop": False}, "early_stop: got False, accepted: True: a sample that is fooled"),
        (Square, {"rescale_schedule": None}, "rescale_schedule: got None, accepted: True, False"),
        (APGD, {"fold": 1}, "fold: got 1, accepted: True, False"),
        (NFGSM, {"noise": -1}, "noise: got -1, accepted: a number above 0"),
        (PGD, {"eot": 0}, "eot: got 0, accepted: an integer >= 1"),
        (PGD, {"steps": True}, "steps: got True"),
        (PGD, {"bounds": (0, float("inf"))}, r"bounds: got \(0, inf\)"),
        (PGD, {"bounds": (0.5, 0.5)}, r"bounds: got \(0.5, 0.5\)"),
        (TPGD, {"norm": "l0"}, "norm: got 'l0', accepted: linf, l2, l1"),
        (FeaturePGD, {"iterate": "first"}, "iterate: got 'first', accepted: last, best"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (MIFGSM, {"decay": "1"}, "decay: got a str"),
        (PGD, {"sparsity": None}, "sparsity: got a NoneType"),
        (PGD, {"step_size": [0.1]}, "step_size: got a list"),
    ],
)
def test_settings_of_another_type_are_refused_by_name(kind, options, message):
    with pytest.raises(TypeError, match=message):
        kind(**options)


def test_a_model_whose_output_is_no_logits(batch):
    message = r"model: got an output of shape \(N, 192, 1\), accepted: float logits \(N, classes\)"
    model = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (192, 1)))
    for name in ("PGD-linf", "TPGD-l2", "MIFGSM-l1"):
        refused(make(name), model, *batch, message)
    assert make("FeaturePGD-l2")(model, batch[0]).shape == batch[0].shape


@pytest.mark.parametrize("model", [None, 3, "resnet18"])
def test_what_is_no_model(model, batch):
    with pytest.raises(TypeError, match=r"model: got a .*, accepted: a module or another callable"):
        PGD()(model, *batch)


@pytest.mark.parametrize("loss", [lambda z, y: z.detach()[:, 0], lambda z, y: (z.argmax(1) != y).float()])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_loss_without_gradient(loss, precision, convnet, batch):
    with pytest.raises(ValueError, match="loss: it has no gradient with respect to the model's output"):
        PGD(loss=loss, precision=precision)(convnet, *batch)


@pytest.mark.parametrize("setting", ["eps", "step_size", "sparsity"])
def test_a_size_for_another_number_of_samples(setting, convnet, batch):
    message = rf"{setting}: got shape \(4,\), accepted: a number, \(\), or \(6,\)"
    with pytest.raises(ValueError, match=message):
        PGD("l1", **{setting: torch.full((4,), 0.5)})(convnet, *batch)


class Rounded(nn.Module):
    """Of the pixels' bytes: its gradient is zero where it is not infinite."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((x * 255).round() / 255)


class Rooted(nn.Module):
    """The same logits, with gradients that are NaN."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x + (x - x.detach()).square().sqrt() * 0)


@pytest.mark.parametrize("wrap", [Rounded, Rooted])
@pytest.mark.parametrize("options", [{}, {"iterate": "best", "early_stop": True}])
def test_a_model_whose_gradient_says_nothing_has_no_robust_accuracy(wrap, options):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    images = torch.rand(8, 3, 8, 8)
    labels = net(images).argmax(1)
    with pytest.raises(
        ValueError, match="gradient with respect to the input is zero or NaN for all 8 images"
    ):
        evaluate(wrap(net), [(images, labels)], PGD(**options))


def test_images_without_a_gradient_are_noted():
    """Half of them: the rest is attacked, and the result says that these were not."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))

    class Half(nn.Module):
        def forward(self, x):
            flat = x.flatten(1)
            return net(torch.where(flat[:, :1] > 0.5, flat, flat.round()))

    images = torch.rand(8, 3, 8, 8) * 0.8 + 0.1
    images[:, 0, 0, 0] = torch.tensor([0.3] * 4 + [0.7] * 4)
    with torch.no_grad():
        labels = Half()(images).argmax(1)
    result = PGD(eps=1e-4, step_size=1e-4).run(Half(), images, labels)
    assert result.notes == ("4 of 8 images withstood without a gradient to follow",)


def test_integers_and_flags_of_numpy(convnet, batch):
    """Count as what they are."""
    pgd, same = (
        PGD(eps=0.1, step_size=0.1, steps=steps, random_start=random_start)
        for steps, random_start in ((numpy.int64(2), numpy.bool_(False)), (2, False))
    )
    assert torch.equal(pgd(convnet, *batch), same(convnet, *batch))


def test_how_far_out_images_are_is_said_to_the_last_digit(convnet, batch):
    images = torch.full_like(batch[0], 1.0000001)
    with pytest.raises(ValueError, match=r"images: got values in \[1\.0000001, 1\.0000001\]"):
        PGD()(convnet, images, batch[1])


def test_an_ensemble_without_gradients_is_refused_where_strict():
    """As a single attack is; with Square, which follows none, it is no ensemble without."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    images = torch.rand(8, 3, 8, 8)
    labels = Rounded(net)(images).argmax(1)
    attack = AutoAttack(eps=1e-4, attacks=("apgd-ce",), steps=2)
    with pytest.raises(ValueError, match="zero or NaN for all 8 images"):
        attack.run(Rounded(net), images, labels)
    assert attack.run(Rounded(net), images, labels, strict=False).undirected == 8
    AutoAttack(eps=1e-4, attacks=("apgd-ce", "square"), steps=2, queries=2).run(Rounded(net), images, labels)


def test_errors_reach_another_process(convnet, batch):
    """Pickled and made anew, as pools do: else they hang."""
    with pytest.raises(ValueError, match="images: got values in") as refused:
        PGD()(convnet, batch[0] + 1, batch[1])
    diverged = DivergedError(1, 2, torch.tensor([3, 5]), "Nothing was kept.")
    for error in (refused.value, diverged):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
    assert "on images 3, 5. Nothing was kept." in str(diverged)


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (lambda: PGD(eps=8, step_size=0.1), "eps"),
        (lambda: PGD(eps=torch.tensor([8.0, 0.1]), step_size=0.1), "eps"),
        (lambda: AutoAttack(eps=8), "eps"),
        (lambda: PGD(step_size=2), "step_size"),
    ],
)
def test_sizes_in_units_of_bytes_are_warned_of(made, named):
    text = f"roli_fast: {named} takes any pixel within .0.*, 1.*. to any other"
    with pytest.warns(UserWarning, match=text) as warned:
        made()
    assert {warning.filename for warning in warned} == {__file__}


@pytest.mark.parametrize(
    "made",
    [
        lambda: PGD(eps=8, step_size=2, bounds=(0, 255)),
        lambda: PGD("l2", eps=8, step_size=2),
        lambda: PGD(eps=math.inf, step_size=1),
        lambda: NFGSM(eps=0.4),  # whose ball has three times that radius
        lambda: PGD(eps=0.3, step_size=10 * 0.3, steps=1),  # as probe() makes one
        lambda: APGD(eps=0.6),  # whose first step is 2 eps
    ],
)
def test_sizes_that_may_be_meant_are_not(made, recwarn):
    made()
    assert not recwarn.list
