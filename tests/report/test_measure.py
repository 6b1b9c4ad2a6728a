"""What is measured of a linear model is known in closed form."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F

from roli_fast.evaluation import Accuracy
from roli_fast.report import measure
from roli_fast.report.measure import SHARES, count_of, look_at_gradients, steps_of, whole_box

from .cases import CLASSES, EPS, PIXELS, Detached, Quantised, images, linear, margins, weights


@pytest.fixture(scope="module")
def batches():
    x, labels = images()
    return [(x[:25], labels[:25]), (x[25:], labels[25:])]


@pytest.fixture(scope="module")
def found(batches):
    return measure(linear(), batches, eps=EPS, classes=CLASSES)


def test_accuracy_against_eps_is_the_closed_form(found):
    x, labels = images()
    margin = margins(linear(), x, labels)
    reach = weights().abs().sum()
    shares = [point.eps / EPS for point in found.numbers.points[:-1]]
    assert shares == pytest.approx([0, *SHARES])
    for point in found.numbers.points[:-1]:
        expected = margin > point.eps * reach
        assert point.alone.right == expected.tolist()
        assert point.carried.right == expected.tolist()
        assert (point.alone.low, point.alone.high) == Accuracy(expected).interval()
    values = [point.alone.value for point in found.numbers.points]
    assert values[0] == 1
    assert len(set(values)) > 5
    last = found.numbers.points[-1]
    assert (last.eps, last.alone.value) == (1.0, 0.0)


def test_all_attacks_agree_on_a_linear_model(found):
    numbers = found.numbers
    assert numbers.robust.right == numbers.at_eps.alone.right
    assert numbers.restarts[1].right == numbers.restarts[5].right == numbers.at_eps.alone.right
    assert numbers.ensemble.broken_by["square"] == numbers.ensemble.only_square == 0
    assert numbers.ensemble.broken_by["apgd-ce"] == sum(not r for r in numbers.robust.right)
    assert "apgd-t left out" in " ".join(numbers.ensemble.notes)
    assert numbers.images == 40
    assert numbers.forwards > numbers.backwards > 0


def test_transfer_is_the_closed_form(found):
    """The features are the pixels."""
    moved = found.numbers.transfer
    x, labels = images()
    assert moved.distance == pytest.approx([EPS * math.sqrt(PIXELS)] * 40, rel=1e-5)
    radius = margins(linear(), x, labels) / weights().double().norm()
    assert moved.radius == pytest.approx(radius.tolist(), rel=1e-4)
    assert moved.right == [True] * 40
    assert moved.kept == found.numbers.at_eps.alone.right


def test_examples_are_the_first_of_their_kind(found):
    x, _ = images()
    right = found.numbers.at_eps.alone.right
    fooled = [row for row in range(40) if not right[row]][:4]
    withstood = [row for row in range(40) if right[row]][:2]
    assert [example.index for example in found.numbers.examples] == fooled + withstood
    for example, pixels in found.shown:
        assert example.fooled == (example.index in fooled)
        assert torch.equal(pixels[0], x[example.index])
        assert (pixels[1] - pixels[0]).abs().max() <= EPS + 1e-6
        seen = linear()(pixels).softmax(dim=1)
        assert example.label == example.clean == CLASSES[example.index % 2]
        assert example.attacked == CLASSES[int(seen[1].argmax())]
        assert example.clean_confidence == pytest.approx(seen[0].max().item(), rel=1e-5)
        assert example.attacked_confidence == pytest.approx(seen[1].max().item(), rel=1e-5)


def test_numbers_are_json_and_repeat(quick, batches):
    texts = set()
    for seed in range(2):
        torch.manual_seed(seed)
        numbers = measure(linear(), batches, eps=EPS, classes=CLASSES).numbers
        texts.add(json.dumps(dataclasses.asdict(numbers), allow_nan=False))
    assert len(texts) == 1


def test_the_model_is_left_as_it_was(quick, batches):
    model = linear().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told = []
    measure(model, batches, eps=EPS, classes=CLASSES, tell=told.append)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert len(told) == count_of("linf", EPS, (1, 8, 8))


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_balls(norm, quick, batches):
    eps = {"l2": 0.6, "l1": 4.0}[norm]
    numbers = measure(linear(), batches, norm=norm, eps=eps, classes=CLASSES).numbers
    x, labels = images()
    assert numbers.points[-1].eps == whole_box(norm, (1, 8, 8))
    dual = weights().norm() if norm == "l2" else weights().abs().max()
    bound = margins(linear(), x, labels) > eps * dual
    assert all(torch.tensor(numbers.at_eps.alone.right) | ~bound)  # no attack reaches further
    assert 0 < numbers.at_eps.alone.value < 1
    assert numbers.transfer is not None


def test_the_grid_ends_where_a_ball_holds_every_image():
    assert steps_of("linf", 0.1, (3, 4, 4)) == pytest.approx([*(0.1 * s for s in SHARES), 1])
    assert steps_of("linf", 0.6, (3, 4, 4)) == pytest.approx([0.15, 0.3, 0.45, 0.6, 0.9, 1])
    assert steps_of("linf", 3.0, (3, 4, 4)) == pytest.approx([0.75, 3])
    assert steps_of("l2", 0.5, (3, 4, 4))[-1] == pytest.approx(math.sqrt(48))
    assert steps_of("l1", 0.5, (3, 4, 4))[-1] == 48


def test_gradients_are_counted():
    def model(x):
        kinds = x[:, 0, 0]  # 0: no gradient, 1: infinite, 2: sound
        safe = torch.where(kinds > 1.5, x[:, 0, 1], 0.0)
        odd = torch.where(kinds == 1, x[:, 0, 1] - x[:, 0, 1].detach(), 1.0).sqrt()
        return torch.stack([safe + odd, torch.zeros_like(safe)], dim=1)

    x = torch.full((6, 1, 2), 0.5)
    x[:, 0, 0] = torch.tensor([0.0, 0, 0, 1, 1, 2])
    got = look_at_gradients(model, [(x, torch.zeros(6, dtype=torch.int64))])
    assert (got.images, got.zero, got.not_finite) == (6, 3, 2)
    labels = torch.zeros(6, dtype=torch.int64)
    thresholds = look_at_gradients(lambda x: F.one_hot((x[:, 0, 0] > 0.5).long(), 2).float(), [(x, labels)])
    assert thresholds.zero == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "l7"}, "norm: got 'l7', accepted: "),
        ({"eps": -0.1}, "eps: got -0.1, accepted: "),
        ({"eps": 0.0}, "eps: got 0.0, accepted: a number above 0"),
        ({"batches": []}, "batches: got none, accepted: at least one"),
    ],
)
def test_what_does_not_fit_is_refused(change, message, batches):
    arguments = {"batches": batches, "eps": EPS, "classes": CLASSES} | change
    with pytest.raises(ValueError, match=message):
        measure(linear(), arguments.pop("batches"), **arguments)


def test_without_any_gradient_there_is_no_transfer(quick, batches):
    """And the rest of the report says that attacks by gradients stood still."""
    numbers = measure(Detached(), batches, eps=EPS, classes=CLASSES).numbers
    assert numbers.transfer is None
    assert "no gradient" in numbers.no_transfer
    assert numbers.gradients.zero == numbers.images
    assert numbers.at_eps.alone.value > 0.9  # random starts alone


def test_what_square_breaks_after_other_attacks_is_not_its_own(batches):
    """The gradient is gone while APGD looks for it, and had led PGD to the same images before."""
    state = {"rounded": False}
    inner = linear()

    def model(x):
        return inner((x * 16).round() / 16 if state["rounded"] else x)

    def tell(what):
        state["rounded"] = what == "APGD and Square"

    numbers = measure(model, batches, eps=EPS, classes=CLASSES, tell=tell).numbers
    assert numbers.ensemble.broken_by["square"] > 4
    alone = sum(
        a and not b for a, b in zip(numbers.at_eps.carried.right, numbers.ensemble.robust.right, strict=True)
    )
    assert numbers.ensemble.only_square == alone < numbers.ensemble.broken_by["square"]


def test_without_a_head_there_is_no_transfer(quick, batches):
    numbers = measure(Quantised(16), batches, eps=EPS, classes=CLASSES).numbers
    assert numbers.transfer is None
    assert "accepted: what create_model or separate returns" in numbers.no_transfer
