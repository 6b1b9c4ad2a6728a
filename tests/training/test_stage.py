"""A stage learns what its recipe says, keeps what validation chose, counts what it spends."""

import contextlib
import copy
import csv
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from roli_fast.attacks import PGD
from roli_fast.data import Splits, StoredImages
from roli_fast.evaluation import evaluate
from roli_fast.models import METHODS, create_model, finetune, load_model
from roli_fast.training import DivergedError, Recipe, probe, roli, stage, train
from roli_fast.training.attack import TrainingAttack
from roli_fast.training.learner import Learner, make_optimizer

from .cases import EPS, blobs, linear_model, recipe, same, small_model, splits_of, two_features, weights


def test_adversarial_training_finds_the_robust_feature():
    torch.manual_seed(0)
    splits = splits_of(two_features)
    robust = {}
    for attack in ("none", "pgd"):
        torch.manual_seed(0)
        settings = recipe(
            epochs=8, lr=0.05, batch_size=32, attack=attack, eps=EPS, step_size=EPS / 2, steps=3
        )
        model = train(linear_model(), splits, settings).model
        batches = [(splits.test.images, splits.test.labels)]
        robust[attack] = evaluate(model, batches, PGD(eps=EPS, step_size=EPS / 2, steps=3)).value
    assert robust["pgd"] > 0.75
    assert robust["none"] < robust["pgd"] - 0.2


def test_the_best_epoch_is_what_remains():
    """At a learning rate that wrecks the model again and again, the last epoch is not the best."""
    splits = splits_of(blobs, 48, 24, 24)
    model = small_model()
    done = train(model, splits, recipe(epochs=6, lr=0.5, opt="momentum", sched="none"))
    reached = [(row["val_robust"], row["val_clean"]) for row in done.history]
    assert done.best == reached.index(max(reached))
    assert len(set(reached)) > 1
    attack = PGD(eps=0.1, step_size=0.025, steps=2, iterate="best", early_stop=True)
    again = evaluate(
        model,
        [(splits.val.images, splits.val.labels)],
        PGD(**{n: getattr(attack, n) for n in ("eps", "step_size", "steps", "iterate", "early_stop")},
            generator=torch.Generator().manual_seed(0)),
    )  # fmt: skip
    assert again.clean.value == done.history[done.best]["val_clean"]
    assert again.value == done.history[done.best]["val_robust"]


def test_it_ends_when_validation_has_not_improved_for_a_while():
    """At a learning rate of almost nothing, the first epoch remains the best."""
    splits = splits_of(blobs, 32, 24, 24)
    settings = {"epochs": 9, "lr": 1e-12, "weight_decay": 0.0}
    done = train(linear_model(64, 3), splits, recipe(**settings, patience=2))
    assert done.best == 0
    assert len(done.history) == 3
    assert len(train(linear_model(64, 3), splits, recipe(**settings | {"epochs": 4})).history) == 4


def test_whoever_asks_sees_each_epoch_as_it_was_validated_and_changes_nothing():
    splits = splits_of(blobs, 40, 24, 12)
    settings = recipe(epochs=3, lr=0.05, ema_decay=None)
    plain = train(small_model(drop_path_rate=0.3), splits, settings)
    seen = []

    def look(model, row):
        torch.rand(5)  # as attacks of a user's own do
        clean = (model(splits.val.images.float() / 255).argmax(1) == splits.val.labels).float().mean()
        seen.append((row["epoch"], clean.item(), row["val_clean"]))
        row.clear()

    watched = train(small_model(drop_path_rate=0.3), splits, settings, on_epoch_end=look)
    assert [epoch for epoch, _, _ in seen] == [1, 2, 3]
    assert all(clean == pytest.approx(validated) for _, clean, validated in seen)
    assert same(weights(plain.model), weights(watched.model))
    assert [row["val_clean"] for row in watched.history] == [validated for _, _, validated in seen]


def test_a_seed_repeats_a_run_whatever_was_drawn_before():
    splits = splits_of(blobs, 40, 12, 12)
    found = []
    for other in (1, 2):
        model = small_model(drop_path_rate=0.3)
        torch.manual_seed(other)
        state = torch.get_rng_state()
        train(model, splits, recipe())
        assert torch.equal(torch.get_rng_state(), state)  # the caller's own randomness is as it was
        found.append(weights(model))
    assert same(*found)
    model = small_model(drop_path_rate=0.3)
    train(model, splits, recipe(seed=1))
    assert not same(found[0], weights(model))


def interrupted(settings, folder, monkeypatch):
    """Trains until the second step of the second epoch, and goes on with what was saved before it."""
    learn = Learner.step

    def step(self, number, *batch):
        if number == 4:
            raise KeyboardInterrupt
        return learn(self, number, *batch)

    with monkeypatch.context() as context:
        context.setattr(Learner, "step", step)
        context.setattr(stage, "_SAVE_EVERY", -1.0)  # at every step
        with pytest.raises(KeyboardInterrupt):
            train(small_model(), splits_of(blobs, 48, 12, 12), settings, folder=folder)
    train(small_model(), splits_of(blobs, 48, 12, 12), settings, folder=folder, resume=True)


def test_eps_warms_up_from_zero_to_the_recipes(tmp_path, monkeypatch):
    """The largest change of an image in each step, also over an interruption."""
    changes, learn = {}, Learner.step

    def step(self, number, images, adversarial, labels):
        changes[number] = (adversarial - images / 255).abs().max().item()
        return learn(self, number, images, adversarial, labels)

    monkeypatch.setattr(Learner, "step", step)
    settings = recipe(epochs=3, eps_warmup_epochs=2)
    shares = [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 1]  # three steps an epoch
    expected = {number: pytest.approx(0.1 * share, abs=1e-6) for number, share in enumerate(shares)}
    train(small_model(), splits_of(blobs, 48, 12, 12), settings)
    assert changes == expected
    changes.clear()
    interrupted(settings, tmp_path, monkeypatch)
    assert changes == expected


def test_every_step_draws_anew(tmp_path, monkeypatch):
    """No epoch repeats the random starts of another, and a run that goes on has those of a whole one."""
    keys, perturb = [], TrainingAttack.__call__

    def attack(self, images, labels, index, key):
        keys.append(key.item())
        return perturb(self, images, labels, index, key)

    monkeypatch.setattr(TrainingAttack, "__call__", attack)
    train(small_model(), splits_of(blobs, 48, 12, 12), recipe())
    whole = keys.copy()
    assert len(whole) == len(set(whole)) == 2 * 3
    keys.clear()
    interrupted(recipe(), tmp_path, monkeypatch)
    assert keys == [*whole[:5], *whole[4:]]


def vit():
    torch.manual_seed(0)
    options = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4}
    return create_model("vit_tiny_patch16_224", 3, in_chans=1, img_size=8, **options)


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_that_should_train_moves_and_no_other(method):
    model = vit()
    finetune(model, method)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    # The second step moves what stands behind a zero, such as LoRA's A.
    train(model, splits_of(blobs, 48, 6, 6), recipe(epochs=1, lr=0.05, steps=1, val_steps=1))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(moved) > 0


@pytest.mark.parametrize(
    ("settings", "method", "forwards", "input_gradients", "weight_gradients"),
    [
        ({"steps": 3}, "full", 3 + 1, 3, 1),
        ({"steps": 3}, "linear", 3 + 1, 3, 0),
        ({"attack": "nfgsm"}, "full", 1 + 1, 1, 1),
        ({"steps": 3, "loss": "trades"}, "full", 1 + 3 + 2, 3, 2),
        ({"attack": "none"}, "full", 1, 0, 1),
    ],
)
def test_it_counts_what_it_spends(settings, method, forwards, input_gradients, weight_gradients):
    """research/roli.md: what is necessary per training batch. Every call of the model itself is counted."""
    model = small_model()
    finetune(model, method)
    calls = []
    model.register_forward_hook(lambda module, args, out: calls.append((module.training, len(args[0]))))
    done = train(model, splits_of(blobs, 48, 12, 12), recipe(epochs=2, **settings))
    trained = sum(count for training, count in calls if training)
    images = 2 * 48
    assert trained == images * (2 if settings.get("loss") == "trades" else 1)
    assert done.cost.weight_gradients == images * weight_gradients
    assert done.cost.forwards >= images * forwards  # and what validation took
    validation = done.cost.input_gradients - images * input_gradients
    assert 0 <= validation <= 2 * 12 * 2  # epochs, images, steps
    if settings.get("attack") == "none":
        assert done.cost.forwards == images * forwards + 2 * 12
        assert all(row["val_robust"] is None for row in done.history)
    assert done.cost.training > 0
    assert (done.cost.attack > 0) == (settings.get("attack") != "none")
    assert done.cost.seconds == pytest.approx(
        done.cost.attack + done.cost.training + done.cost.data + done.cost.evaluation
    )


def test_trades_minimises_its_formula():
    """Zhang et al. 2019, eq. 5, in float64."""
    torch.manual_seed(0)
    model = linear_model(16, 4).double()
    clean, adversarial = torch.rand(2, 6, 1, 4, 4, dtype=torch.float64)
    labels = torch.randint(0, 4, (6,))
    learner = Learner(model, Recipe(epochs=1, lr=1e-30, loss="trades", trades_beta=3.0), "fp32", 1)
    p = model(clean).softmax(1)
    q = model(adversarial).softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    expected = F.cross_entropy(model(clean), labels) + 3 * divergence
    loss, right = learner.step(0, clean, adversarial, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(right, q.argmax(1) == labels)


def test_trades_has_a_loss_and_a_gradient_where_the_model_is_sure():
    """A class of probability 0 adds nothing to the divergence, and no NaN to the weights."""
    model = linear_model(16, 4)
    with torch.no_grad():
        model[1].weight.mul_(1e5)
    clean, adversarial = torch.rand(2, 6, 1, 4, 4)
    assert (model(clean).softmax(1) == 0).any()
    learner = Learner(model, Recipe(epochs=1, lr=1e-30, loss="trades"), "fp32", 1)
    loss, _ = learner.step(0, clean, adversarial, torch.randint(0, 4, (6,)))
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_learning_rate_warms_up_from_above_zero_and_ends_at_its_least():
    learner = Learner(linear_model(), Recipe(epochs=4, lr=0.1, warmup_epochs=1, min_lr=0.01), "fp32", 5)
    images, labels = torch.rand(4, 1, 1, 21), torch.tensor([0, 1, 0, 1])
    rates = []
    for step in range(20):
        learner.step(step, images, images, labels)
        rates.append(learner.lr)
    assert 0 < rates[0] < 0.05
    assert rates[5] == max(rates) == pytest.approx(0.1)
    assert rates[:6] == sorted(rates[:6])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    cosine = 0.01 + 0.09 * (1 + math.cos(math.pi * 14 / 15)) / 2
    assert rates[-1] == pytest.approx(cosine)


@pytest.mark.parametrize(("sched", "same_rate"), [("none", True), ("cosine", False)])
def test_without_a_schedule_the_learning_rate_stays(sched, same_rate):
    learner = Learner(linear_model(), Recipe(epochs=4, lr=0.1, sched=sched), "fp32", 5)
    images, labels = torch.rand(4, 1, 1, 21), torch.tensor([0, 1, 0, 1])
    rates = []
    for step in range(20):
        learner.step(step, images, images, labels)
        rates.append(learner.lr)
    assert rates[0] == pytest.approx(0.1)
    assert (rates == [rates[0]] * 20) == same_rate


@pytest.mark.parametrize(
    ("precision", "amp_dtype", "expected"),
    [
        ("fp32", "auto", torch.float32),
        ("bf16", "auto", torch.bfloat16),
        ("bf16", "float32", torch.float32),
        ("fp32", "bfloat16", torch.bfloat16),
    ],
)
def test_the_training_step_computes_in_the_recipes_type(precision, amp_dtype, expected):
    model = small_model()
    logits = []
    model.register_forward_hook(lambda module, _, out: logits.append(out.dtype) if module.training else None)
    train(model, splits_of(blobs, 32, 12, 12), recipe(epochs=1, precision=precision, amp_dtype=amp_dtype))
    assert logits == [expected] * 2


class OwnAutocast(nn.Module):
    """Casts inside, as models do that are to be fast whoever calls them."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.inside(x).float()


@pytest.mark.parametrize("around", [contextlib.nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)])
@pytest.mark.parametrize(("own", "amp_dtype"), [(False, "bfloat16"), (True, "float32")])
def test_steps_in_half_precision_see_the_weights_of_now(own, amp_dtype, around):
    """Autocast keeps what weights were cast to until the outermost one ends: around a whole run, all steps
    would go along the first step's gradient. Every trainer and caller may have some autocast around."""

    def losses(model, amp_dtype):
        settings = recipe(epochs=4, attack="none", lr=2e-2, amp_dtype=amp_dtype)
        return [row["train_loss"] for row in train(model, splits_of(blobs, 96, 24, 24), settings).history]

    model = linear_model(64, 3)
    expected = losses(copy.deepcopy(model), "float32")
    with around():
        found = losses(OwnAutocast(model) if own else model, amp_dtype)
    assert found == pytest.approx(expected, rel=0.1)
    assert found[-1] < 0.5 * found[0]


@pytest.mark.parametrize(
    ("channels_last", "width", "method", "expected"),
    [
        (True, 16, "full", True),
        (False, 16, "full", False),
        # Gradients that oneDNN may get wrong, of a strided 1x1 convolution of 8 channels:
        (True, 8, "full", False),
        (True, 8, "linear", True),  # which asks for none of these
    ],
)
def test_images_are_laid_out_as_the_recipe_says(channels_last, width, method, expected):
    """And the model's weights, as torch has it for both; however the data set has its images."""
    model = small_model(in_chans=3, mean=(0.3,) * 3, std=(0.3,) * 3, channels=(width,) * 4)
    finetune(model, method)
    seen = []
    model.register_forward_pre_hook(
        lambda module, args: (
            seen.append(args[0].is_contiguous(memory_format=torch.channels_last)) if module.training else None
        )
    )
    splits = splits_of(functools.partial(blobs, channels=3), 32, 12, 12)
    other = torch.contiguous_format if expected else torch.channels_last
    splits.train.images = splits.train.images.contiguous(memory_format=other)
    train(model, splits, recipe(epochs=1, channels_last=channels_last))
    assert seen == [expected] * 2
    inner = max((p for p in model.parameters() if p.dim() == 4), key=lambda p: p[0].numel())
    assert inner.is_contiguous(memory_format=torch.channels_last) == expected


def test_matrices_decay_and_nothing_else():
    """Not biases and norms, and not what the network itself exempts, such as position embeddings."""
    model = vit()
    decayed = {}
    for group in make_optimizer(model, recipe(weight_decay=0.3)).param_groups:
        decayed |= {id(p): group["weight_decay"] for p in group["params"]}
    found = {name: decayed[id(p)] for name, p in model.named_parameters()}
    kept = {name for name, decay in found.items() if decay == 0}
    assert {decay for name, decay in found.items() if name not in kept} == {0.3}
    exempt = ("bias", "norm.weight", "norm1.weight", "norm2.weight", "pos_embed", "cls_token")
    assert kept == {name for name in found if name.endswith(exempt)}


def test_an_average_of_the_weights_is_what_is_kept():
    splits = splits_of(blobs, 48, 12, 12)
    live, averaged, forgetful = small_model(), small_model(), small_model()
    settings = {"epochs": 1, "attack": "none"}
    train(live, splits, recipe(**settings))
    train(forgetful, splits, recipe(**settings, ema_decay=0.0))
    train(averaged, splits, recipe(**settings, ema_decay=0.9))
    assert same(weights(live), weights(forgetful))
    assert not same(weights(live), weights(averaged))


def test_gradients_are_clipped():
    images, labels = torch.rand(8, 1, 1, 21), torch.randint(0, 2, (8,))
    moved = {}
    for clip in (None, 1e-3):
        torch.manual_seed(0)
        model = linear_model()
        before = weights(model)
        settings = Recipe(epochs=1, lr=1.0, opt="momentum", weight_decay=0, clip_grad=clip)
        Learner(model, settings, "fp32", 1).step(0, images, images, labels)
        change = torch.cat([(v - before[n]).flatten() for n, v in model.state_dict().items()])
        moved[clip] = change.norm().item()
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert moved[None] > 0.01


class Treacherous(nn.Module):
    """NaN for one image, in training."""

    def __init__(self, image):
        super().__init__()
        self.inner = linear_model(64, 3)
        self.image = image

    def forward(self, x):
        found = (x.detach() - self.image).flatten(1).abs().amax(1) < 1e-6
        return self.inner(x) * torch.where(found & self.training, torch.nan, 1.0)[:, None]


def test_a_loss_that_is_not_finite_stops_with_step_and_images():
    splits = splits_of(blobs, 64, 12, 12)
    bad = 37
    model = Treacherous(splits.train.images[bad] / 255)
    with pytest.raises(DivergedError) as stopped:
        train(model, splits, recipe(attack="none", epochs=3))
    assert bad in stopped.value.index.tolist()
    assert len(stopped.value.index) == 16
    assert f"in step {stopped.value.step} of epoch 1, on images" in str(stopped.value)


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    splits = splits_of(blobs, 32, 12, 12)
    model, folder = small_model(), tmp_path / "run"
    learn = Learner.step

    def late(self, number, *batch):
        loss, right = learn(self, number, *batch)
        return (loss * torch.nan if number == 5 else loss), right

    monkeypatch.setattr(Learner, "step", late)
    with pytest.raises(DivergedError, match=r"step 1 of epoch 3, .*last\.pt is the last good checkpoint"):
        train(model, splits, recipe(epochs=4), folder=folder)
    monkeypatch.undo()
    done = train(small_model(), splits, recipe(epochs=4), folder=folder, resume=True)
    whole = train(small_model(), splits, recipe(epochs=4))
    assert same(weights(done.model), weights(whole.model))


def test_the_folder_of_a_run(tmp_path):
    splits = splits_of(blobs, 48, 12, 12)
    model = small_model()
    done = train(model, splits, recipe(epochs=3), folder=tmp_path / "run")
    kept = load_model(tmp_path / "run" / "best.safetensors")
    assert same(weights(kept), weights(model))
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert [float(row["val_robust"]) for row in rows] == [row["val_robust"] for row in done.history]
    for name in (
        "forwards",
        "input_gradients",
        "weight_gradients",
        "attack",
        "training",
        "data",
        "evaluation",
    ):
        assert sum(float(row[name]) for row in rows) == pytest.approx(getattr(done.cost, name))
    assert all(float(row["images_per_second"]) > 0 for row in rows)


def test_tensorboard_sees_the_same(tmp_path):
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(small_model(), splits_of(blobs, 32, 12, 12), recipe(), folder=tmp_path / "run")
    events = loading.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [e.step for e in events.Scalars("val_robust")] == [1, 2]


def test_half_precision_trains_weights_in_float32():
    splits = splits_of(blobs, 32, 12, 12)
    model = small_model()
    before = weights(model)
    done = train(model, splits, recipe(epochs=1, precision="bf16", steps=1))
    assert done.precision == "bf16"
    assert not same(before, weights(model))
    assert all(v.dtype in (torch.float32, torch.int64) for v in model.state_dict().values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": linear_model(64, 4)}, r"model: got outputs of shape \(N, 4\), accepted: \(N, 3\)"),
        ({"model": linear_model(63, 3)}, "model: got one that cannot take images of 1 x 8 x 8"),
        ({"resume": True}, "resume: got True without a folder"),
        ({"folder": True, "model": linear_model(64, 3)}, "folder: got .* for a Sequential, accepted: a"),
        ({"recipe": recipe(opt="sgd", momentum=0)}, "opt: got 'sgd' with .*momentum=0,.*Nesterov.*, acc"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_trained(given, message, tmp_path):
    model = given.pop("model", None) or small_model()
    if given.get("folder"):
        given["folder"] = tmp_path / "run"
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        train(model, splits_of(blobs, 32, 12, 12), **({"recipe": recipe()} | given))
    assert same(before, weights(model))
    assert not (tmp_path / "run").exists()


def test_a_model_with_nothing_to_train_is_refused():
    for model in (small_model().requires_grad_(False), nn.Flatten()):
        with pytest.raises(ValueError, match="without a parameter that requires a gradient"):
            train(model, splits_of(blobs, 32, 12, 12), recipe())


def test_a_set_of_tensors_is_enough():
    images, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 2
    stored = StoredImages(images, labels)
    assert stored.classes == ("0", "1")
    train(linear_model(64, 2), Splits(stored, stored, stored), recipe(epochs=1))


TENSORS = TensorDataset(torch.rand(12, 1, 8, 8), torch.arange(12) % 3)
GIVEN = splits_of(blobs, 32, 12, 12)


@pytest.mark.parametrize("trainer", [train, probe, roli])
@pytest.mark.parametrize(
    ("splits", "error", "message"),
    [
        (tuple(GIVEN), TypeError, r"splits: got a tuple, accepted: Splits\(train, val, test\)"),
        (GIVEN._replace(train=TENSORS), TypeError, "splits.train: got a TensorDataset, accepted: a set of"),
        (GIVEN._replace(val=TENSORS), TypeError, r"splits.val: got a TensorDataset.* StoredImages\(images"),
        (GIVEN._replace(val=GIVEN.val.select([])), ValueError, "splits.val: got no images, accepted: at"),
        (GIVEN._replace(train=GIVEN.train.select([])), ValueError, "splits.train: got no images"),
    ],
    ids=["tuple", "tensors to train on", "tensors for validation", "no validation", "nothing to train on"],
)
def test_splits_that_are_none_are_refused(trainer, splits, error, message):
    with pytest.raises(error, match=message):
        trainer(small_model(), splits, recipe())


@pytest.mark.parametrize("trainer", [train, probe, roli])
@pytest.mark.parametrize(
    "around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_what_the_caller_has_set_does_not_matter(trainer, around):
    alone, inside = small_model(), small_model()
    trainer(alone, GIVEN, recipe(epochs=1))
    with around():
        trainer(inside, GIVEN, recipe(epochs=1))
    assert same(weights(alone), weights(inside))
