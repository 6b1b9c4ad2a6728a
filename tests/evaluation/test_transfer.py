"""The theory of transferred robustness, beside closed forms: of f(x) = A x, sensitivity and criterion are
known."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from roli_fast.attacks import APGD, MIFGSM, PGD, AutoAttack, FeaturePGD
from roli_fast.evaluation import (
    Criterion,
    LinearHead,
    LossBound,
    advise,
    advise_without_head,
    evaluate,
    sensitivity,
    sensitivity_attack,
    transfer,
)
from roli_fast.evaluation.sensitivity import figures
from roli_fast.models import Classifier, create_model, load_backbone, split
from tests.real import images_in

EPS = 0.1
PIXELS, FEATURES, CLASSES = 8, 5, 4


def linear(features=FEATURES, classes=CLASSES):
    """A head on f(x) = A x, in float64."""
    backbone = nn.Linear(PIXELS, features, bias=False, dtype=torch.float64)
    nn.init.normal_(backbone.weight)
    return Classifier(backbone, nn.Linear(features, classes, dtype=torch.float64), "head").eval()


@torch.no_grad()
def images_for(model, count=60, wrong=7):
    """Images and the model's own classes for them, but for every seventh."""
    images = torch.rand(count, PIXELS, dtype=torch.float64)
    labels = model(images).argmax(dim=1)
    labels[::wrong] = (labels[::wrong] + 1) % CLASSES
    return images, labels


def batches(*tensors, size=200):
    return list(zip(*(t.split(size) for t in tensors), strict=True))


def corners(images, eps=EPS):
    """(N, 2^PIXELS, PIXELS): those of ball and box together, where a convex function is largest."""
    low, high = (images - eps).clamp(min=0), (images + eps).clamp(max=1)
    which = torch.tensor([*itertools.product((0.0, 1.0), repeat=PIXELS)], dtype=images.dtype)
    return low[:, None] + which * (high - low)[:, None]


@torch.no_grad()
def exact_distance(model, images, eps=EPS):
    moved = model.backbone(corners(images, eps)) - model.backbone(images)[:, None]
    return moved.norm(dim=2).amax(dim=1)


def thorough(eps=EPS):
    return FeaturePGD(eps=eps, step_size=0.7 * eps, steps=20, iterate="best", restarts=10)


def pgd(eps=EPS, **options):
    return PGD(**{"eps": eps, "step_size": eps / 4, "steps": 10, "iterate": "best"} | options)


# --- sensitivity ---------------------------------------------------------------------------------------


def test_the_estimate_is_below_the_exact_distance_and_reaches_it():
    model = linear()
    images, _ = images_for(model)
    exact = exact_distance(model, images)
    for attack in (sensitivity_attack(EPS, steps=1), sensitivity_attack(EPS), thorough()):
        found = sensitivity(model.backbone, batches(images), attack)
        assert (found.distance <= exact * (1 + 1e-12)).all()
    assert found.distance.mean() > 0.99 * exact.mean()
    assert (found.distance > exact * (1 - 1e-9)).double().mean() > 0.7
    torch.testing.assert_close(found.length, model.backbone(images).norm(dim=1).detach())
    torch.testing.assert_close(found.relative, found.distance / found.length)


def test_where_every_corner_is_as_far_it_is_exact():
    """Orthogonal columns: away from the box, ||A d|| = eps ||A||_F at each corner of the ball."""
    model = linear(features=PIXELS)
    columns = (
        torch.linalg.qr(torch.randn(PIXELS, PIXELS, dtype=torch.float64)).Q * torch.rand(PIXELS).double()
    )
    model.backbone.weight.data = columns
    images = torch.rand(30, PIXELS, dtype=torch.float64) * 0.6 + 0.2
    found = sensitivity(model.backbone, batches(images), sensitivity_attack(EPS))
    expected = EPS * columns.norm().item()
    torch.testing.assert_close(found.distance, torch.full_like(found.distance, expected))
    summary = found.summary()
    assert summary["absolute"]["mean"] == pytest.approx(expected)
    assert summary["absolute"]["quantiles"]["0.95"] == pytest.approx(expected)
    assert summary["images"] == 30


def test_the_default_attack_is_the_papers():
    attack = sensitivity_attack()
    assert (attack.norm, attack.eps, attack.steps, attack.random_start) == ("linf", 8 / 255, 20, True)
    assert attack.step_size == pytest.approx(0.7 * 8 / 255)


def test_batches_bytes_and_layout_say_nothing():
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())  # features (N, C, H, W)
    images = torch.randint(0, 256, (9, 3, 6, 6), dtype=torch.uint8)

    def of(pixels, size):
        attack = sensitivity_attack(EPS, generator=torch.Generator().manual_seed(3))
        return sensitivity(backbone, batches(pixels, size=size), attack).distance

    torch.testing.assert_close(of(images, 9), of(images, 2).double())
    torch.testing.assert_close(of(images, 9), of(images / 255, 4))


def test_quantiles_are_those_of_the_values():
    shuffled = torch.arange(101.0)[torch.randperm(101)]
    expected = {"0.05": 5, "0.25": 25, "0.5": 50, "0.75": 75, "0.95": 95}
    assert figures(shuffled) == {"mean": 50, "quantiles": expected}


def test_features_of_length_zero_are_said_and_fit_into_json():
    backbone = nn.Linear(2, 2, dtype=torch.float64)
    backbone.bias.data = -backbone.weight.data @ torch.full((2,), 0.5, dtype=torch.float64)
    images = torch.full((3, 2), 0.5, dtype=torch.float64)
    found = sensitivity(backbone, batches(images), sensitivity_attack(EPS))
    assert found.relative.isinf().all()
    assert json.loads(json.dumps(found.summary(), allow_nan=False))["relative"]["mean"] is None
    for parameter in backbone.parameters():
        parameter.data.zero_()
    assert (sensitivity(backbone, batches(images), sensitivity_attack(EPS)).relative == 0).all()


# --- the theorems, on features that nobody attacked ----------------------------------------------------


def head_and_features(count=400, scale=1.0):
    layer = nn.Linear(FEATURES, CLASSES, dtype=torch.float64)
    layer.weight.data *= 4
    features = torch.randn(count, FEATURES, dtype=torch.float64)
    moved = features + scale * torch.randn_like(features) * torch.rand(count, 1, dtype=torch.float64)
    return layer, features, moved, layer(features).argmax(dim=1).detach()


def test_gaps_radius_and_norm_are_what_they_say():
    layer, features, _, labels = head_and_features(20)
    labels[::3] = (labels[::3] + 1) % CLASSES
    head, weight, logits = LinearHead.of(layer), layer.weight.detach(), layer(features).detach()
    for n, y in enumerate(labels.tolist()):
        others = [j for j in range(CLASSES) if j != y]
        expected = min(
            ((logits[n, y] - logits[n, j]) / (weight[y] - weight[j]).norm()).item() for j in others
        )
        assert head.radius(logits, labels)[n].item() == pytest.approx(expected)
        for j in others:
            assert head.gaps(labels)[n, j].item() == pytest.approx((weight[y] - weight[j]).norm().item())
    assert head.spectral_norm() == pytest.approx(torch.linalg.svdvals(weight)[0].item())


def test_the_radius_is_where_the_class_changes():
    """Towards the nearest other class: just inside it is still right, just outside it is not."""
    layer, features, _, labels = head_and_features()
    head, logits = LinearHead.of(layer), layer(features).detach()
    radius = head.radius(logits, labels)
    assert (radius > 0).all()
    gaps = head.gaps(labels).scatter(1, labels[:, None], torch.inf)
    nearest = (
        ((logits.gather(1, labels[:, None]) - logits) / gaps).scatter(1, labels[:, None], torch.inf).argmin(1)
    )
    towards = F.normalize(head.weight[nearest] - head.weight[labels], dim=1) * radius[:, None]
    assert torch.equal(layer(features + 0.999 * towards).argmax(dim=1), labels)
    assert torch.equal(layer(features + 1.001 * towards).argmax(dim=1), nearest)


def test_classes_of_the_same_row():
    """They never change places: nothing to fear from one below, nothing to gain on one above; a tie is not
    right."""
    head = LinearHead(torch.ones(2, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    assert head.radius(logits, torch.zeros(3, dtype=torch.int64)).tolist() == [math.inf, -math.inf, 0.0]


def bound_of(layer, features, moved, labels):
    head = LinearHead.of(layer)
    with torch.no_grad():
        before, after = (F.cross_entropy(layer(f), labels, reduction="none") for f in (features, moved))
    return LossBound(
        rise=after - before,
        distance=(moved - features).norm(dim=1),
        constant=head.gaps(labels).amax(dim=1),
        spectral=head.spectral_norm(),
        rounding=head.rounding(features, moved),
    )


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 100.0])
def test_the_loss_bound_holds_in_both_forms(scale):
    bound = bound_of(*head_and_features(scale=scale))
    assert (bound.rise <= bound.limit + 1e-9).all()
    assert (bound.spectral_rise <= bound.spectral_limit + 1e-9).all()
    assert (bound.limit <= bound.spectral * bound.spectral_limit + 1e-9).all()  # never the looser one
    assert bound.summary()["holds_for"] == 400


def test_the_constants_cannot_be_smaller():
    """Two classes, far on the wrong side: the slope of the loss is ||W_j - W_y||, and with opposite rows
    that is sqrt(2) ||W||, too."""
    layer = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor([[30.0, 0.0], [-30.0, 0.0]], dtype=torch.float64)
    features = torch.tensor([[-1.0, 0.0]], dtype=torch.float64)
    bound = bound_of(layer, features, features - torch.tensor([[0.5, 0.0]]), torch.tensor([0]))
    assert bound.rise.item() == pytest.approx(bound.limit.item(), rel=1e-9)
    assert bound.spectral_rise.item() == pytest.approx(bound.spectral_limit.item(), rel=1e-9)


def test_a_violation_fails():
    bound = bound_of(*head_and_features())
    rise = bound.rise.clone()
    rise[17] = bound.limit[17] + 1e-6
    with pytest.raises(RuntimeError, match=r"the loss rose by .* at image 17, above its bound .* a bug"):
        dataclasses.replace(bound, rise=rise)
    with pytest.raises(RuntimeError, match=r"by sqrt\(2\)"):
        dataclasses.replace(bound, spectral=bound.spectral / 100)
    with pytest.raises(RuntimeError, match="a bug"):
        dataclasses.replace(bound, rise=torch.full_like(rise, torch.nan))


def test_no_margin_shrinks_by_more_than_features_move():
    layer, features, moved, labels = head_and_features(scale=10)
    head = LinearHead.of(layer)
    assert (head.excess(features, moved, labels) <= 4 * head.rounding(features, moved)).all()
    # A step along W_j - W_y attains it.
    steps = features - F.normalize(head.weight[labels] - head.weight[(labels + 1) % CLASSES], dim=1)
    torch.testing.assert_close(
        head.excess(features, steps, labels), torch.zeros(400, dtype=torch.float64), rtol=0, atol=1e-9
    )


# --- all of it -----------------------------------------------------------------------------------------


def test_the_criterion_with_the_exact_distance_is_sound():
    """Where it is met, the image is robust, which for a linear model is known, too."""
    model = linear()
    images, labels = images_for(model, 300)
    with torch.no_grad():
        right = model(images).argmax(dim=1) == labels
        radius = LinearHead.of(model.head).radius(model(images), labels)
        robust = (model(corners(images)).argmax(dim=2) == labels[:, None]).all(dim=1)
        criterion = Criterion(right, radius, exact_distance(model, images))
    assert (criterion.met & ~robust).sum() == 0
    assert 0 < criterion.met.sum() < robust.sum()  # sufficient, not necessary
    assert criterion.predicted.value == criterion.met.double().mean().item()

    found = transfer(model, batches(images, labels), thorough(), [pgd()])
    assert torch.equal(found.clean.right, right)
    torch.testing.assert_close(found.criterion.radius, radius)
    assert (found.criterion.met | ~criterion.met).all()  # the estimate is from below
    assert (found.criterion.met != criterion.met).sum() <= 3
    assert (found.robust.right >= robust).all()  # measured from above
    low, high = found.expected
    assert low <= robust.double().mean().item() <= high


@pytest.mark.gpu
def test_images_go_to_the_models_device():
    """As a DataLoader gives them."""
    model = linear()
    images, labels = images_for(model)
    on_cpu = transfer(model, batches(images, labels), thorough(), [pgd()])
    on_gpu = transfer(model.cuda(), batches(images, labels), thorough(), [pgd()])
    moved = sensitivity(split(model)[0], batches(images, labels), thorough()).distance
    # Each run rounds otherwise, and another image may end elsewhere.
    assert (on_gpu.robust.right != on_cpu.robust.right).sum() <= 3
    assert torch.isclose(moved, on_gpu.sensitivity.distance, rtol=1e-4).double().mean() > 0.9


def test_attacks_measure_what_evaluate_measures():
    model = linear()
    images, labels = images_for(model)

    def attacks():
        return (
            pgd(generator=torch.Generator().manual_seed(5)),
            AutoAttack(
                eps=EPS, attacks=["apgd-ce", "apgd-t"], steps=5, generator=torch.Generator().manual_seed(6)
            ),
        )

    found = transfer(model, batches(images, labels), sensitivity_attack(EPS), attacks())
    for outcome, attack in zip(found.outcomes, attacks(), strict=True):
        measured = evaluate(model, batches(images, labels), attack)
        assert torch.equal(outcome.robust.right, measured.right)
        assert outcome.label == attack.label
        assert (outcome.bound.rise <= outcome.bound.limit + 1e-9).all()
    assert found.robust.value <= min(outcome.robust.value for outcome in found.outcomes)
    assert [outcome.name for outcome in found.outcomes] == ["PGD", "AutoAttack"]


def test_contradictions_are_counted_and_explained():
    """An attack on features that hardly moves: the criterion is met nearly everywhere, and PGD disagrees."""
    model = linear()
    images, labels = images_for(model, 100)
    weak = FeaturePGD(eps=EPS, step_size=0.0, steps=1)
    found = transfer(model, batches(images, labels), weak, [pgd()])
    (outcome,) = found.outcomes
    contradicted = outcome.contradictions.found
    assert torch.equal(contradicted, found.criterion.met & ~outcome.robust.right)
    assert contradicted.sum() > 10
    # At each of them PGD moved the features past the radius, as the theorem says it must have.
    assert torch.equal(outcome.contradictions.farther, contradicted)
    assert (outcome.bound.distance >= found.criterion.radius)[contradicted].all()
    count = int(contradicted.sum())
    assert f"{count}: at {count} of them this attack moved the features" in outcome.contradictions.explanation
    assert outcome.summary()["contradictions"]["features_moved_past_radius"] == count

    exact = transfer(model, batches(images, labels), thorough(), [pgd()])
    assert exact.outcomes[0].contradictions.explanation == "none"


def test_a_random_model_is_not_explained_by_rounding():
    """One call in ten turns the features round: a few images change their class and moved nowhere."""

    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear().backbone

        def forward(self, x):
            signs = 1 - 2 * (torch.rand(len(x), 1) < 0.1).double()
            return self.inner(x) * signs

    backbone = Random()
    model = Classifier(backbone, nn.Linear(FEATURES, CLASSES, dtype=torch.float64), "head").eval()
    images = torch.rand(200, PIXELS, dtype=torch.float64)
    labels = model.head(backbone.inner(images)).argmax(dim=1)
    found = transfer(model, batches(images, labels), sensitivity_attack(1e-4), [pgd(1e-4)])
    explanation = found.outcomes[0].contradictions.explanation
    assert "the features, asked for once more, had not: the model is random, or its logits are" in explanation


def test_a_margin_that_shrinks_too_far_fails(monkeypatch):
    """As the theorem forbids it, it takes rows that are said to be nearer than they are."""
    model = linear()
    images, labels = images_for(model)
    gaps = LinearHead.gaps
    monkeypatch.setattr(LinearHead, "gaps", lambda head, labels: 0.5 * gaps(head, labels))
    with pytest.raises(RuntimeError, match=r"a margin shrank by .* more than .* allows: a bug in roli_fast"):
        transfer(model, batches(images, labels), sensitivity_attack(EPS), [pgd()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_another_precision(dtype):
    model = create_model("small_resnet", 3, in_chans=1, channels=(4, 4, 4, 4)).eval().to(dtype)
    images = torch.rand(8, 1, 8, 8, dtype=dtype)
    labels = model(images).argmax(dim=1)
    found = transfer(model, batches(images, labels), sensitivity_attack(0.05, steps=2), [pgd(0.05)])
    assert found.clean.value == 1
    assert (found.sensitivity.distance > 0).any()
    assert sensitivity(split(model)[0], batches(images)).distance.isfinite().all()


def test_a_summary_is_json_and_batches_say_nothing():
    model = linear()
    images, labels = images_for(model)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()

    def of(size):
        generator = torch.Generator().manual_seed(1)
        attack = sensitivity_attack(EPS, generator=generator)
        return transfer(model, batches(images, labels, size=size), attack, [pgd(generator=generator)])

    summary = of(60).summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    torch.testing.assert_close(of(60).criterion.distance, of(7).criterion.distance)
    assert set(summary["attacks"]) == {"PGD"}
    assert summary["criterion"]["met"] == round(60 * summary["criterion"]["predicted_robust"]["value"])
    assert summary["paper_form"]["mean_spectral_limit"] == pytest.approx(
        math.sqrt(2) * of(60).sensitivity.distance.mean().item()
    )
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert model.training
    assert model.backbone.training


def test_the_papers_form_has_the_strongest_attack():
    model = linear()
    weak, strong = MIFGSM(eps=EPS, step_size=1e-4, steps=1), pgd()
    found = transfer(model, batches(*images_for(model)), sensitivity_attack(EPS), [weak, strong])
    rises = [outcome.bound.spectral_rise.mean().item() for outcome in found.outcomes]
    assert rises[0] < rises[1] == found.paper_form()["mean_spectral_rise"]


def test_a_head_of_zeros_bounds_nothing_and_fits_into_json():
    layer, features, moved, labels = head_and_features()
    layer.weight.data.zero_()
    summary = bound_of(layer, features, moved, labels).summary()
    assert summary["mean_rise"] == summary["mean_limit"] == 0
    assert summary["mean_spectral_rise"] is None


def test_in_float32_with_batchnorm(convnet):
    """Features of a network's own precision: theorems are about these numbers, and hold to float64's."""
    layers = list(convnet.model)
    model = type(convnet)(
        Classifier(nn.Sequential(*layers[:-1]), layers[-1], "8"), convnet.mean.tolist(), convnet.std.tolist()
    )
    images, labels = torch.rand(40, 3, 8, 8), torch.randint(0, 5, (40,))
    found = transfer(
        model, batches(images, labels), sensitivity_attack(0.03), [pgd(0.03), APGD(eps=0.03, steps=5)]
    )
    assert found.sensitivity.distance.dtype == torch.float64
    assert (found.sensitivity.distance > 0).all()


# --- advice --------------------------------------------------------------------------------------------


class Flat(nn.Module):
    """f(x) = A x, which has no gradient where the first pixel is dark."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        features = self.layer(x)
        return torch.where(x[:, :1] > 0.5, features, features.detach() + 0 * x[:, :1])


def test_images_without_a_gradient_are_counted_over_all_batches():
    """One that is alone in its batch is no model without gradients; all of them are."""
    model = linear()
    model.backbone = Flat(model.backbone)
    images = torch.rand(6, PIXELS, dtype=torch.float64)
    images[:, 0] = torch.tensor([0.2, 0.8, 0.2, 0.8, 0.8, 0.8])
    labels, tiny = model(images).argmax(1), 1e-9
    found = transfer(model, batches(images, labels, size=1), thorough(tiny), [pgd(tiny)])
    assert found.outcomes[0].notes == ("2 of 6 images withstood without a gradient to follow",)
    dark = batches(images[[0, 2]], labels[[0, 2]], size=1)
    with pytest.raises(ValueError, match="zero or NaN for all 2 images"):
        transfer(model, dark, thorough(tiny), [pgd(tiny)])


def test_advice_goes_by_what_attacks_leave():
    model = linear()
    images, labels = images_for(model, 200)
    advised = {}
    for name, eps in (("weak", 0.001), ("strong", 0.8)):
        found = transfer(model, batches(images, labels), sensitivity_attack(eps), [pgd(eps)])
        advised[name] = advise(found)
        right, stayed = int(found.clean.right.sum()), int(found.robust.right.sum())
        assert f"the attacks leave {stayed} of {right} right images right" in advised[name].reason
    assert advised["weak"].method == "probe"
    assert advised["strong"].method == "finetune"
    assert "is not estimated" in advised["strong"].expectation
    few = transfer(model, batches(images[1:3], labels[1:3]), sensitivity_attack(0.001), [pgd(0.001)])
    assert "too few images to tell" in advise(few).reason
    none = transfer(model, batches(images, (labels + 1) % CLASSES), sensitivity_attack(0.001), [pgd(0.001)])
    assert advise(none).method == "finetune"
    assert f"0 of {len(labels)} images right, which guessing among {CLASSES} classes" in advise(none).reason
    texts = [advice.text for advice in (*advised.values(), advise(few))]
    assert all("estimated" in text and "certified" not in text for text in texts)


def test_without_a_head_the_sensitivity_is_all_there_is():
    model = linear()
    images, _ = images_for(model)
    advice = advise_without_head(sensitivity(model.backbone, batches(images), sensitivity_attack(EPS)))
    assert advice.method == "probe"
    assert "no head has been trained" in advice.reason
    assert "robust accuracy between" not in advice.text


# --- bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("feature_attack", "attacks", "error", "message"),
    [
        (pgd(), [pgd()], TypeError, "feature_attack: got a PGD, accepted: FeaturePGD"),
        (sensitivity_attack(EPS), [], ValueError, r"attacks: got \[\], accepted: at least one"),
        (sensitivity_attack(EPS), [pgd(), pgd()], ValueError, "accepted: at least one, each of another kind"),
        (
            sensitivity_attack(EPS),
            [pgd(0.2)],
            ValueError,
            r"attacks: got PGD\(.*accepted: the ball and box of",
        ),
        (sensitivity_attack(EPS), [pgd(norm="l2")], ValueError, "accepted: the ball and box of"),
        (sensitivity_attack(EPS), [pgd(bounds=(0, 2))], ValueError, "accepted: the ball and box of"),
        (sensitivity_attack(EPS), [pgd(targeted=True)], ValueError, "accepted: attacks against the labels"),
        (
            sensitivity_attack(EPS),
            [sensitivity_attack(EPS)],
            ValueError,
            "accepted: attacks against the labels",
        ),
        (
            sensitivity_attack(EPS),
            [pgd(torch.ones(60) * EPS)],
            ValueError,
            "attacks: got an eps, step size or sparsity per",
        ),
    ],
)
def test_attacks_that_do_not_fit(feature_attack, attacks, error, message):
    with pytest.raises(error, match=message):
        transfer(linear(), [], feature_attack, attacks)


def test_data_and_models_that_do_not_fit():
    model = linear()
    images, labels = images_for(model)
    both = sensitivity_attack(EPS), [pgd()]
    with pytest.raises(ValueError, match="batches: got none, accepted: at least one image"):
        transfer(model, [], *both)
    with pytest.raises(ValueError, match="batches: got none"):
        sensitivity(model.backbone, [])
    with pytest.raises(
        TypeError, match="model: got a Linear, accepted: what create_model or separate returns"
    ):
        transfer(nn.Linear(8, 4), batches(images, labels), *both)
    with pytest.raises(ValueError, match=r"labels: got values in \[0, 9\], accepted: 0 .. 3"):
        transfer(model, batches(images, labels.clone().index_fill_(0, torch.tensor([1]), 9)), *both)
    with pytest.raises(ValueError, match=r"images: got values in .* accepted: values within bounds"):
        sensitivity(model.backbone, batches(images * 2), sensitivity_attack(EPS))
    model.backbone.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"model: its .* are NaN"):
        sensitivity(model.backbone, batches(images), sensitivity_attack(EPS))


# --- real networks -------------------------------------------------------------------------------------


def test_robust_training_makes_features_less_sensitive(shared_data):
    """This project's two networks, on CIFAR-10, which neither has seen: at 8/255, the robust one's features
    move by less than half as much."""
    images, _ = images_in(shared_data / "cifar10-12k.tar.xz", "test", 40)
    medians = {}
    for name in ("robust", "standard"):
        model = create_model("resnet10_tin", num_classes=10)
        load_backbone(model, shared_data / f"resnet10_tin200_{name}.safetensors")
        found = sensitivity(split(model)[0], batches(images), sensitivity_attack(8 / 255, steps=5))
        medians[name] = found.relative.median().item()
    assert medians["robust"] < 0.5 * medians["standard"]
