"""Probing by rounds finds the head that is best against the attack, from a few attacks."""

import numpy
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

from roli_fast.data import ImageStream, Splits, StoredImages
from roli_fast.data.view import View
from roli_fast.models import split
from roli_fast.models.classifier import Classifier
from roli_fast.training import DivergedError, Rounds, probe, roli, train
from roli_fast.training.attack import TrainingAttack

from .cases import EPS, blobs, recipe, same, small_model, splits_of, two_features, weights

ONE_DECAY = {"other_weight_decays": ()}


def identity_backbone():
    return Classifier(nn.Flatten(), nn.Linear(21, 2), "head")


def test_without_an_attack_it_is_logistic_regression():
    splits = splits_of(blobs, 96, 24, 24)
    model = small_model().eval()
    probe(model, splits, recipe(attack="none"), Rounds(weight_decay=0.05, **ONE_DECAY))
    features, head = split(model)
    with torch.no_grad():
        x = features(splits.train.images.float() / 255).double()
    scaled = (x / x.var(0, unbiased=False).mean().sqrt()).numpy()
    oracle = LogisticRegression(C=1 / (0.05 * len(x)), tol=1e-8, max_iter=5000).fit(
        scaled, splits.train.labels
    )
    probabilities = head(x.float()).softmax(1).detach().numpy()
    numpy.testing.assert_allclose(probabilities, oracle.predict_proba(scaled), atol=5e-3)


@pytest.mark.parametrize(
    ("norm", "eps", "dual", "steps"), [("linf", 0.06, 1, 1), ("linf", 0.06, 1, 7), ("l2", 0.25, 2, 1)]
)
def test_on_a_linear_model_it_reaches_the_optimum_of_the_worst_case(norm, eps, dual, steps):
    """There the worst loss of an image has a closed form, whose minimum scipy finds."""
    torch.manual_seed(0)
    splits = splits_of(two_features, 256, 64, 64)
    x, y = splits.train.images.flatten(1).double(), splits.train.labels
    spread, decay = x.var(0, unbiased=False).mean().sqrt().item(), 0.01
    settings = recipe(norm=norm, eps=eps, precision="fp32")

    def worst(weight, bias):
        """The mean, with no box in the way: logits move apart by eps times the weights' dual distance."""
        margin = (F.linear(x, weight, bias) * torch.tensor([1.0, -1.0])).sum(1) * (1 - 2 * y)
        return F.softplus(eps * (weight[0] - weight[1]).norm(p=dual) - margin).mean()

    def objective(flat):
        flat = torch.tensor(flat, requires_grad=True)
        weight, bias = flat[:42].view(2, 21), flat[42:]
        value = worst(weight, bias) + decay / 2 * (weight * spread).square().sum()
        (gradient,) = torch.autograd.grad(value, flat)
        return value.item(), gradient.numpy()

    best = scipy.optimize.minimize(objective, numpy.zeros(44), jac=True, method="L-BFGS-B").fun
    model = identity_backbone()
    done = probe(model, splits, settings, Rounds(8, decay, (), tolerance=0.0, steps=steps))
    found, _ = objective(torch.cat([model.head.weight.flatten(), model.head.bias]).detach().double().numpy())
    assert done.history[0]["val_robust"] > 0.6
    # The box holds the attack back a little, so that ours can be above this optimum, and hardly below it.
    assert found == pytest.approx(best, rel=0.02)


def test_it_counts_what_it_spends_and_moves_the_head_alone():
    splits = splits_of(blobs, 40, 12, 12)  # 40 = 2.5 batches
    model = small_model()
    before = weights(model)
    done = probe(model, splits, recipe(), Rounds(2, tolerance=0.0))
    assert {name for name, value in weights(model).items() if not torch.equal(value, before[name])} == {
        "model.head.weight",
        "model.head.bias",
    }
    assert [row["attacks"] for row in done.history] == [1, 2, 2, 2]
    assert [row["weight_decay"] for row in done.history] == [1.0, 1.0, 0.3, 3.0]
    for row, attacks in zip(done.history, (40, 40, 0, 0), strict=True):  # 40 images, one step each
        assert 0 < row["cost"]["input_gradients"] - attacks <= 12 * 2  # of the validation
    assert done.cost.weight_gradients == 0
    merits = [(row["val_robust"], row["val_clean"]) for row in done.history]
    assert merits[done.best] == max(merits)


def test_rounds_end_when_a_fresh_attack_finds_no_more():
    splits = splits_of(blobs, 48, 12, 12)
    done = probe(small_model(), splits, recipe(), Rounds(9, tolerance=10.0, **ONE_DECAY))
    assert [row["attacks"] for row in done.history] == [1, 2]


def test_every_round_sees_and_draws_anew(monkeypatch):
    """Its images are mirrored otherwise, and its attack starts elsewhere; the same again in the same run."""
    keys, clean, perturb = [], [], TrainingAttack.__call__

    def attack(self, images, labels, index, key):
        keys.append(key.item())
        clean.append(images.clone())
        return perturb(self, images, labels, index, key)

    monkeypatch.setattr(TrainingAttack, "__call__", attack)
    stored = blobs(48)
    mirrored = StoredImages(stored.images, stored.labels, stored.classes, view=View(hflip=0.5))
    splits = splits_of(blobs, 48, 12, 12)._replace(train=mirrored)
    for _ in range(2):
        probe(small_model(), splits, recipe(), Rounds(2, tolerance=0.0, **ONE_DECAY))
    first, second, *again = (torch.cat(clean[i : i + 3]) for i in range(0, 12, 3))  # three batches a round
    assert keys[:6] == keys[6:]
    assert not set(keys[:3]) & set(keys[3:6])
    assert 0.2 < (first != second).flatten(1).any(1).double().mean() < 0.8
    assert 0.2 < (first != stored.images).flatten(1).any(1).double().mean() < 0.8
    assert torch.equal(torch.cat([first, second]), torch.cat(again))


def test_a_finished_one_is_read_and_an_interrupted_one_ends_the_same(tmp_path, monkeypatch):
    splits = splits_of(blobs, 48, 12, 12)
    whole, again, anew = small_model(), small_model(), small_model()
    done = probe(whole, splits, recipe(), folder=tmp_path / "run")
    read = probe(again, splits, recipe(), folder=tmp_path / "run", resume=True)
    assert same(weights(whole), weights(again))
    assert read.history == done.history
    (tmp_path / "run" / "last.pt").unlink()  # as before its end
    probe(anew, splits, recipe(), folder=tmp_path / "run", resume=True)
    assert same(weights(whole), weights(anew))
    others = {"epochs": 7, "lr": 0.5, "opt": "sgd", "ema_decay": 0.9, "patience": 1}  # finetuning's own
    probe(again, splits, recipe(**others), folder=tmp_path / "run", resume=True)
    assert same(weights(whole), weights(again))
    with pytest.raises(ValueError, match=r"recipe: got eps=0.2, .* for the run in .*, accepted: eps=0.1"):
        probe(again, splits, recipe(eps=0.2), folder=tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match=r"recipe: got rounds=.* for the run in .*, accepted: rounds="):
        probe(anew, splits, recipe(), Rounds(7), folder=tmp_path / "run", resume=True)


def test_in_both_stages_and_as_the_only_one(tmp_path):
    splits = splits_of(blobs, 48, 12, 12)
    model = small_model()
    outcome = roli(model, splits, recipe(), probing=Rounds(1), folder=tmp_path / "roli")
    assert list(outcome.stages) == ["probe", "finetune"]
    assert outcome.stages["probe"].cost.weight_gradients == 0
    assert outcome.stages["finetune"].cost.weight_gradients > 0
    alone = roli(
        small_model(), splits, recipe(), probing=Rounds(1), method="linear", folder=tmp_path / "linear"
    )
    assert list(alone.stages) == ["finetune"]
    assert alone.stages["finetune"].history[0]["attacks"] == 1


def test_the_head_resists_more_than_one_of_clean_features():
    torch.manual_seed(0)
    splits = splits_of(two_features, 512, 256, 64)
    settings = {"eps": EPS, "step_size": EPS / 2, "steps": 3, "val_steps": 5}
    attacked = probe(identity_backbone(), splits, recipe(**settings)).history
    assert max(row["val_robust"] for row in attacked) > 0.75
    robust = train(identity_backbone(), splits, recipe(epochs=8, lr=0.05, batch_size=32, **settings)).history
    assert max(r["val_robust"] for r in attacked) > max(r["val_robust"] for r in robust) - 0.05


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rounds": 0}, "rounds: got 0"),
        ({"steps": 0}, "steps: got 0"),
        ({"weight_decay": 0.0}, "^weight_decay: got 0.0, accepted: a number above 0"),
        ({"other_weight_decays": (-1.0,)}, "other_weight_decays: got -1.0, accepted: a number above 0"),
        ({"other_weight_decays": 0.3}, "other_weight_decays: got 0.3, accepted: a tuple of numbers above 0"),
        ({"tolerance": "much"}, "tolerance: got"),
    ],
)
def test_settings_that_do_not_fit(given, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Rounds(**given)


def test_features_that_are_not_finite_stop_it_with_the_images():
    model = small_model()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(
        DivergedError, match=r"a feature is not finite in step 0 of epoch 1, on images 0, 1"
    ) as e:
        probe(model, splits_of(blobs, 32, 12, 12), recipe())
    assert e.value.index.tolist() == [*range(16)]


@pytest.mark.parametrize("attack", ["pgd", "none"])
@pytest.mark.parametrize("count", [1, 20])
def test_images_that_are_all_alike_are_refused(count, attack, tmp_path):
    some = blobs(12)
    alike = StoredImages(some.images[:1].repeat(count, 1, 1, 1), torch.arange(count) % 3, some.classes)
    model = small_model()
    before = weights(model)
    with pytest.raises(
        ValueError, match=rf"splits.train: got {count} images whose features are all alike, accepted: "
    ):
        probe(model, Splits(alike, some, some), recipe(attack=attack), folder=tmp_path)
    assert same(weights(model), before)
    assert not (tmp_path / "recipe.json").exists()  # the folder is free for others


def test_an_offset_of_the_features_changes_nothing():
    torch.manual_seed(0)
    splits = splits_of(two_features, 256, 64, 64)
    settings = recipe(eps=EPS / 4, step_size=EPS / 4, steps=3)
    plain, moved = identity_backbone(), identity_backbone()

    class Offset(nn.Flatten):
        def forward(self, x):
            return super().forward(x) + 1000.0

    moved.backbone = Offset()
    kept = [probe(m, splits, settings, Rounds(2, **ONE_DECAY)).history[-1] for m in (plain, moved)]
    assert kept[1]["val_robust"] == pytest.approx(kept[0]["val_robust"], abs=0.05)
    assert kept[1]["pool_loss"] == pytest.approx(kept[0]["pool_loss"], rel=0.02)


def test_a_folder_belongs_to_its_backbone(tmp_path):
    splits = splits_of(blobs, 32, 12, 12)
    probe(small_model(), splits, recipe(), Rounds(1), folder=tmp_path)
    other = small_model()
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    with pytest.raises(ValueError, match="recipe: got backbone="):
        probe(other, splits, recipe(), Rounds(1), folder=tmp_path, resume=True)


def test_images_of_another_size_are_refused_before_anything_begins():
    train_, val, test = splits_of(blobs, 32, 12, 12)
    odd = StoredImages(torch.zeros(6, 1, 12, 12, dtype=torch.uint8), torch.arange(6) % 3, test.classes)
    with pytest.raises(ValueError, match="splits: got train of 1x8x8, val of 1x8x8, test of 1x12x12"):
        roli(small_model(), Splits(train_, val, odd), recipe(), probing=Rounds(1))


def test_a_streamed_set_is_refused():
    stream = ImageStream(lambda **_: None, 10, ["a", "b"], View(), padded=False)
    with pytest.raises(ValueError, match="splits: got a streamed set, accepted: one in memory or in files"):
        probe(small_model(), Splits(stream, *splits_of(blobs, 12, 12, 12)[1:]), recipe())
