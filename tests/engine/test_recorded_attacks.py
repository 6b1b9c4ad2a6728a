"""Attacks whose loops are recorded, with the eager stand-in for CUDA graphs."""

import weakref

import pytest
import torch
from torch import nn

from roli_fast.attacks import APGD, FGSM, MIFGSM, PGD, TPGD, AutoAttack, FeaturePGD, verify
from roli_fast.engine import GraphRunner
from roli_fast.engine.graphs import Recording


@pytest.fixture
def recorded(monkeypatch):
    """Makes attacks record: a list of the replays."""
    replays = []

    class Counted(Recording):
        def replay(self, inputs, **options):
            replays.append(len(inputs[0]))
            return super().replay(inputs, **options)

    initialise = GraphRunner.__init__

    def recording(self, function, **options):
        initialise(self, function, **options | {"recording": Counted})

    monkeypatch.setattr(GraphRunner, "__init__", recording)
    return replays


def classifier(dtype):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    )
    return net.to(dtype).train()


SIZES = {"linf": (0.05, 0.01), "l2": (0.5, 0.1), "l1": (5.0, 1.0)}


def sequence(attack_of, norm, model, optimiser_steps=True):
    """What an attack does over batches of changing images, labels, seeds, sizes and weights."""
    torch.manual_seed(1)
    eps, step_size = (torch.tensor(s, dtype=torch.float64) for s in SIZES[norm])
    attack = attack_of(norm=norm, eps=eps, step_size=step_size, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    results = []
    for call in range(8):
        samples = 3 if call == 3 else 6  # one batch of another size in between
        images = torch.rand(samples, 3, 8, 8, dtype=torch.float64)
        labels = torch.randint(0, 5, (samples,))
        eps.mul_(0.9)
        step_size.mul_(1.1)
        result = attack.run(model, images, labels, index=torch.randint(0, 100, (samples,)))
        results.append(result.adversarial)
        assert result.notes == ()
        if optimiser_steps:
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return results


@pytest.mark.parametrize("norm", SIZES)
@pytest.mark.parametrize(
    "attack_of",
    [
        lambda **o: PGD(steps=3, **o),
        lambda **o: PGD(steps=3, restarts=2, iterate="best", targeted=True, **o),
        lambda **o: PGD(steps=3, iterate="best", early_stop=True, loss="margin", **o),
        lambda **o: MIFGSM(steps=3, **o),
        lambda **o: TPGD(steps=3, iterate="best", **o),
        lambda **o: FeaturePGD(steps=3, **o),
        lambda **o: FGSM(**{k: v for k, v in o.items() if k != "step_size"}),
    ],
    ids=["pgd", "best", "early stop", "mifgsm", "tpgd", "features", "fgsm"],
)
def test_attacks_are_the_same_recorded(attack_of, norm, monkeypatch, request):
    torch.manual_seed(0)
    model = classifier(torch.float64)
    state = {name: t.clone() for name, t in model.state_dict().items()}
    expected = sequence(attack_of, norm, model)
    replays = request.getfixturevalue("recorded")
    model.load_state_dict(state)
    model.zero_grad()
    got = sequence(attack_of, norm, model)
    assert len(replays) >= 2
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize(
    "attack_of",
    [
        lambda **o: PGD(eps=0.015, step_size=0.004, iterate="best", early_stop=True, **o),
        lambda **o: APGD(eps=0.015, steps=10, early_stop=True, **o),
        lambda **o: PGD(eps=0.015, step_size=0.004, iterate="best", **o),
    ],
    ids=["pgd", "apgd", "to its end"],
)
def test_samples_that_leave_need_only_a_few_graphs(attack_of, restarts, recorded):
    """In each batch others are attacked, and leave at other steps. Results are as of these samples alone."""
    torch.manual_seed(0)
    model = classifier(torch.float64).eval()
    attack, alone = attack_of(restarts=restarts), attack_of(restarts=restarts)
    alone._oracle(model).room = lambda rows, images: rows
    sizes, fooled = set(), 0
    for number in range(12):
        images = torch.rand(24, 3, 8, 8, dtype=torch.float64)
        labels = model(images).argmax(1)
        index = torch.arange(24) + 24 * number
        rows = (torch.rand(24) < 0.6).nonzero().flatten()
        recorded.clear()
        given = {"index": index, "key": torch.tensor([5])}
        found = attack.run(model, images, labels, rows=rows, **given)
        sizes |= set(recorded)
        expected = alone.run(model, images[rows], labels[rows], index=given["index"][rows], key=given["key"])
        assert torch.equal(found.success[rows], expected.success)
        fooled += expected.success.sum()
        assert found.directed == expected.directed == len(rows)
        checked = verify(model, images[rows], found.adversarial[rows], labels[rows], "linf", 0.015)
        assert torch.equal(checked.success, found.success[rows])
        assert found.forwards < 3 * expected.forwards
    assert 20 < fooled < 150
    assert sizes <= {3, 4, 6, 8, 12, 16, 24}
    assert found.notes == ()


def test_all_sizes_of_a_batch_and_a_last_one_have_graphs(recorded):
    """Whatever is asked for has room, in a size that is itself one of these."""
    oracle = PGD()._oracle(classifier(torch.float64))
    for samples in range(1, 140):
        images = torch.empty(samples, 1)
        found = [oracle.room(rows, images) for rows in range(samples + 1)]
        assert found[0] == 0
        assert all(rows <= size <= samples for rows, size in enumerate(found))
        assert all(found[size] == size for size in found)
        assert len(set(found[1:])) < oracle.captured(oracle.eager)._limit


class Cliff(nn.Module):
    """Of class 0 where the first pixel is above 0.5; below, nothing has a gradient."""

    def forward(self, x):
        height = (x.flatten(1)[:, :1] - 0.5).clamp(min=0)
        return torch.cat([height, torch.full_like(height, 1e-9)], dim=1)


def test_rows_that_only_make_up_the_size_have_no_direction(recorded):
    """In the second run those do that are fooled: without a gradient, where they began in the first."""
    images, labels = torch.full((24, 1, 2, 2), 0.52, dtype=torch.float64), torch.zeros(24, dtype=torch.int64)
    attack, alone = (
        PGD(eps=0.1, step_size=0.0, steps=2, restarts=2, iterate="best", early_stop=True) for _ in range(2)
    )
    model = Cliff()
    alone._oracle(model).room = lambda rows, images: rows
    for number in range(4):
        given = {"index": torch.arange(24) + 24 * number, "key": torch.tensor([5])}
        found, expected = (one.run(model, images, labels, **given) for one in (attack, alone))
        assert found.gradients > expected.gradients
        assert found.directed == expected.directed


@pytest.mark.parametrize("options", [{}, {"iterate": "best", "early_stop": True}])
def test_without_graphs_only_the_rows_are_computed(options, monkeypatch):
    """A size that comes again helps no run that was given up."""

    class Fails(Recording):
        def __init__(self, *_):
            raise RuntimeError("no capture here")

    initialise = GraphRunner.__init__
    monkeypatch.setattr(
        GraphRunner, "__init__", lambda self, f, **given: initialise(self, f, **given | {"recording": Fails})
    )
    model = classifier(torch.float64).eval()
    images, attack = torch.rand(24, 3, 8, 8, dtype=torch.float64), PGD(eps=0.0, steps=5, **options)
    labels = model(images).argmax(1)
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        before, after = (
            [attack.run(model, images, labels, rows=torch.arange(5)).gradients for _ in range(2)]
            for _ in range(2)
        )
    assert before[0] == 6 * 5
    assert after == [5 * 5] * 2


def plain_loss(logits, labels):
    return nn.functional.cross_entropy(logits, labels, reduction="none")


@pytest.mark.parametrize("option", ["loss", "output"])
def test_a_callable_that_may_read_something_else_is_not_recorded(option, recorded):
    """Such as each batch's own soft labels: a recording would go on with those that it has seen."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    images, labels = torch.rand(6, 3, 8, 8), torch.randint(0, 5, (6,))
    held = {"scale": torch.ones(6, 1)}
    own = {
        "loss": lambda logits, labels: plain_loss(held["scale"] * logits, labels),
        "output": lambda logits: held["scale"] * logits,
    }[option]
    attack = PGD(steps=2, **{option: own})
    with pytest.warns(UserWarning, match=f"{option} may read other values in another call"):
        notes = [attack.run(model, images, labels).notes for _ in range(3)]
    assert not recorded
    assert any(option in note for note in notes[-1])


@pytest.mark.parametrize(
    "options",
    [
        {"loss": plain_loss},
        {"loss": nn.CrossEntropyLoss(reduction="none")},
        {"output": lambda logits: 2 * logits},
    ],
)
def test_a_callable_of_its_arguments_alone_is_recorded(options, recorded):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    images, labels = torch.rand(6, 3, 8, 8), torch.randint(0, 5, (6,))
    attack = PGD(steps=2, **options)
    assert [attack.run(model, images, labels).notes for _ in range(3)] == [()] * 3
    assert recorded


def test_other_modules_are_other_recordings(recorded):
    """The view is made anew, in other memory, and what was recorded on the old one is forgotten."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Tanh(), nn.Linear(5, 5)).double()
    images, labels = torch.rand(6, 3, 8, 8, dtype=torch.float64), torch.randint(0, 5, (6,))
    attack = PGD(random_start=False, steps=3)
    for _ in range(3):
        attack(model, images, labels)
    assert recorded
    model[2] = nn.Sigmoid()
    for _ in range(3):
        assert torch.equal(
            attack(model, images, labels), PGD(random_start=False, steps=3)(model, images, labels)
        )


def test_what_runs_as_it_is_is_not_recorded(recorded):
    net = nn.Linear(192, 5)
    for _ in range(3):
        PGD(steps=2)(lambda x: net(x.flatten(1)), torch.rand(6, 3, 8, 8), torch.randint(0, 5, (6,)))
    assert not recorded


def test_a_capture_that_fails_is_noted_in_the_result(monkeypatch, convnet, batch):
    def fails(function, inputs, pool):
        raise RuntimeError("no capture here")

    initialise = GraphRunner.__init__
    monkeypatch.setattr(
        GraphRunner, "__init__", lambda self, f, **options: initialise(self, f, recording=fails)
    )
    attack = PGD(random_start=False)
    first = attack.run(convnet, *batch)
    assert first.notes == ()
    with pytest.warns(UserWarning, match="no capture here") as caught:
        second = attack.run(convnet, *batch)
    assert len(caught) == 1
    third = attack.run(convnet, *batch)
    assert torch.equal(second.adversarial, first.adversarial)
    assert torch.equal(third.adversarial, first.adversarial)
    assert second.notes == third.notes == ("runs without a CUDA graph: RuntimeError: no capture here",)


def test_an_ensemble_keeps_no_graph_of_a_stage_that_is_over(recorded):
    """Each keeps the memory of a whole pass: those of four attacks may be more than there is."""
    model = classifier(torch.float64).eval()
    images = torch.rand(6, 3, 8, 8, dtype=torch.float64)
    attack = AutoAttack(eps=1e-6, attacks=("apgd-ce", "apgd-t", "square"), steps=8, queries=8)
    attack.run(model, images, model(images).argmax(1))
    assert len(recorded) >= 3
    oracles = [oracle for part in attack.parts.values() for oracle in part._oracles.values()]
    assert len(oracles) == 3
    assert not any(runner._recordings for oracle in oracles for runner in oracle._runners.values())


def test_an_ensemble_that_ran_out_of_memory_keeps_no_graph(recorded, monkeypatch):
    """So that there is more of it for another try with a smaller batch."""
    model = classifier(torch.float64).eval()
    images = torch.rand(6, 3, 8, 8, dtype=torch.float64)
    attack = AutoAttack(eps=1e-6, attacks=("apgd-ce",), steps=8)
    (stage,) = attack.parts.values()

    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(stage), "merit", fails)
    with pytest.raises(torch.OutOfMemoryError):
        attack.run(model, images, model(images).argmax(1))
    assert recorded
    (oracle,) = stage._oracles.values()
    assert not any(runner._recordings for runner in oracle._runners.values())


class Masked(nn.Module):
    """Keeps a mask for batches of the last size."""

    def __init__(self):
        super().__init__()
        self.head, self.mask = nn.Linear(12, 3), None

    def forward(self, x):
        if self.mask is None or len(self.mask) != len(x):
            self.mask = torch.ones(len(x), 1)
        return self.head(x.flatten(1) * self.mask)


def test_a_replay_reads_no_memory_that_is_free(monkeypatch):
    """A graph would read whatever comes to lie there."""
    model, attack, there = Masked(), PGD(steps=2, random_start=False), []

    class Reading(Recording):
        def __init__(self, function, inputs, pool):
            super().__init__(function, inputs)
            self.mask = weakref.ref(attack.view(model)._copy.module.mask)

        def replay(self, inputs, **options):
            there.append(self.mask() is not None)
            return super().replay(inputs, **options)

    initialise = GraphRunner.__init__
    monkeypatch.setattr(
        GraphRunner,
        "__init__",
        lambda self, function, **options: initialise(self, function, **options | {"recording": Reading}),
    )
    images, labels = torch.rand(8, 3, 2, 2), torch.randint(0, 3, (8,))
    for size in (8, 8, 8, 8, 5, 8, 8, 8):  # the first makes the model's own mask, and so another copy
        attack(model, images[:size], labels[:size])
    assert there == [True] * 4  # each of the two recordings once to confirm it, and once in place of a call


def test_what_was_recorded_under_other_settings_of_torch_is_not_replayed(recorded):
    torch.manual_seed(0)
    model, images, labels = classifier(torch.float32).eval(), torch.rand(6, 3, 8, 8), torch.arange(6) % 5
    attacks = [PGD(steps=2, precision=precision) for precision in ("torch", "fp32")]

    def replayed(attack):
        before = len(recorded)
        attack(model, images, labels)
        return len(recorded) - before

    for attack in attacks:
        assert [replayed(attack) > 0 for _ in range(3)] == [False, True, True]
    convolutions = torch.backends.mkldnn.conv
    before, convolutions.fp32_precision = convolutions.fp32_precision, "bf16"
    try:
        follows, does_not = ([replayed(attack) > 0 for _ in range(3)] for attack in attacks)
    finally:
        convolutions.fp32_precision = before
    assert follows == [False, True, True]
    assert does_not == [True, True, True]


def test_who_waits_to_be_judged_gets_the_verdict_that_it_would_get_at_once(request):
    """In half precision the copy may be fooled where the model is not: then its later places count, too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        model[3].bias.add_(15)  # where bfloat16 resolves 1 / 16
    images = torch.rand(512, 3, 4, 4)
    labels, index, key = model(images).argmax(1), torch.arange(512), torch.tensor([1])

    def verdicts(batch_size):
        attack = APGD(eps=0.02, steps=10, early_stop=True, precision="bf16")
        parts = zip(*(t.split(batch_size) for t in (images, labels, index)), strict=True)
        return torch.cat([attack.run(model, x, y, index=i, key=key).success for x, y, i in parts])

    at_once = verdicts(512)
    request.getfixturevalue("recorded")
    assert all(torch.equal(verdicts(size), at_once) for size in (512, 16))
