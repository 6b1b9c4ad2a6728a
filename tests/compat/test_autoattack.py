"""The official AutoAttack's way to be called, on images that fall early."""

import json

import numpy
import pytest
import torch
from torch.overrides import TorchFunctionMode

from roli_fast.attacks import AutoAttack as Core
from roli_fast.attacks import verify
from roli_fast.compat.autoattack import AutoAttack


@pytest.fixture
def s(digits_subject):
    return digits_subject.first(16)


@pytest.fixture
def quick(s):
    """Five steps instead of a hundred: the official number is not the face's to set."""
    import roli_fast.compat.autoattack as module

    class Quick(Core):
        def __init__(self, *settings, **options):
            super().__init__(*settings, steps=5, queries=20, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.ours, "AutoAttack", Quick)
        yield lambda **options: AutoAttack(s.model, **{"eps": 0.12, "seed": 0, "device": "cpu", **options})


def test_a_standard_evaluation(s, quick, capsys, tmp_path):
    adversary = quick(log_path=tmp_path / "log.txt")
    found, classes = adversary.run_standard_evaluation(s.images, s.labels, bs=8, return_labels=True)
    checked = verify(s.model, s.images, found, s.labels, "linf", 0.12)
    assert (checked.in_ball & checked.in_box).all()
    assert torch.equal(checked.prediction, classes)
    withstood = (classes == s.labels).double().mean().item()
    assert 0 < withstood < 1
    printed = capsys.readouterr().out
    for name in ("APGD-CE", "APGD-T", "FAB-T", "SQUARE"):
        assert f"robust accuracy after {name}: " in printed
    assert f"robust accuracy: {withstood:.2%}" in printed
    assert (tmp_path / "log.txt").read_text() == printed
    distance = (found - s.images).abs().max().item()
    assert (
        f"max Linf perturbation: {distance:.5f}, nan in tensor: 0, max: {found.max():.5f}, "
        f"min: {found.min():.5f}"
    ) in printed


def test_each_batch_is_logged_when_it_is_done(s, quick, tmp_path):
    """With what was done before an interruption."""
    log, seen, done = tmp_path / "log.txt", [], []
    adversary = quick(log_path=log, verbose=False)
    handle = s.model.register_forward_pre_hook(
        lambda module, inputs: seen.append(log.read_text() if log.exists() else "")
    )
    try:
        _, classes = adversary.run_standard_evaluation(s.images, s.labels, bs=6, return_labels=True)
    finally:
        handle.remove()
    withstood = (classes == s.labels).double()
    for images in (6, 12, 16):
        done.append(f"{images}/16 images, robust accuracy so far {withstood[:images].mean():.2%}\n")
    assert [line for line in done if any(line in text for text in seen)] == done[:2]
    assert all(line in log.read_text() for line in done)


def test_batches_and_seeds(s, quick):
    evaluate = quick(verbose=False).run_standard_evaluation
    whole = evaluate(s.images, s.labels, bs=16)
    differs = (evaluate(s.images, s.labels, bs=7) - whole).abs().flatten(1).amax(1) > 1e-5
    assert differs.sum() <= 2  # other batches round otherwise
    assert torch.equal(evaluate(s.images, s.labels, bs=16), whole)
    other = quick(verbose=False, seed=1).run_standard_evaluation(s.images, s.labels, bs=16)
    assert not torch.equal(other, whole)


class Rows(TorchFunctionMode):
    """How many images at once go to a device, or through a model that is asked inside."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, arguments=(), options=None):
        moved_or_asked = function in (torch.Tensor.to, torch.nn.functional.conv2d)
        if moved_or_asked and arguments[0].shape[1:] == (1, 8, 8):
            self.seen.append(len(arguments[0]))
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("call", ["run_standard_evaluation", "clean_accuracy"])
def test_no_more_images_at_once_than_asked_for(s, quick, call):
    """Neither on the device nor in the model."""
    with Rows() as rows:
        getattr(quick(verbose=False), call)(s.images, s.labels, bs=4)
    assert max(rows.seen) == 4


def test_a_batch_size_may_be_numpys(s, quick):
    adversary, bs = quick(verbose=False), numpy.int64(8)
    found = adversary.run_standard_evaluation(s.images, s.labels, bs=bs)
    assert torch.equal(found, adversary.run_standard_evaluation(s.images, s.labels, bs=8))
    assert adversary.clean_accuracy(s.images, s.labels, bs=bs) == adversary.clean_accuracy(s.images, s.labels)


def test_each_attack_alone(s, quick, capsys):
    adversary = quick(version="custom", attacks_to_run=["apgd-ce", "square"])
    found = adversary.run_standard_evaluation_individual(s.images, s.labels, return_labels=True)
    assert list(found) == ["apgd-ce", "square"]
    fooled = {name: (classes != s.labels).sum() for name, (_, classes) in found.items()}
    assert fooled["square"] < fooled["apgd-ce"]
    images = adversary.run_standard_evaluation(s.images, s.labels)
    assert images.shape == s.images.shape


def test_a_custom_version_is_of_five_restarts(s, monkeypatch):
    import roli_fast.compat.autoattack as module

    made = []

    def record(*settings, **options):
        made.append(Core(*settings, **options, steps=1, queries=1))
        return made[-1]

    monkeypatch.setattr(module.ours, "AutoAttack", record)
    kind = {"version": "custom", "attacks_to_run": ["apgd-dlr"], "device": "cpu", "verbose": False}
    AutoAttack(s.model, norm="L2", eps=0.5, **kind).run_standard_evaluation(s.images, s.labels)
    (core,) = made
    assert (core.norm, core.eps, core.attacks) == ("l2", 0.5, ("apgd-dlr",))
    assert core.parts["apgd-dlr"].restarts == 5


def test_an_interrupted_evaluation_goes_on(s, quick, tmp_path):
    path = tmp_path / "state.json"
    whole = quick(verbose=False).run_standard_evaluation(s.images, s.labels, bs=6, state_path=path)
    state = json.loads(path.read_text())
    assert len(state["broken_by"]) == 16
    path.write_text(json.dumps({**state, "broken_by": state["broken_by"][:12]}))
    rest = quick(verbose=False, seed=9).run_standard_evaluation(s.images, s.labels, bs=6, state_path=path)
    assert torch.equal(rest[:12], s.images[:12])
    assert torch.equal(rest[12:], whole[12:])
    assert json.loads(path.read_text()) == state
    with pytest.raises(ValueError, match="state_path: got the state of roli_fast"):
        quick(verbose=False, eps=0.2).run_standard_evaluation(s.images, s.labels, state_path=path)
    with pytest.raises(ValueError, match="state_path: got the state of roli_fast"):  # of other images
        quick(verbose=False).run_standard_evaluation(s.images.flip(0), s.labels.flip(0), state_path=path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"state_path: got .*, which cannot be read"):
        quick(verbose=False).run_standard_evaluation(s.images, s.labels, state_path=path)


def test_a_state_is_bound_to_what_the_model_answers(s, quick, tmp_path):
    """Such as with a list that decides over its output, which no digest covers."""

    class Ordered(torch.nn.Module):
        def __init__(self, order):
            super().__init__()
            self.net, self.order = s.model, list(order)

        def forward(self, x):
            return self.net(x)[:, self.order]

    path = tmp_path / "state.json"

    def evaluated(order):
        adversary = quick(verbose=False)
        adversary.model = Ordered(order)
        return adversary.run_standard_evaluation(s.images, s.labels, bs=8, state_path=path)

    evaluated(range(10))
    state = path.read_text()
    assert torch.equal(evaluated(range(10)), s.images)  # all of them done
    with pytest.raises(ValueError, match=r"state_path: got .*model answered otherwise to the same images"):
        evaluated(range(9, -1, -1))
    assert path.read_text() == state


def test_clean_accuracy(s, quick):
    with torch.no_grad():
        expected = (s.model(s.images).argmax(1) == s.labels).double().mean().item()
    assert quick(verbose=False).clean_accuracy(s.images, s.labels, bs=7) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "linf"}, "norm: got 'linf', accepted: Linf, L2, L1"),
        ({"is_tf_model": True}, "is_tf_model: got True, accepted: False"),
        ({"version": "fast"}, "version: got 'fast', accepted: standard, plus, rand, custom"),
        (
            {"attacks_to_run": ["fab"]},
            r"attacks_to_run: got \['fab'\], accepted: none, which version",
        ),
        (
            {"version": "custom", "attacks_to_run": ["apgd"]},
            "attacks_to_run: got 'apgd', accepted: apgd-ce, apgd-dlr, fab, square",
        ),
    ],
)
def test_what_is_refused(s, options, message):
    with pytest.raises(ValueError, match=message):
        AutoAttack(s.model, **options)


def test_attacks_that_are_set_later_are_checked_by_their_own_name(s):
    adversary = AutoAttack(s.model, version="custom", device="cpu", verbose=False)
    for names, got in (([], "none, accepted: at least one of"), (["cw"], "'cw', accepted: apgd-ce")):
        adversary.attacks_to_run = names
        with pytest.raises(ValueError, match=f"attacks_to_run: got {got}"):
            adversary.run_standard_evaluation(s.images, s.labels)


def test_versions_that_are_set_later(s, capsys):
    adversary = AutoAttack(s.model, version="custom", attacks_to_run=["fab"], seed=7, device="cpu")
    assert adversary._made(["apgd-ce"]).parts["apgd-ce"].restarts == 5
    adversary.set_version("rand")
    assert adversary.attacks_to_run == ["apgd-ce", "apgd-dlr"]
    core = adversary._made(adversary.attacks_to_run).parts["apgd-dlr"]
    assert (core.restarts, core.eot) == (1, 20)
    assert "rand" in capsys.readouterr().out
    with pytest.raises(ValueError, match="version: got 'custom', accepted: standard, plus, rand"):
        adversary.set_version("custom")
    torch.testing.assert_close(adversary.get_logits(s.images), s.model(s.images))
    assert adversary.get_seed() == 7


def test_settings_of_single_attacks_are_not_there(s):
    with pytest.raises(AttributeError, match="'apgd': for settings of single attacks, use"):
        _ = AutoAttack(s.model).apgd
