"""Finetuning begins from the probed head, and the test images are looked at once, in the end."""

import sys

import pytest
import safetensors.torch
import torch

from roli_fast.attacks import PGD
from roli_fast.data import StoredImages
from roli_fast.evaluation import evaluate
from roli_fast.training import Rounds, probe, roli, train

from .cases import blobs, recipe, same, small_model, splits_of, weights

MODULE = sys.modules[roli.__module__]
PROBINGS = {"rounds": Rounds(1), "sgd": recipe(epochs=1, opt="momentum")}


def recorded(monkeypatch, look):
    """look(model) is called before and after each stage; what it returns, in that order."""
    seen = []

    def watched(stage):
        def run(model, *args, **kwargs):
            seen.append(look(model))
            done = stage(model, *args, **kwargs)
            seen.append(look(model))
            return done

        return run

    for stage in (probe, train):
        monkeypatch.setattr(MODULE, stage.__name__, watched(stage))
    return seen


class Watched(StoredImages):
    """Images that note which of them were read."""

    def __init__(self, images, labels, classes):
        super().__init__(images, labels, classes)
        self.read = []

    def batch(self, rows, draws=None):
        self.read += rows
        return super().batch(rows, draws)


def robust(model, images):
    """As a stage validates and a run tests, with the recipe of the tests."""
    attack = PGD(
        eps=0.1,
        step_size=0.025,
        steps=2,
        iterate="best",
        early_stop=True,
        generator=torch.Generator().manual_seed(0),
    )
    return evaluate(model, [(images.images, images.labels)], attack, strict=False)


def with_other_labels(splits):
    """Its test images are those of validation, with the classes changed."""
    val = splits.val
    return splits._replace(test=StoredImages(val.images, (val.labels + 1) % 3, val.classes))


@pytest.mark.parametrize("probing", PROBINGS.values(), ids=PROBINGS)
def test_finetuning_begins_where_probing_ended(probing, tmp_path, monkeypatch):
    """Else RoLI would be RanLI."""
    model = small_model()
    given = weights(model)
    seen = recorded(monkeypatch, weights)
    roli(model, splits_of(blobs, 32, 12, 12), recipe(), probing=probing, folder=tmp_path)
    _, _, begun, finetuned = seen
    probed = safetensors.torch.load_file(tmp_path / "probe" / "best.safetensors")
    assert same(begun, probed)
    changed = {name for name in given if not torch.equal(given[name], begun[name])}
    assert changed == {"model.head.weight", "model.head.bias"}
    assert not same(begun, finetuned)


def test_the_head_is_probed_unless_it_is_not_to_be():
    splits = splits_of(blobs, 32, 12, 12)
    assert list(roli(small_model(), splits, recipe(epochs=1)).stages) == ["probe", "finetune"]
    assert list(roli(small_model(), splits, recipe(epochs=1), probing=None).stages) == ["finetune"]


@pytest.mark.parametrize("probing", PROBINGS.values(), ids=PROBINGS)
def test_the_test_images_are_read_once_after_all_stages(probing, monkeypatch):
    splits = splits_of(blobs, 32, 12, 12)
    test = Watched(splits.test.images, splits.test.labels, splits.test.classes)
    before_and_after = recorded(monkeypatch, lambda _: len(test.read))
    roli(small_model(), splits._replace(test=test), recipe(), probing=probing)
    sized = before_and_after[0]  # an image tells their size, before anything begins
    assert sized <= 1
    assert before_and_after == [sized] * 4
    assert test.read[sized:] == [*range(12)]


@pytest.mark.parametrize("stage", [train, probe])
def test_a_stage_validates_on_validation_images(stage):
    splits = with_other_labels(splits_of(blobs, 48, 24))
    done = stage(small_model(), splits, recipe())
    best = done.history[done.best]
    assert best["val_robust"] == robust(done.model, splits.val).value
    assert best["val_robust"] != robust(done.model, splits.test).value
    assert best["val_clean"] > 0.5  # the model tells them apart


def test_the_test_is_of_the_test_images():
    splits = with_other_labels(splits_of(blobs, 48, 24))
    model = small_model()
    found = roli(model, splits, recipe(), probing=Rounds(1)).test
    expected = robust(model, splits.test)
    assert torch.equal(found.right, expected.right)
    assert found.clean.value == expected.clean.value < 0.5
