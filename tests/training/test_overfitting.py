"""The two kinds of overfitting are told apart, and noise is neither."""

import pytest

from roli_fast.training.overfitting import PATIENCE, overfitting


def history(robust, trained, clean=None):
    return [
        {"val_robust": r, "train_accuracy": t, "val_clean": c}
        for r, t, c in zip(robust, trained, clean or [0.6] * len(robust), strict=True)
    ]


def test_catastrophic():
    said = overfitting(history([0.40, 0.42, 0.10], [0.45, 0.47, 0.80]), 1000)
    assert said.startswith("catastrophic overfitting: validation robustness fell from 42.0% to 10.0%")


@pytest.mark.parametrize(
    ("robust", "trained"),
    [
        ([0.40], [0.5]),
        ([0.40, 0.39], [0.45, 0.47]),  # noise
        ([0.40, 0.10], [0.45, 0.30]),  # training fell, too: divergence, not overfitting
        ([0.03, 0.0], [0.2, 0.3]),  # nothing was robust yet
        ([0.2, 0.3, 0.4], [0.3, 0.4, 0.5]),
        ([0.5] * 12, [0.5] * 12),  # as good as the best is not below it
    ],
)
def test_nothing_is_said_of_what_does_not_overfit(robust, trained):
    assert overfitting(history(robust, trained), 1000) is None


def test_a_model_that_is_lost_as_a_whole_does_not_overfit():
    """As one that has learnt nothing yet, whose guesses change."""
    assert overfitting(history([0.103, 0.0], [0.08, 0.16], clean=[0.122, 0.061]), 1000) is None
    assert overfitting(history([0.103, 0.0], [0.08, 0.16], clean=[0.122, 0.12]), 1000) is not None


def test_a_few_images_are_no_collapse():
    """3 of 14, and then 1."""
    rows = history([3 / 14, 1 / 14], [0.3, 0.4])
    assert overfitting(rows, 14) is None
    assert overfitting(rows, 1400) is not None


def test_robust_overfitting_is_said_after_some_epochs_and_not_at_each():
    robust = [0.3, 0.5, *[0.45 - 0.01 * e for e in range(2 * PATIENCE)]]
    trained = [0.5 + 0.02 * e for e in range(len(robust))]
    said = [overfitting(history(robust[: n + 1], trained[: n + 1]), 1000) for n in range(len(robust))]
    assert [n for n, text in enumerate(said) if text] == [1 + PATIENCE, 1 + 2 * PATIENCE]
    assert "robust overfitting: validation robustness has been below its best, 50.0% in epoch 2" in said[6]
