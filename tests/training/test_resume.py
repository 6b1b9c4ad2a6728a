"""A run that was killed ends with the same bits; what was saved is never lost."""

import errno
import json
import os
import signal
import sys

import pytest
import safetensors.torch
import torch

from roli_fast import files
from roli_fast.data import StoredImages
from roli_fast.models import create_model, find_classifier
from roli_fast.training import Rounds, probe, records, roli, stage, surroundings, train

from ..forks import forked
from .cases import blobs, recipe, same, small_model, splits_of, weights


def killed_after(writes, folder, settings, half=False):
    """Whether a process killed itself once so many files had been written: after the last of them, or while
    the next one is written."""
    write = files.write

    def counted(path, content):
        nonlocal writes
        if writes == 0:
            if half:
                path.with_name(path.name + ".1.partial").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        writes -= 1
        write(path, content)

    def run():
        stage._SAVE_EVERY = -1.0  # at every step
        records.write = counted
        model = small_model(drop_path_rate=0.2)
        train(model, splits_of(blobs, 48, 12, 12), settings, folder=folder, resume=True)

    (status,) = forked(run)
    assert status in (0, -signal.SIGKILL)
    return status == -signal.SIGKILL


@pytest.mark.parametrize(
    "kills",
    [[(2,), (3, True)], *(pytest.param([(n,)] * 3, marks=pytest.mark.slow) for n in (1, 2, 3, 4, 5))],
)
@pytest.mark.parametrize("amp_dtype", ["float32", "bfloat16"])
def test_killed_at_any_moment_it_ends_with_the_same_bits(kills, amp_dtype, tmp_path):
    settings = recipe(epochs=2, ema_decay=0.5, amp_dtype=amp_dtype)
    splits = splits_of(blobs, 48, 12, 12)
    whole = train(small_model(drop_path_rate=0.2), splits, settings, folder=tmp_path / "whole")
    folder = tmp_path / "killed"
    killed = [killed_after(writes, folder, settings, *how) for writes, *how in kills]
    assert killed[0]  # a later one may find nothing left to write
    model = small_model(drop_path_rate=0.2)
    done = train(model, splits, settings, folder=folder, resume=True)
    assert same(weights(whole.model), weights(model))
    last = [torch.load(tmp_path / run / "last.pt", weights_only=True) for run in ("whole", "killed")]
    assert same(last[0]["learner"]["model"], last[1]["learner"]["model"])
    assert same(last[0]["learner"]["ema"], last[1]["learner"]["ema"])
    counted = ("epoch", "lr", "train_loss", "train_accuracy", "val_clean", "val_robust")
    for a, b in zip(whole.history, done.history, strict=True):
        assert [a[name] for name in counted] == [b[name] for name in counted]
        assert [a["cost"][n] for n in ("forwards", "input_gradients")] == [
            b["cost"][n] for n in ("forwards", "input_gradients")
        ]


def test_a_finished_run_is_not_trained_again(tmp_path):
    splits = splits_of(blobs, 32, 12, 12)
    first = train(small_model(), splits, recipe(), folder=tmp_path)
    at = (tmp_path / "last.pt").stat().st_mtime_ns
    model = small_model()
    again = train(model, splits, recipe(), folder=tmp_path, resume=True)
    assert same(weights(first.model), weights(model))
    assert again.history == first.history
    assert (tmp_path / "last.pt").stat().st_mtime_ns == at


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    splits = splits_of(blobs, 32, 12, 12)
    settings = recipe(epochs=4)
    sync, left = os.fsync, [7]

    def full(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot be written \(.*No space left on device\); what was saved"):
        train(small_model(), splits, settings, folder=tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.partial"))
    done = train(small_model(), splits, settings, folder=tmp_path, resume=True)
    assert same(weights(done.model), weights(train(small_model(), splits, settings).model))


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path):
    splits = splits_of(blobs, 32, 12, 12)
    train(small_model(), splits, recipe(), folder=tmp_path)
    best = (tmp_path / "best.safetensors").read_bytes()
    whole = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"last\.pt cannot be read .*best\.safetensors has the best weights"):
        train(small_model(), splits, recipe(), folder=tmp_path, resume=True)
    assert (tmp_path / "best.safetensors").read_bytes() == best
    (tmp_path / "last.pt").write_bytes(whole)
    (tmp_path / "best.safetensors").write_bytes(best[:50])
    train(small_model(), splits, recipe(), folder=tmp_path, resume=True)  # the last one has the best, too
    restored = safetensors.torch.load_file(tmp_path / "best.safetensors")
    assert same(restored, safetensors.torch.load(best))


def test_a_folder_belongs_to_its_run(tmp_path):
    splits = splits_of(blobs, 32, 12, 12)
    train(small_model(), splits, recipe(), folder=tmp_path)
    with pytest.raises(ValueError, match="which has a run, accepted: a new one, or resume=True"):
        train(small_model(), splits, recipe(), folder=tmp_path)
    with pytest.raises(ValueError, match=r"recipe: got lr=0\.1 for the run in .*, accepted: lr=0\.01"):
        train(small_model(), splits, recipe(lr=0.1), folder=tmp_path, resume=True)


@pytest.mark.parametrize("trains", [train, probe])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"std": (0.2,)},
            r"recipe: got model.std=\[0.2\] for the run in .*, accepted: model.std=\[0.3\], as",
        ),
        ({"channels": (8, 8, 8, 16)}, r"recipe: got .*model.options=.*16\]} for the run in"),
    ],
)
def test_a_run_goes_on_with_its_own_model(trains, other, message, tmp_path):
    splits = splits_of(blobs, 32, 12, 12)
    trains(small_model(), splits, recipe(), folder=tmp_path)
    with pytest.raises(ValueError, match=message):
        trains(small_model(**other), splits, recipe(), folder=tmp_path, resume=True)


@pytest.mark.parametrize("probing", [None, Rounds(1)], ids=["without", "with"])
def test_a_run_goes_on_with_its_own_method(probing, tmp_path, monkeypatch):
    """LoRA's alpha is in no weight: with another one, the same weights are another model."""
    splits = splits_of(blobs, 16, 8, 8)

    def runs(resume=False, method="lora", **options):
        torch.manual_seed(0)
        sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3}
        model = create_model("vit_tiny_patch16_224", 3, in_chans=1, **sizes)
        settings = recipe(epochs=1, attack="none")
        roli(model, splits, settings, probing=probing, method=method, method_options=options,
             folder=tmp_path, resume=resume)  # fmt: skip
        return find_classifier(model)

    runs(alpha=16)
    probed = []
    monkeypatch.setattr(sys.modules[roli.__module__], "probe", lambda *_, **__: probed.append(True))
    with pytest.raises(
        ValueError, match=r"got model.method_options={.*256.*, accepted: model.method_options={.*16"
    ):
        runs(resume=True, alpha=256)
    with pytest.raises(ValueError, match=r"got model.method='bias', .*, accepted: model.method='lora', "):
        runs(resume=True, method="bias")
    assert not probed
    monkeypatch.undo()
    assert runs(resume=True, alpha=16).options["alpha"] == 16


def test_a_folder_that_does_not_say_how_its_model_was_built(tmp_path):
    """An earlier version's goes on; weights say whether the model may be its own."""
    splits, at = splits_of(blobs, 32, 12, 12), tmp_path / "recipe.json"
    first = train(small_model(), splits, recipe(), folder=tmp_path)
    earlier = {n: v for n, v in json.loads(at.read_text()).items() if not n.startswith("model.")}
    at.write_text(json.dumps(earlier))
    again = train(small_model(), splits, recipe(), folder=tmp_path, resume=True)
    assert same(weights(first.model), weights(again.model))
    with pytest.raises(
        ValueError, match=r"model: got one of another structure than the run in .*, accepted: the same"
    ):
        train(small_model(channels=(8, 8, 8, 16)), splits, recipe(), folder=tmp_path, resume=True)


def test_resume_begins_where_there_is_nothing(tmp_path):
    splits = splits_of(blobs, 32, 12, 12)
    done = train(small_model(), splits, recipe(), folder=tmp_path / "new", resume=True)
    assert len(done.history) == 2
    assert json.loads((tmp_path / "new" / "recipe.json").read_text())["epochs"] == 2
    saved = safetensors.torch.load_file(tmp_path / "new" / "best.safetensors")
    assert same(saved, weights(done.model))


def test_a_folder_has_one_run_at_a_time(tmp_path):
    splits = splits_of(blobs, 32, 12, 12)
    train(small_model(), splits, recipe(), folder=tmp_path)
    with files.locked(tmp_path / "lock"), pytest.raises(ValueError, match="in which another run is at work"):
        train(small_model(), splits, recipe(), folder=tmp_path, resume=True)
    train(small_model(), splits, recipe(), folder=tmp_path, resume=True)


@pytest.mark.parametrize("trains", [train, probe, roli])
@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_is_no_folder(trains, below, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    splits, model = splits_of(blobs, 32, 12, 12), small_model()
    with pytest.raises(ValueError, match=r"folder: got .*, where .*file is a file, accepted: a folder, or"):
        trains(model, splits, recipe(), folder=file / below)
    if trains is roli:
        (tmp_path / "finetune").symlink_to(file)
        with pytest.raises(ValueError, match=r"folder: got .*, where .*finetune is a file, accepted: a fold"):
            roli(model, splits, recipe(), folder=tmp_path)
        assert not (tmp_path / "probe").exists()
    assert file.read_text() == "mine"
    assert find_classifier(model).method == "full"


@pytest.mark.parametrize("trains", [train, probe, roli])
def test_a_folder_whose_name_is_no_utf8_is_refused(trains, tmp_path):
    """Neither TensorBoard nor safetensors could write there."""
    with pytest.raises(ValueError, match=r"folder: got '.*run.udcff', which is no UTF-8, accepted: a path"):
        trains(small_model(), splits_of(blobs, 32, 12, 12), recipe(), folder=tmp_path / "run\udcff")
    assert not list(tmp_path.iterdir())


def test_a_disk_without_locks_takes_runs(tmp_path, monkeypatch):
    """As some network file systems are."""

    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    train(small_model(), splits_of(blobs, 32, 12, 12), recipe(), folder=tmp_path)


@pytest.mark.parametrize("probing", [None, Rounds(1), "sgd"])
def test_nothing_goes_on_without_a_folder(probing, monkeypatch):
    """Which is said before hours of probing."""
    monkeypatch.setattr("roli_fast.training.attack.TrainingAttack.__call__", None)
    splits = splits_of(blobs, 32, 12, 12)
    model, methods = small_model(), ("full", "linear")
    if probing == "sgd":
        probing, methods = recipe(opt="momentum"), ("full",)
    for method in methods:
        with pytest.raises(
            ValueError, match="resume: got True without a folder, accepted: the folder of the"
        ):
            roli(model, splits, recipe(), probing=probing, method=method, resume=True)
    assert find_classifier(model).method == "full"


def test_two_stages_interrupted_between_them_end_with_the_same_bits(tmp_path, monkeypatch):
    splits, probing, finetuning = splits_of(blobs, 32, 12, 12), recipe(epochs=1, opt="momentum"), recipe()
    whole, resumed = small_model(), small_model()
    first = roli(whole, splits, finetuning, probing=probing, folder=tmp_path / "whole")

    def stopped(*args, title, **kwargs):
        if title == "finetune":
            raise KeyboardInterrupt
        return train(*args, title=title, **kwargs)

    monkeypatch.setattr(sys.modules[roli.__module__], "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        roli(small_model(), splits, finetuning, probing=probing, folder=tmp_path / "cut")
    monkeypatch.undo()
    again = roli(resumed, splits, finetuning, probing=probing, folder=tmp_path / "cut", resume=True)
    assert same(weights(whole), weights(resumed))
    assert torch.equal(first.test.right, again.test.right)
    assert (tmp_path / "cut" / "result.json").exists()


def test_what_fails_before_anything_is_saved_leaves_the_folder_free(tmp_path):
    splits = splits_of(blobs, 32, 12, 12)

    class Broken(StoredImages):
        def batch(self, rows, draws=None):
            raise OSError("image 3 cannot be decoded")

    broken = splits._replace(train=Broken(splits.train.images, splits.train.labels))
    with pytest.raises(OSError, match="image 3"):
        train(small_model(), broken, recipe(), folder=tmp_path)
    with pytest.raises(ValueError, match="opt: got 'fusedsgd', which cannot be made here"):
        train(small_model(), splits, recipe(opt="fusedsgd"), folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    train(small_model(), splits, recipe(), folder=tmp_path)
    with pytest.raises(ValueError, match="opt: got 'fusedsgd'"):  # a run's own stays
        train(small_model(), splits, recipe(opt="fusedsgd"), folder=tmp_path)
    assert (tmp_path / "recipe.json").exists()


def test_too_few_images_to_normalise_over(tmp_path):
    with pytest.raises(ValueError, match="batch_size: got 16, with 1 training images, accepted: 2 or more"):
        train(small_model(), splits_of(blobs, 1, 12, 12), recipe(), folder=tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"opt": "fusedsgd"}, "opt: got 'fusedsgd', which cannot be made here"),
        ({"batch_size": 1}, "batch_size: got 1, accepted: 2 or more images a process"),
    ],
)
def test_the_second_stage_is_refused_before_the_first(wrong, message, tmp_path):
    splits = splits_of(blobs, 32, 12, 12)
    with pytest.raises(ValueError, match=message):
        roli(small_model(), splits, recipe(**wrong), probing=Rounds(2), folder=tmp_path)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("began", [None, Rounds(1)], ids=["without", "with"])
def test_a_run_keeps_to_its_stages(began, tmp_path):
    """What was finetuned from one head is not what would come of another."""
    splits = splits_of(blobs, 48, 12, 12)
    roli(small_model(), splits, recipe(epochs=1), probing=began, folder=tmp_path)
    other = Rounds(1) if began is None else None
    with pytest.raises(ValueError, match=r"probing: got (a|no) probe for the run in .*: as it began"):
        roli(small_model(), splits, recipe(epochs=1), probing=other, folder=tmp_path, resume=True)
    assert (tmp_path / "probe").exists() == (began is not None)


def test_another_runs_second_stage_is_seen_before_the_first(tmp_path):
    splits = splits_of(blobs, 32, 12, 12)
    train(small_model(), splits, recipe(), folder=tmp_path / "finetune")
    with pytest.raises(ValueError, match="finetune, which has a run"):
        roli(small_model(), splits, recipe(), probing=Rounds(2), folder=tmp_path)
    with pytest.raises(ValueError, match=r"recipe: got lr=0\.1 for the run in .*finetune"):
        roli(small_model(), splits, recipe(lr=0.1), probing=Rounds(2), folder=tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["finetune"]


@pytest.mark.parametrize("trains", [train, probe])
def test_a_run_goes_on_with_its_own_data(trains, tmp_path):
    splits = splits_of(blobs, 32, 12, 12)
    trains(small_model(), splits, recipe(), folder=tmp_path)
    fewer = splits._replace(train=splits.train.select(range(24)))
    others = splits._replace(val=StoredImages(splits.val.images, splits.val.labels.flip(0), ["0", "1", "2"]))
    for data in (fewer, others):
        with pytest.raises(
            ValueError, match=r"recipe: got data=.* for the run in .*, accepted: data=.*32 im"
        ):
            trains(small_model(), data, recipe(), folder=tmp_path, resume=True)
    trains(small_model(), splits._replace(test=fewer.train), recipe(), folder=tmp_path, resume=True)


@pytest.mark.parametrize("trains", [train, probe])
def test_a_run_keeps_the_precision_that_it_measured(trains, tmp_path, monkeypatch):
    """Also if it was interrupted before its first checkpoint."""
    splits, settings = splits_of(blobs, 32, 12, 12), recipe(precision="auto")

    def interrupted(*_):
        raise KeyboardInterrupt

    measured = iter(["bf16", "fp32"])
    monkeypatch.setattr(surroundings, "fastest_precision", lambda *_: next(measured))
    with monkeypatch.context() as context:
        context.setattr(records.Records, "write_last", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trains(small_model(), splits, settings, folder=tmp_path)
    assert not (tmp_path / "last.pt").exists()
    assert trains(small_model(), splits, settings, folder=tmp_path, resume=True).precision == "bf16"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("recipe.json", b"[]", "recipe.json, which holds no recipe, accepted: another folder"),
        ("recipe.json", b"{", r"recipe.json cannot be read \(.*\), accepted: another folder"),
        (
            "last.pt",
            {},
            r"last.pt cannot be read \(it has no best, best_weights, .*\), accepted: a whole one",
        ),
        ("last.pt", [1], r"last.pt cannot be read \(it has no best, .*\), accepted: a whole one"),
    ],
)
def test_files_of_something_else_are_named(file, content, message, tmp_path):
    splits = splits_of(blobs, 32, 12, 12)
    train(small_model(), splits, recipe(), folder=tmp_path)
    if isinstance(content, bytes):
        (tmp_path / file).write_bytes(content)
    else:
        torch.save(content, tmp_path / file)
    with pytest.raises(ValueError, match=message):
        train(small_model(), splits, recipe(), folder=tmp_path, resume=True)
