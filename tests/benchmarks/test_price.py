"""The public recipe spends what is known of it and learns what ours learns; cells add up to a table."""

import dataclasses
import functools
import itertools
import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks import jobs
from benchmarks.baselines import recipe as public
from benchmarks.price import __main__ as command
from benchmarks.price import arms, carried, cells, judges, phases, problem, removals
from benchmarks.price.seconds import seconds
from benchmarks.price.table import PATIENCE, stopped, table
from benchmarks.price.times import times
from roli_fast.attacks import AutoAttack, predict
from roli_fast.data import StoredImages
from roli_fast.models import find_classifier, finetune
from roli_fast.speed import machine
from roli_fast.training import Rounds, train

from ..training.cases import blobs, recipe, same, small_model, splits_of, weights


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


ARMS = {
    "RanLI Full-FT, public code": arms.Arm("random", 2, public=True),
    "Linear, rounds": arms.Arm("rounds", None),
    "RoLI Full-FT, rounds": arms.Arm("rounds", 2),
    "RanLI Full-FT": arms.Arm("random", 2),
}
RATES = ("0.001", "0.01")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Small models and images; runs the command in a folder."""

    def backbone(seed, method):
        model = small_model()
        finetune(model, method)
        return model

    splits = splits_of(blobs, 64, 24, 24)
    monkeypatch.setattr(problem, "backbone", backbone)
    monkeypatch.setattr(problem, "splits", lambda size: splits)
    monkeypatch.setattr(arms, "ARMS", ARMS)
    monkeypatch.setattr(cells, "Rounds", lambda: Rounds(1, other_weight_decays=()))
    monkeypatch.setattr(problem, "held_out", lambda: splits.val)
    monkeypatch.setattr(judges, "AutoAttack", functools.partial(AutoAttack, steps=2, queries=2))
    monkeypatch.setattr(judges, "JUDGED", {"apgd": 8, "autoattack": 2})

    def run(what, *arguments):
        monkeypatch.setattr("sys.argv", ["price", what, "--work", str(tmp_path / "work"), *arguments])
        command.main()
        return tmp_path / "work"

    return run


def contents(work):
    return {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}


def test_cells_are_trained_once_and_add_up(tiny):
    work = tiny("cells", "--rates", *RATES, "--seeds", "0")
    files = contents(work)
    assert {path.suffix for path in files} == {".json", ".pt"}
    tiny("cells", "--rates", *RATES, "--seeds", "0")
    assert contents(work) == files
    rows = table(work, 50)
    assert set(rows) == set(ARMS)
    ranli, roli = rows["RanLI Full-FT"], rows["RoLI Full-FT, rounds"]
    assert ranli["pgd20_minus_ranli"][0]["value"] == 0
    assert ranli["passes_to_ranlis_best"] == ranli["passes_to_best"]
    cell = cells.read(work / "50" / "RoLI Full-FT, rounds" / f"{roli['setting']}-0.json")
    assert roli["pgd20"]["mean"] == pytest.approx(sum(cell["right"]["pgd20"]) / 24)
    assert roli["devices"] == [cell["device"]] == [machine.slug(problem.DEVICE)]
    assert roli["patience"][f"{max(PATIENCE)}"]["passes"] == roli["passes"]  # two epochs wait for none
    (other,) = ranli["other_settings"]
    assert {other, ranli["setting"]} == set(RATES)
    found = cells.read(work / "50" / "RanLI Full-FT" / f"{other}-0.json")
    assert ranli["other_settings"][other]["validation"] == [[r["val_robust"] for r in found["history"]]]
    of_head = rows["Linear, rounds"]["passes"][0]
    assert roli["passes"][0] > ranli["passes"][0]
    assert roli["passes"][0] - of_head == pytest.approx(ranli["passes"][0], rel=0.1)


def test_heads_by_sgd(tiny, monkeypatch):
    """The first seed's best rate and decay are the others', and what is finetuned begins with that head;
    on the public code's engine, too."""
    monkeypatch.setattr(arms, "PROBING_EPOCHS", 8)
    monkeypatch.setattr(arms, "HEADS", {"sgd": ((1e-6, 0.01), (2.0, 0.01)), "public": ((2.0, 0.01),)})
    by_sgd = {
        "Linear": arms.Arm("sgd", None),
        "RoLI": arms.Arm("sgd", 2),
        "Linear, public code": arms.Arm("public", None, public=True),
        "RoLI, public code": arms.Arm("public", 2, public=True),
    }
    monkeypatch.setattr(arms, "ARMS", {"RanLI Full-FT": arms.Arm("random", 2)} | by_sgd)
    work = tiny("cells", "--rates", "1e-12", "--seeds", "0", "1", "--arms", "RanLI Full-FT", *by_sgd)
    rows = table(work, 50)
    assert {name: row["seeds"] for name, row in rows.items()} == dict.fromkeys(rows, 2)
    assert rows["Linear"]["setting"] == "2-0.01"
    assert list(rows["Linear"]["other_settings"]) == ["1e-06-0.01"]
    for kind, name in (("sgd", "RoLI"), ("public", "RoLI, public code")):
        for seed in (0, 1):
            head, model = small_model(), small_model()
            head.load_state_dict(cells.weights_of(work / "50" / kind / f"2-0.01-{seed}.json"))
            model.load_state_dict(cells.weights_of(work / "50" / name / f"1e-12-{seed}.json"))
            torch.testing.assert_close(find_classifier(model).head.weight, find_classifier(head).head.weight)
        head_alone = rows[name.replace("RoLI", "Linear")]["passes"]
        assert all(roli > head for roli, head in zip(rows[name]["passes"], head_alone, strict=True))


def test_cells_that_count_are_judged(tiny):
    """With the weights of the best epoch, which are kept; the table has what is judged beside the rest."""
    work = tiny("cells", "--rates", *RATES, "--seeds", "0", "1", "--arms", "RanLI Full-FT", "Linear, rounds")
    before = table(work, 50)
    judged = tiny("judge", "--seeds", "0")
    rows = table(work, 50)
    for name, row in rows.items():
        assert {what: row[what] for what in before[name]} == before[name]
        assert len(row["apgd"]["by_seed"]) == len(row["autoattack_minus_ranli"]) == 1
        assert row["autoattack"]["mean"] <= row["clean"]["by_seed"][0] + 0.5
    lr = rows["RanLI Full-FT"]["setting"]
    files = sorted(
        path.relative_to(judged / "judged" / "apgd" / "50") for path in judged.glob("judged/apgd/**/*.json")
    )
    assert [str(file) for file in files] == [f"RanLI Full-FT/{lr}-0.json", "rounds/0.json"]
    model = problem.backbone(0, "full")
    model.load_state_dict(cells.weights_of(work / "50" / "RanLI Full-FT" / f"{lr}-0.json"))
    test = problem.splits(50).test
    right = predict(model, test.images.float() / 255).argmax(1) == test.labels
    cell = cells.read(work / "50" / "RanLI Full-FT" / f"{lr}-0.json")
    assert right.int().tolist() == cell["right"]["clean"]


def test_where_patience_would_have_stopped():
    """As the trainer does, of whose epochs those before stay as they were."""
    splits, settings = splits_of(blobs, 48, 24, 8), recipe(epochs=8, steps=1)
    history = train(small_model(), splits, settings).history
    trained = {
        patience: train(small_model(), splits, dataclasses.replace(settings, patience=patience))
        for patience in (1, 2, 8)
    }
    assert len(trained[1].history) < 8
    for patience, run in trained.items():
        assert stopped(history, patience) == (len(run.history), run.best)


def test_nothing_is_trained_before_what_it_needs(monkeypatch):
    """Nor twice; the public code at one size, where nobody asks for more."""
    plan = cells.plan((900, 50), None, (0, 1), arms.RATES)
    assert len(set(plan)) == len(plan)
    for number, task in enumerate(plan):
        assert set(task.needs) <= set(plan[:number])
    planned = [(t.size, t.name, t.seed, t.setting) for t in plan]
    assert planned[0] == (50, "rounds", 0, ())
    first_of_arms = next(i for i, cell in enumerate(planned) if cell[1] not in arms.HEADS)
    assert planned[first_of_arms] == (50, arms.RANLI, 0, arms.RATES[:1])
    public_code = {cell for cell in planned if "public" in cell[1]}
    assert {size for size, *_ in public_code} == {50}
    # Of two arms the second seed has the best rate; heads have the one setting that ours chooses.
    assert len(public_code) == 2 * (len(arms.RATES) + 1) + 2
    by_sgd = [(seed, setting) for size, name, seed, setting in planned if (size, name) == (900, "sgd")]
    assert by_sgd == [*((0, setting) for setting in arms.SGD), (1, None)]
    asked = cells.plan((900,), ["RanLI Full-FT, public code"], (0,), arms.RATES)
    assert [t.setting for t in asked] == [(rate,) for rate in arms.RATES]


def test_a_cell_that_fails_stops_no_other(tiny, monkeypatch, capsys):
    probe = cells.probe
    monkeypatch.setattr(cells, "probe", lambda *a, **k: 1 / 0)
    with pytest.raises(
        SystemExit, match=r"failed: 50 rounds, seed 0; 50 RoLI Full-FT, rounds, 0.001, seed 0$"
    ):
        tiny("cells", "--rates", "0.001", "--seeds", "0")
    assert "50 rounds, seed 0: ZeroDivisionError: division by zero\n" in capsys.readouterr().out
    monkeypatch.setattr(cells, "probe", probe)
    work = tiny("cells", "--rates", "0.001", "--seeds", "0")
    assert set(table(work, 50)) == set(ARMS)


@dataclasses.dataclass(frozen=True)
class Step:
    """file: what it makes; None for one whose process dies."""

    file: Path | None
    needs: tuple["Step", ...] = ()

    def __str__(self):
        return str(self.file and self.file.name)

    def perform(self):
        if self.file is None:
            os._exit(7)
        if not self.file.parent.exists():
            raise OSError("no\nfolder")
        needed = [step for step in self.needs if step.file and step.file.exists()]
        self.file.write_text(f"after {len(needed)}")


def test_several_processes(tmp_path, monkeypatch, capsys):
    """What needs another waits for it; what fails, or dies, is named and stops nothing."""
    fork = multiprocessing.get_context("fork")  # sooner there than what imports torch again
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)
    first, bad = Step(tmp_path / "first"), Step(tmp_path / "missing" / "bad")
    others = [Step(tmp_path / "second", (first, bad)), Step(None), Step(tmp_path / "last", (Step(None),))]
    others.append(Step(tmp_path / "later", (Step(tmp_path / "done before"),)))
    assert sorted(jobs.run_all([first, bad, *others], Step.perform, 2)) == ["None", "bad"]
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {"first": "after 0", "second": "after 1", "last": "after 0", "later": "after 0"}
    shown = capsys.readouterr().out
    assert "bad: OSError: no folder\n" in shown
    assert "None: its process ended with 7\n" in shown
    assert multiprocessing.active_children() == []


def test_seconds_per_image(tiny):
    measured = times(2, 1)["seconds_per_image"]
    assert {"public code, full", "ours, full", "ours, linear", "ours, N-FGSM, full"} <= set(measured)
    assert {"ours, one step, linear", "ours, one step, bf16, linear", "ours, N-FGSM, bf16, full"} <= set(
        measured
    )


def test_seconds_of_whole_trainings(tiny, monkeypatch):
    """Each head once a seed, whatever begins with it; epochs end one after another."""
    begun = []
    learn = cells.learn

    def watched(task, model, *more):
        begun.append((task, find_classifier(model).head.weight.detach().clone()))
        return learn(task, model, *more)

    monkeypatch.setattr("benchmarks.price.seconds.learn", watched)
    more = {"RoLI Full-FT, N-FGSM": arms.Arm("rounds", 2, arms.NFGSM), "Linear, SGD": arms.Arm("sgd", None)}
    monkeypatch.setattr(arms, "ARMS", ARMS | more)
    rows = {name: {"seeds": 2, "setting": "0.001"} for name in arms.ARMS}
    rows["Linear, SGD"]["setting"] = "0.1-1"
    found = seconds({"50": rows}, [50], list(rows))["seconds"]["50"]
    assert set(found["heads"]) == {"rounds", "sgd"}
    assert set(found["arms"]) == {name for name in rows if not name.startswith("Linear")}
    epochs = {"rounds": 1, "sgd": arms.PROBING_EPOCHS} | dict.fromkeys(found["arms"], 2)
    for name, by_seed in (found["heads"] | found["arms"]).items():
        assert [len(ends) for ends in by_seed] == [epochs[name]] * 2, name
        assert all(ends == sorted(ends) and ends[0] > 0 for ends in by_seed)
    assert [task.setting for task, _ in begun if task.name == "sgd"] == [(0.1, 1.0)] * 2
    heads = {(task.name, task.seed): head for task, head in begun}
    for seed in (0, 1):
        assert torch.equal(heads[arms.ROUNDS, seed], heads["RoLI Full-FT, N-FGSM", seed])
        assert not torch.equal(heads[arms.ROUNDS, seed], heads[arms.RANLI, seed])


def test_where_the_time_goes(tiny, monkeypatch):
    """Every phase of a stage is seen, none that it has not, and together they are its time: by a clock that
    goes on by a second whenever it is looked at."""
    looks = itertools.count()
    monkeypatch.setattr(phases, "time", SimpleNamespace(perf_counter=lambda: float(next(looks))))

    def replaced():
        return [getattr(*place) for there in phases.PLACES.values() for place in there]

    before = replaced()
    found = phases.phases(1)
    seconds = found["seconds_per_image"]
    whole = next(looks) - 1 - len(seconds)  # but for the second before each stage, and the clock's first
    assert found["images"] * sum(sum(parts.values()) for parts in seconds.values()) == pytest.approx(whole)
    seen = {stage: {phase for phase, value in parts.items() if value} for stage, parts in seconds.items()}
    attacked = {"attack, forward", "attack, backward", "validation", "rest"}
    trained = attacked | {"training, forward", "training, backward", "optimiser"}
    for stage, what in seen.items():
        assert what == (attacked | {"features", "fits"} if "rounds" in stage else trained), stage
    assert replaced() == before  # with nothing that is timed


def test_what_each_removal_gave(tiny):
    seconds = removals.removals(2)["seconds_per_image"]
    assert set(seconds) == set(removals.COLUMNS)
    for rungs in seconds.values():
        assert list(rungs) == [rung for rung in removals.RUNGS if rung in rungs]
        assert all(rung["median"] > 0 for rung in rungs.values())
    on_cpu = set(removals.RUNGS) - {removals.GRAPHS}
    assert {rung for rungs in seconds.values() for rung in rungs} == on_cpu


@pytest.mark.parametrize("method", ["full", "linear"])
def test_nothing_but_its_price_changes(tiny, method):
    """From rung to rung: attacks stay in the ball and are as strong, steps leave the same weights."""
    data = problem.splits(50)
    raised = []
    for attack in (
        *(removals.public_attack, removals.frozen_attack),
        *(removals.last_place, removals.folded_attack, removals.our_attack),
    ):
        batch = removals.Batch.of(method, data, channels_last=False)
        asking = [p.requires_grad for p in batch.model.parameters()]
        batch.model.eval()
        clean = F.cross_entropy(batch.model(batch.images), batch.labels)
        torch.manual_seed(0)
        adversarial = attack(batch)()
        assert [p.requires_grad for p in batch.model.parameters()] == asking
        assert (adversarial - batch.images).abs().max() <= problem.EPS + 1e-6
        assert 0 <= adversarial.min() <= adversarial.max() <= 1
        batch.model.eval()
        raised.append((F.cross_entropy(batch.model(adversarial), batch.labels) - clean).item())
    assert raised == pytest.approx([raised[0]] * len(raised), rel=0.1)
    assert raised[0] > 0
    stepped = []
    for step in (removals.public_step, removals.step_without_waiting):
        batch = removals.Batch.of(method, data, channels_last=False)
        before = weights(batch.model)
        step(batch)(batch.images)
        stepped.append(weights(batch.model))
        assert not same(stepped[-1], before)
    assert same(*stepped)


@pytest.mark.parametrize("pixels", [torch.uint8, torch.float32])
def test_what_is_carried_adds_up_to_the_worst(pixels):
    """Step by step, each from where the last epoch's ended; of images in other batches nothing changes."""
    eps, slope = 8 / 255, torch.tensor([[1.0, -1.0, 2.0], [0.0, 0.0, 0.0]])
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
    with torch.no_grad():
        model[1].weight.copy_(slope)
    grey = torch.full((4, 3, 1, 1), 102 if pixels == torch.uint8 else 0.4, dtype=pixels)
    images = StoredImages(grey, torch.tensor([0, 1, 0, 1]))
    settings = recipe(eps=eps, step_size=eps / 2, steps=1, batch_size=2, precision="fp32")
    attack = carried.CarriedAttack(model, settings, "fp32", images=images)
    key = torch.zeros(1, dtype=torch.int64)

    def perturbation(rows):
        index = torch.tensor(rows)
        clean = images.images[index]
        return (attack(clean, images.labels[index], index, key).adversarial - 0.4).flatten(1)

    attack.grow(0.0)
    first = perturbation([2, 3])
    before = attack._carried[[0, 1]].clone()
    for epoch in range(1, 4):
        attack.grow(epoch)
        last = perturbation([2, 3])
    worst = eps * torch.tensor([[-1.0, 1.0, -1.0], [1.0, -1.0, 1.0]])
    torch.testing.assert_close(last, worst)
    assert not torch.allclose(first, worst)
    assert first.abs().max() <= eps + 1e-6
    assert torch.equal(attack._carried[[0, 1]], before)
    attack.grow(carried.RESET)
    assert not torch.equal(attack._carried[[0, 1]], before)


def test_the_arm_that_carries(tiny, monkeypatch):
    """It trains by carried perturbations, and nothing does afterwards."""
    made = []
    attack = carried.CarriedAttack
    monkeypatch.setattr(carried, "CarriedAttack", lambda *a, **k: made.append(1) or attack(*a, **k))
    monkeypatch.setattr(arms, "ARMS", ARMS | {"carried": arms.Arm("random", 2, {"steps": 1}, carried=True)})
    tiny("cells", "--rates", "0.001", "--seeds", "0", "--arms", "carried", "RanLI Full-FT")
    assert made == [1]
