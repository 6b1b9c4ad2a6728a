"""The public recipe spends what is known of it and learns what ours learns; cells add up to a table."""

import json

import pytest
import torch

from benchmarks import price
from benchmarks.baselines import recipe as public
from roli_fast.models import finetune
from roli_fast.training import Rounds, train

from ..training.cases import blobs, recipe, small_model, splits_of


@pytest.mark.parametrize(
    ("method", "backwards", "to_weights"), [("full", 8, 8), pytest.param("linear", 7, 0, id="linear")]
)
def test_what_a_batch_of_the_public_code_spends(method, backwards, to_weights):
    """Nine forwards; the attack's seven backwards go to the weights, too, where these require gradients."""
    model, spent = small_model(), public.Spent()
    finetune(model, method)
    counted, settings = public.Counted(model, spent), recipe(steps=7)
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    adversarial = public.attacked(counted, images, labels, settings)
    public.step(counted, public.optimizer_of(model, settings), adversarial, labels)
    assert spent == public.Spent(9 * 4, backwards * 4, to_weights * 4)


def test_the_public_recipe_learns_what_ours_learns():
    splits = splits_of(blobs, 96, 60, 12)
    settings = recipe(epochs=4, warmup_epochs=1, steps=2)
    theirs, _ = public.train(small_model(), splits, settings)
    ours = train(small_model(), splits, settings).history
    rates = [[public.learning_rate(e * 6 + 5, 6, settings) for e in range(4)], [row["lr"] for row in ours]]
    assert rates[0] == pytest.approx(rates[1])
    for what in ("val_clean", "val_robust"):
        assert abs(max(r[what] for r in theirs) - max(r[what] for r in ours)) < 0.2


def test_cells_are_read_and_add_up(tmp_path, monkeypatch):
    def backbone(seed, method):
        model = small_model()
        finetune(model, method)
        return model

    splits = splits_of(blobs, 64, 24, 24)
    arms = {
        "Linear, rounds": price.Arm("rounds", None),
        "RanLI Full-FT": price.Arm("random", 2),
        "RoLI Full-FT, rounds": price.Arm("rounds", 2),
        "RanLI Full-FT, public code": price.Arm("random", 2, public=True),
    }
    monkeypatch.setattr(price, "backbone", backbone)
    monkeypatch.setattr(price, "splits", lambda size: splits)
    monkeypatch.setattr(price, "ARMS", arms)
    monkeypatch.setattr(price, "Rounds", lambda: Rounds(1, other_weight_decays=()))
    monkeypatch.setattr(
        "sys.argv", ["price", "cells", "--work", str(tmp_path), "--rates", "0.001", "0.01", "--seeds", "0"]
    )
    price.main()
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    price.main()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == files
    rows = price.table(tmp_path, 50)
    assert set(rows) == set(arms)
    ranli, roli = rows["RanLI Full-FT"], rows["RoLI Full-FT, rounds"]
    assert ranli["pgd20_minus_ranli"][0]["value"] == 0
    assert ranli["passes_to_ranlis_best"] == ranli["passes_to_best"]
    cell = json.loads((tmp_path / "50" / "RoLI Full-FT, rounds" / f"{roli['lr']:g}-0.json").read_text())
    assert roli["pgd20"]["mean"] == pytest.approx(sum(cell["right"]["pgd20"]) / 24)
    of_head = rows["Linear, rounds"]["passes"][0]
    assert roli["passes"][0] > ranli["passes"][0]
    assert roli["passes"][0] - of_head == pytest.approx(ranli["passes"][0], rel=0.1)
    measured = price.times(2, 1)["seconds_per_image"]
    assert {"public code, full", "ours, full", "ours, linear"} <= set(measured)
