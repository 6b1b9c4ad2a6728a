"""Evaluations that stop and go on, that several processes share, and what they leave behind."""

import contextlib
import functools
import gc
import json

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from roli_fast.attacks import APGD, PGD, AutoAttack, verify
from roli_fast.attacks.reliability import square_finds_more
from roli_fast.compat import torchattacks
from roli_fast.data import Loader, StoredImages
from roli_fast.evaluation import evaluate, saved

from ..selection import slow

QUICK = {"eps": 0.004, "steps": 3, "queries": 10}


def make_problem():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 5)).double().eval()
    with torch.no_grad():
        net[0].weight.mul_(4)
    images = torch.rand(23, 3, 8, 8, dtype=torch.float64)
    labels = net(images).argmax(1)
    labels[::6] = (labels[::6] + 1) % 5
    return net, images, labels


def batches(images, labels, size=5):
    return list(zip(images.split(size), labels.split(size), strict=True))


def attack(**options):
    return AutoAttack(**QUICK, generator=torch.Generator().manual_seed(1), **options)


@pytest.fixture
def problem():
    return make_problem()


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (lambda net: torchattacks.PGD(net), "a PGD of roli_fast.compat.torchattacks"),
        (lambda net: PGD, "the class PGD of"),
        (lambda net: [PGD()], "a list of builtins"),
        (lambda net: "autoattack", "a str of builtins"),
    ],
)
def test_what_is_no_attack_is_named(problem, given, got):
    net, images, labels = problem
    with pytest.raises(TypeError, match=f"attack: got {got}.*, accepted: an attack of roli_fast.attacks"):
        evaluate(net, batches(images, labels), given(net))


def test_who_broke_what(problem):
    net, images, labels = problem
    found = evaluate(net, batches(images, labels), attack())
    assert found.stages == ("clean", "apgd-ce", "apgd-t", "fab-t", "square")
    assert torch.equal(found.clean.right, net(images).argmax(1) == labels)
    assert torch.equal(found.after("square").right, found.right)
    values = [found.after(stage).value for stage in found.stages]
    assert values == sorted(values, reverse=True)
    assert 0 < found.value < found.clean.value
    assert found.label == attack().label
    assert found.gradients > 0
    with pytest.raises(ValueError, match="stage: got 'pgd', accepted: clean, apgd-ce"):
        found.after("pgd")
    plain = evaluate(net, batches(images, labels), PGD(eps=0.004, step_size=0.001))
    assert plain.stages == ("clean", "PGD")
    assert torch.equal(plain.after("PGD").right, plain.right)


def test_batches_say_nothing(problem):
    """The key is drawn once for all of them."""
    net, images, labels = problem
    found = [evaluate(net, batches(images, labels, size), attack()).broken_by for size in (5, 23, 1)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("steps", [0, 3])
def test_passes_are_those_of_all_batches(problem, steps):
    """Of unequal ones, but for the few images of each that confirm the attack's view of the model."""
    net, images, labels = problem
    forwards, gradients = [], []

    def counted(x):
        forwards.append(len(x))
        gradients.append(len(x) if x.requires_grad else 0)
        return net(x)

    sizes = [12, 8, 3]
    unequal = list(zip(images.split(sizes), labels.split(sizes), strict=True))
    found = evaluate(counted, unequal, PGD(eps=0.004, steps=steps) if steps else None)
    confirmed = sum(min(4, int(part.sum())) for part in found.clean.right.split(sizes)) if steps else 0
    assert found.forwards == sum(forwards) - confirmed
    assert found.gradients == sum(gradients) == steps * int(found.clean.right.sum())


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("after", [0, 3, *slow(1)])
def test_an_interrupted_run_goes_on_and_ends_the_same(problem, after, tmp_path):
    net, images, labels = problem
    whole = evaluate(net, batches(images, labels), attack(), folder=tmp_path / "whole")

    def stopping():
        for number, batch in enumerate(batches(images, labels)):
            if number == after:
                raise StoppedError
            yield batch

    with pytest.raises(StoppedError):
        evaluate(net, stopping(), attack(), folder=tmp_path / "parts")
    done = sorted((tmp_path / "parts").glob("batch-*"))
    assert len(done) == after
    times = [path.stat().st_mtime_ns for path in done]
    # Another generator: the key that the run began with counts.
    resumed = evaluate(net, batches(images, labels), AutoAttack(**QUICK), folder=tmp_path / "parts")
    assert torch.equal(resumed.broken_by, whole.broken_by)
    assert [path.stat().st_mtime_ns for path in done] == times
    for ours, theirs in zip(saved(tmp_path / "parts"), saved(tmp_path / "whole"), strict=True):
        assert torch.equal(ours.adversarial, theirs.adversarial)


class Hooked(nn.Module):
    """Whose hook, a method of its own, counts."""

    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, 0
        net.register_forward_hook(self.count)

    def count(self, module, inputs, output):
        self.calls += 1

    def forward(self, x):
        return self.net(x)


def with_queries(net):
    queries = []

    def model(x):
        queries.append(len(x))
        return net(x)

    return model


@pytest.mark.parametrize("kind", [Hooked, with_queries])
def test_a_model_that_counts_its_calls_goes_on(problem, kind, tmp_path):
    net, images, labels = problem
    model = kind(net)
    parts = batches(images, labels)[:2]

    def stopping():
        yield parts[0]
        raise StoppedError

    with pytest.raises(StoppedError):
        evaluate(model, stopping(), PGD(steps=1), folder=tmp_path)
    assert evaluate(model, parts, PGD(steps=1), folder=tmp_path).right.shape == (10,)


def test_finished_batches_are_not_attacked_again(problem, tmp_path):
    net, images, labels = problem
    asked = []
    net.register_forward_hook(lambda net, inputs, output: asked.append(len(output)))
    first = evaluate(net, batches(images, labels), attack(), folder=tmp_path)
    asked.clear()
    again = evaluate(net, batches(images, labels), attack(), folder=tmp_path)
    assert asked == [5, 5]  # whether it is the same model, about one batch, as it is and with noise
    assert torch.equal(first.broken_by, again.broken_by)
    assert (first.forwards, first.notes, first.seconds) == (again.forwards, again.notes, again.seconds)


def test_what_is_saved_can_be_verified(problem, tmp_path):
    net, images, labels = problem
    found = evaluate(net, batches(images, labels), attack(), folder=tmp_path)
    seen = 0
    for batch in saved(tmp_path):
        checked = verify(
            net, images[batch.index], batch.adversarial, labels[batch.index], "linf", QUICK["eps"]
        )
        assert torch.equal(batch.labels, labels[batch.index])
        assert torch.equal(~checked.success, found.right[batch.index])
        seen += len(batch.index)
    assert seen == len(images)
    fewer = evaluate(net, batches(images, labels)[:2], attack(), folder=tmp_path)
    assert sum(len(batch.index) for batch in saved(tmp_path)) == len(fewer.right) < seen
    evaluate(net, batches(images, labels), attack(), folder=tmp_path)
    assert sum(len(batch.index) for batch in saved(tmp_path)) == seen
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert len(log) == 5
    assert "of 5 right" in log[0]


@pytest.mark.parametrize("other", ["model", "data", "labels", "attack"])
def test_a_folder_is_bound(problem, other, tmp_path):
    net, images, labels = problem
    evaluate(net, batches(images, labels), attack(), folder=tmp_path)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changed = attack()
    if other == "model":
        with torch.no_grad():
            net[0].bias[0] += 1e-9
    elif other == "data":
        images = images.roll(1, 0)
    elif other == "labels":
        labels = labels.roll(1)
    else:
        changed = attack(version="plus")
    what = "other images or labels" if other in ("data", "labels") else f"another {other}"
    with pytest.raises(ValueError, match=f"folder: .*{what}.*accepted: .*another folder"):
        evaluate(net, batches(images, labels), changed, folder=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


class Ordered(nn.Module):
    """Holds what decides over its output where no digest looks for it."""

    def __init__(self, net, order):
        super().__init__()
        self.net, self.order = net, order

    def forward(self, x):
        return self.net(x)[:, self.order]


def by_hook(net, order):
    model = nn.Sequential(net)
    model.register_forward_hook(lambda module, inputs, output: output[:, order])
    return model


def by_forward(net, order):
    model = nn.Sequential(net)
    model.forward = lambda x: net(x)[:, order]
    return model


def by_closure(net, order):
    return lambda x: net(x)[:, order]


@pytest.mark.parametrize("kind", [Ordered, by_hook, by_forward, by_closure])
def test_a_folder_is_bound_to_what_the_model_answers(problem, kind, tmp_path):
    net, images, labels = problem
    found = evaluate(kind(net, [0, 1, 2, 3, 4]), batches(images, labels), attack(), folder=tmp_path)
    again = evaluate(kind(net, [0, 1, 2, 3, 4]), batches(images, labels), attack(), folder=tmp_path)
    assert torch.equal(again.broken_by, found.broken_by)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="the model answered otherwise to the same images, accepted: one of"):
        evaluate(kind(net, [4, 1, 2, 3, 0]), batches(images, labels), attack(), folder=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


class Blurred(nn.Module):
    """A defence with a strength, which makes no difference to flat images."""

    def __init__(self):
        super().__init__()
        self.net, self.strength = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), 0

    def forward(self, x):
        for _ in range(self.strength):
            x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), "replicate"), 3, 1)
        return self.net(x)


def test_a_folder_is_bound_to_a_defence_s_strength(tmp_path):
    torch.manual_seed(0)
    model = Blurred().eval()
    images = torch.rand(10, 3, 1, 1).expand(-1, -1, 8, 8).contiguous()
    labels = model(images).argmax(1)
    found = []
    for strength in (5, 0):
        model.strength = strength
        found.append(evaluate(model, batches(images, labels), PGD(eps=0.05), folder=tmp_path / str(strength)))
    assert found[0].value > found[1].value
    with pytest.raises(ValueError, match="answered otherwise"):
        evaluate(model, batches(images, labels), PGD(eps=0.05), folder=tmp_path / "5")
    again = evaluate(model, batches(images, labels), PGD(eps=0.05), folder=tmp_path / "0")
    assert torch.equal(again.broken_by, found[1].broken_by)


class Scaled(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.scale = net, [1.0]

    def forward(self, x):
        return self.net(x) * self.scale[0]


@pytest.mark.parametrize("there", [torch.__version__, "1.0"])
def test_how_near_answers_must_be_is_a_matter_of_where_they_were_made(problem, there, tmp_path, monkeypatch):
    net, images, labels = problem
    model = Scaled(net)
    with monkeypatch.context() as then:
        then.setattr(torch, "__version__", there)
        evaluate(model, batches(images, labels), attack(), folder=tmp_path)
    model.scale[0] = 1.001
    goes_on = there != torch.__version__
    with contextlib.nullcontext() if goes_on else pytest.raises(ValueError, match="answered otherwise"):
        evaluate(model, batches(images, labels), attack(), folder=tmp_path)


def test_a_folder_is_bound_to_the_seed(problem, tmp_path):
    """Of a generator; without one, the evaluation goes on with the key that it began with."""
    net, images, labels = problem
    found = evaluate(net, batches(images, labels), attack(), folder=tmp_path)
    again = evaluate(net, batches(images, labels), AutoAttack(**QUICK), folder=tmp_path)
    assert torch.equal(again.broken_by, found.broken_by)
    other = AutoAttack(**QUICK, generator=torch.Generator().manual_seed(2))
    with pytest.raises(ValueError, match=r"an evaluation of another seed \(1\), accepted: the same \(2\)"):
        evaluate(net, batches(images, labels), other, folder=tmp_path)
    evaluate(net, batches(images, labels), folder=tmp_path / "clean")  # without draws, no seed matters


def test_a_random_model_goes_on(tmp_path):
    """Nothing can be told from its answers."""
    torch.manual_seed(0)
    images, labels = torch.rand(12, 3), torch.zeros(12, dtype=torch.int64)

    def model(x):
        return x + torch.randn_like(x)

    found = evaluate(model, batches(images, labels), folder=tmp_path)
    assert torch.equal(evaluate(model, batches(images, labels), folder=tmp_path).broken_by, found.broken_by)


def test_settings_are_told_apart():
    """To the last digit of a tensor; the same in every process."""

    def label(**options):
        return APGD(**options).label

    assert label(eps=torch.tensor(8 / 255)) != label(eps=torch.tensor(0.03136))
    assert label(loss=lambda z, y: z[:, 0]) != label(loss=lambda z, y: z[:, 1])
    loss = functools.partial(F.cross_entropy, reduction="none", label_smoothing=0.1)
    assert "label_smoothing" in label(loss=loss)
    assert "0x" not in label(loss=loss)


def test_labels_that_are_a_column(problem, tmp_path):
    net, images, labels = problem
    columns = torch.stack([labels, labels], dim=1)
    found = evaluate(net, [(images, columns[:, 0])], attack(), folder=tmp_path)
    assert torch.equal(found.broken_by, evaluate(net, [(images, labels)], attack()).broken_by)


def test_images_are_not_kept_in_memory(problem, tmp_path):
    """Neither of an attack nor of what is resumed."""
    net, images, labels = problem

    def alive():
        gc.collect()
        return sum(t.numel() for t in gc.get_objects() if type(t) is torch.Tensor and t.dim() == 4)

    sizes = []

    def watched():
        for batch in batches(images, labels):
            sizes.append(alive())
            yield batch

    for _ in range(2):
        evaluate(net, watched(), PGD(eps=0.004, steps=1), folder=tmp_path)
        assert sizes[-1] <= sizes[1] + images[0].numel()
        del sizes[:]


def test_a_folder_whose_name_is_no_utf8_is_refused(problem, tmp_path):
    net, images, labels = problem
    with pytest.raises(ValueError, match=r"folder: got '.*run.udcff', which is no UTF-8, accepted: a path"):
        evaluate(net, batches(images, labels), attack(), folder=tmp_path / "run\udcff")
    assert not list(tmp_path.iterdir())


def test_what_an_interrupted_write_left_is_nothing(problem, tmp_path):
    net, images, labels = problem
    (tmp_path / "evaluation.json.123.partial").write_text("{")
    evaluate(net, batches(images, labels), attack(), folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file, accepted: a folder"):
        evaluate(net, batches(images, labels), attack(), folder=tmp_path / "file")


def test_a_generator_elsewhere_serves_where_the_key_is_drawn(problem):
    """It draws the key, once; nothing else is asked of it."""
    net, images, labels = problem
    seeded = [AutoAttack(**QUICK, generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    first, second = (evaluate(net, batches(images, labels), a).broken_by for a in seeded)
    assert torch.equal(first, second)


def test_a_folder_of_something_else(problem, tmp_path):
    net, images, labels = problem
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds something else, accepted: a new or empty one"):
        evaluate(net, batches(images, labels), attack(), folder=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ValueError, match="has no evaluation"):
        saved(tmp_path)


@pytest.mark.parametrize("name", ["batch-00000001.safetensors", "evaluation.json"])
def test_what_cannot_be_read_is_named(problem, name, tmp_path):
    net, images, labels = problem
    evaluate(net, batches(images, labels), attack(), folder=tmp_path)
    (tmp_path / name).write_bytes(b"\x00 half of it")
    with pytest.raises(ValueError, match=f"folder: .*{name} cannot be read"):
        evaluate(net, batches(images, labels), attack(), folder=tmp_path)


def test_a_disk_that_is_full_loses_nothing(problem, tmp_path, monkeypatch):
    net, images, labels = problem
    import os

    from roli_fast import files

    def full(descriptor):
        if len(list(tmp_path.glob("batch-*.safetensors"))) == 2:
            raise OSError(28, "No space left on device")
        return fsync(descriptor)

    fsync = os.fsync
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        evaluate(net, batches(images, labels), attack(), folder=tmp_path)
    monkeypatch.undo()
    assert len(list(tmp_path.glob("batch-*.safetensors"))) == 2
    assert not list(tmp_path.glob("*.partial"))
    resumed = evaluate(net, batches(images, labels), AutoAttack(**QUICK), folder=tmp_path)
    assert torch.equal(resumed.broken_by, evaluate(net, batches(images, labels), attack()).broken_by)


def test_the_bar_says_how_far_it_is(problem, capsys):
    net, images, labels = problem
    evaluate(net, batches(images, labels), PGD(steps=1), progress=True)
    shown = capsys.readouterr()
    assert "of 23 right" in shown.err
    assert shown.out == ""


def test_clean_accuracy_draws_nothing(problem):
    net, images, labels = problem
    state = torch.get_rng_state()
    evaluate(net, batches(images, labels))
    assert torch.equal(torch.get_rng_state(), state)


def test_random_search_that_finds_more():
    stages = ("clean", "apgd-ce", "square")
    broken = torch.tensor([-1] * 400 + [1] * 97 + [2] * 3)
    assert "square broke 0.6% of the images" in square_finds_more(stages, broken)[0]
    assert square_finds_more(stages, broken[:-3]) == ()
    assert square_finds_more(("clean", "square"), torch.tensor([1])) == ()


def _share(rank, folder, results):
    import torch.distributed as dist

    torch.set_num_threads(1)  # a fork has none of the threads that others would work in
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    net, images, labels = make_problem()
    found = evaluate(net, batches(images, labels), attack(), folder=f"{folder}/run")
    results.put((rank, found.broken_by.tolist(), found.forwards))
    try:
        evaluate(net, batches(images, labels), attack(version="plus"), folder=f"{folder}/run")
    except ValueError as error:
        results.put((rank, str(error), 0))
    try:
        evaluate(net, Loader(StoredImages(images, labels), 5), attack())
    except ValueError as error:
        results.put((rank, str(error), 0))
    dist.destroy_process_group()


def test_processes_share_the_batches(problem, tmp_path):
    """The same result as of one, in both; a mistake is an error in both, and nobody waits."""
    net, images, labels = problem
    expected = evaluate(net, batches(images, labels), attack())
    results = mp.get_context("fork").SimpleQueue()
    workers = mp.start_processes(_share, (str(tmp_path), results), nprocs=2, join=False, start_method="fork")
    found = [results.get() for _ in range(6)]
    workers.join()
    values = [f for f in found if isinstance(f[1], list)]
    assert {rank for rank, *_ in values} == {0, 1}
    assert all(value == expected.broken_by.tolist() for _, value, _ in values)
    assert all(forwards == expected.forwards for *_, forwards in values)
    assert sum("another attack" in f[1] for f in found if isinstance(f[1], str)) == 2
    shares = "a Loader of this process' share of 2, accepted: one with rank=0 and world_size=1"
    assert sum(shares in f[1] for f in found if isinstance(f[1], str)) == 2
    assert len(list((tmp_path / "run").glob("batch-*"))) == 5
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["attack"] == attack().label


def test_a_folder_of_an_older_version_is_evaluated_anew(problem, tmp_path):
    """Its batches were judged by other rules."""
    net, images, labels = problem
    found = evaluate(net, batches(images, labels), attack(), folder=tmp_path)
    for path in tmp_path.glob("batch-*"):
        with safe_open(path, "pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        facts = json.loads(metadata["facts"]) | {"undirected": 0}
        del facts["directed"]
        save_file(tensors, path, metadata | {"facts": json.dumps(facts)})
    again = evaluate(net, batches(images, labels), attack(), folder=tmp_path)
    assert torch.equal(again.broken_by, found.broken_by)
    assert again.forwards == found.forwards


def test_a_random_model_is_judged_by_the_mean_of_its_calls():
    """One call is right, or fooled, in two of three cases; the mean of twenty in 99 of 100."""
    torch.manual_seed(0)

    def model(x):
        margin = 0.5 - 10 * (x[:, 0] - 0.5)
        return torch.stack([margin + torch.randn(len(x)), 0 * margin], dim=1)

    images, labels = torch.full((60, 3), 0.5), torch.zeros(60, dtype=torch.int64)
    found = evaluate(model, batches(images, labels, 20), AutoAttack(eps=0.1, version="rand", steps=5))
    assert found.clean.value > 0.85
    assert found.value < 0.1  # the margin is -0.5 there


def test_a_model_without_gradients_is_refused_though_chance_breaks_some():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images = torch.rand(50, 3, 2, 2)

    def model(x):
        return net((x * 5).round() / 5)

    labels = model(images).argmax(1)
    found = evaluate(model, batches(images, labels), PGD(eps=0.2), strict=False)
    assert 0 < found.value < 1
    note = f"{int(found.right.sum())} of 50 images withstood without a gradient to follow"
    assert note in found.notes
    with pytest.raises(
        ValueError, match="gradient with respect to the input is zero or NaN for all 50 images"
    ):
        evaluate(model, batches(images, labels), PGD(eps=0.2))


def test_what_has_no_gradient_is_said_once_for_all_batches():
    """Of each attack of an ensemble, not of each batch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    images = torch.rand(12, 3, 2, 2)

    def model(x):  # flat for every other image
        flat = (x[:, :1, :1, :1] > 0.5).flatten(1)
        return torch.where(flat, net(x).detach() + 0 * x.sum(), net(x))

    labels = model(images).argmax(1)
    found = evaluate(model, batches(images, labels, 2), attack(attacks=("apgd-ce", "apgd-t")))
    said = [note for note in found.notes if "without a gradient" in note]
    assert [note.partition(":")[0] for note in said] == ["apgd-ce", "apgd-t"]
    assert all("of 12 images" in note or "apgd-t" in note for note in said)


def test_an_attack_brings_its_own_output(problem):
    net, images, labels = problem
    with pytest.raises(
        ValueError, match=r"output: got .*logits.*, accepted: None: the attack's own, PGD\(output"
    ):
        evaluate(net, batches(images, labels), PGD(), output="logits")
    loader = Loader(StoredImages(images, labels), 5, rank=0, world_size=4)  # as an array of jobs shares them
    assert len(evaluate(net, loader).right) == 6


def test_a_clean_evaluation_is_bound_to_its_output(tmp_path):
    def model(x):
        return {"a": x.flatten(1)[:, :3], "b": -x.flatten(1)[:, :3]}

    images = torch.rand(20, 3, 1, 1)
    labels = model(images)["a"].argmax(1)
    assert evaluate(model, batches(images, labels), output="a", folder=tmp_path).value == 1
    assert evaluate(model, batches(images, labels), output="a", folder=tmp_path).value == 1
    with pytest.raises(ValueError, match="has an evaluation of another attack"):
        evaluate(model, batches(images, labels), output="b", folder=tmp_path)
