"""torchattacks' ways: modes, normalisation, settings that change, files, ensembles."""

import copy
import gc
import importlib
import math
import pickle
import re

import pytest
import torch
from torch import nn

import roli_fast.compat.torchattacks as torchattacks
from roli_fast.attacks import verify
from roli_fast.models import Normalized


@pytest.fixture
def s(digits_subject):
    return digits_subject.first(40)


def logits(s, images):
    with torch.no_grad():
        return s.model(images)


def test_flags_are_what_the_library_takes_for_them(s):
    for flag, same in ((1, True), (0, False)):
        pgd, expected = (torchattacks.PGD(s.model, steps=2, random_start=f) for f in (flag, same))
        square, squares = (
            torchattacks.Square(s.model, n_queries=5, resc_schedule=f, seed=0) for f in (flag, same)
        )
        for ours, theirs in ((pgd, expected), (square, squares)):
            torch.manual_seed(0)
            found = ours(s.images, s.labels)
            torch.manual_seed(0)
            assert torch.equal(found, theirs(s.images, s.labels))


# --- modes -------------------------------------------------------------------------------------------------


def test_targeted_by_label(s, capsys):
    attack = torchattacks.PGD(s.model, eps=0.5, alpha=0.1, steps=20)
    attack.set_mode_targeted_by_label()
    assert (attack.get_mode(), attack.targeted) == ("targeted(label)", True)
    targets = (s.labels + 3) % 10
    assert (logits(s, attack(s.images, targets)).argmax(1) == targets).double().mean() > 0.9
    attack.set_mode_default()
    assert (attack.attack_mode, attack.targeted) == ("default", False)
    assert (logits(s, attack(s.images, s.labels)).argmax(1) != s.labels).double().mean() > 0.9
    assert "targeted(label)" in capsys.readouterr().out


def test_targeted_by_function(s, capsys):
    attack = torchattacks.BIM(s.model, eps=0.5, alpha=0.1, steps=20)
    seen = []

    def next_class(images, labels):
        seen.append(images)
        return (labels + 1) % 10

    attack.set_mode_targeted_by_function(next_class, quiet=True)
    found = logits(s, attack(s.images, s.labels)).argmax(1)
    assert (found == (s.labels + 1) % 10).double().mean() > 0.9
    torch.testing.assert_close(seen[0], s.images)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kth", [1, 3])
def test_the_least_likely_is_counted_among_the_other_classes(s, kth):
    attack = torchattacks.FGSM(s.model)
    attack.set_mode_targeted_least_likely(kth, quiet=True)
    likely = logits(s, s.images)
    expected = []
    for row, label in zip(likely, s.labels, strict=True):
        others = [c for c in range(10) if c != label]
        expected.append(sorted(others, key=lambda c, row=row: row[c].item())[kth - 1])
    assert attack.get_target_label(s.images, s.labels).tolist() == expected
    with pytest.raises(ValueError, match="kth_min: got 0, accepted: an integer >= 1"):
        attack.set_mode_targeted_least_likely(0)
    attack.set_mode_targeted_least_likely(10)
    with pytest.raises(ValueError, match="kth_min: got 10, accepted: at most 9"):
        attack(s.images, s.labels)


def test_random_targets_are_any_other_class(s):
    attack = torchattacks.FGSM(s.model)
    attack.set_mode_targeted_random(quiet=True)
    images, labels = s.images[:1].expand(3000, -1, -1, -1), s.labels[:1].expand(3000)
    counts = torch.bincount(attack.get_target_label(images, labels), minlength=10)
    assert counts[labels[0]] == 0
    others = counts[counts > 0]
    assert len(others) == 9
    assert (others - 3000 / 9).abs().max() < 5 * (3000 / 9) ** 0.5


def test_an_attack_without_targets_refuses_the_mode(s):
    with pytest.raises(ValueError, match="Targeted mode is not supported"):
        torchattacks.TPGD(s.model).set_mode_targeted_by_label()


# --- normalisation -----------------------------------------------------------------------------------------


def test_normalised_images_in_and_out(s):
    """As the attack on pixels through the normalisation."""
    mean, std = [0.3], [0.25]
    normalized = Normalized(s.model, mean, std)
    on_pixels = torchattacks.BIM(normalized, eps=0.1, alpha=0.03, steps=5)(s.images, s.labels)
    attack = torchattacks.BIM(s.model, eps=0.1, alpha=0.03, steps=5)
    attack.set_normalization_used(mean, std)
    found = attack(attack.normalize(s.images), s.labels)
    torch.testing.assert_close(attack.inverse_normalize(found), on_pixels, rtol=0, atol=1e-6)


def test_logits_inside_a_call_are_those_of_pixels(s):
    """As in the library: a target function is given pixels, and asks the attack for the logits of these."""
    pytest.importorskip("torchattacks")
    pixels, targets = [], []
    for module in (torchattacks, importlib.import_module("torchattacks")):
        attack = module.FGSM(s.model, eps=0.1)
        attack.set_normalization_used([0.3], [0.25])

        def likeliest(images, labels, attack=attack):
            pixels.append(images)
            with torch.no_grad():
                torch.testing.assert_close(
                    attack.get_output_with_eval_nograd(images), attack.get_logits(images)
                )
                targets.append(attack.get_logits(images))
            return targets[-1].topk(2).indices[:, 1]

        attack.set_mode_targeted_by_function(likeliest, quiet=True)
        inputs = attack.normalize(s.images)
        attack(inputs, s.labels)
        torch.testing.assert_close(attack.get_logits(inputs), s.model(inputs))
        torch.testing.assert_close(attack.get_output_with_eval_nograd(inputs), logits(s, inputs))
    torch.testing.assert_close(*pixels, rtol=0, atol=1e-6)
    torch.testing.assert_close(*targets, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(targets[0], logits(s, (s.images - 0.3) / 0.25), rtol=1e-3, atol=1e-3)


def test_a_robmodel_brings_its_normalisation(s):
    kind = type("RobModel", (nn.Module,), {"forward": lambda self, x: s.model(x)})
    model = kind()
    model.mean, model.std = torch.tensor([0.1]), torch.tensor([0.5])
    attacks = [torchattacks.BIM(model), torchattacks.MultiAttack([torchattacks.FGSM(model)] * 2)]
    for attack in attacks:
        assert attack.normalization_used["mean"].tolist() == [[[[pytest.approx(0.1)]]]]
        assert attack.normalization_used["std"].tolist() == [[[[0.5]]]]
    model.mean, model.std = torch.zeros(1), torch.ones(1)
    assert torchattacks.BIM(model).normalization_used is None


def test_logits_of_a_users_own_are_refused(s):
    class Mixin:
        def get_logits(self, inputs, labels=None):
            return s.model(inputs) / 2

    for bases, own in (
        ((torchattacks.PGD,), {"get_logits": Mixin.get_logits}),
        ((Mixin, torchattacks.PGD), {}),
    ):
        with pytest.raises(ValueError, match="get_logits: got one of Mine's own, accepted: none"):
            type("Mine", bases, own)
    with pytest.raises(ValueError, match="get_logits: got one of PGD's own"):
        torchattacks.PGD(s.model).get_logits = s.model.forward


def test_logits_of_a_users_own_that_its_forward_asks_for(s):
    """For them it has its forward, and targets are by them, too; ours would not ask for them."""

    class Mine(torchattacks.PGD):
        def get_logits(self, inputs, labels=None, *args, **kwargs):
            return -self.model(inputs)

        def forward(self, images, labels):
            return images + 0.01 * self.get_target_label(images, labels)[:, None, None, None]

    attack = Mine(s.model)
    attack.set_mode_targeted_least_likely(quiet=True)
    likeliest = logits(s, s.images).scatter(1, s.labels[:, None], -torch.inf).argmax(1)
    torch.testing.assert_close(attack(s.images, s.labels), s.images + 0.01 * likeliest[:, None, None, None])
    attack.get_logits = s.model.forward

    class Late(torchattacks.APGD):
        get_logits = Mine.get_logits

        def forward(self, images, labels):
            return super().forward(images, labels)

    text = (
        "get_logits: got one of Late's own, accepted: none: nothing here would call it but a forward of your "
    )
    with pytest.raises(ValueError, match=rf"{text}own\. Put it into a module around the model"):
        Late(s.model)(s.images, s.labels)


@pytest.mark.parametrize("module", ["roli_fast.compat.torchattacks", "torchattacks"])
def test_an_ensemble_is_judged_by_logits_of_a_users_own(s, module):
    module = pytest.importorskip(module)

    class Mine(module.MultiAttack):
        def get_logits(self, inputs, labels=None, *args, **kwargs):
            return torch.nn.functional.one_hot((s.labels[: len(inputs)] + 1) % 10, 10).float()

    first, last = module.FGSM(s.model, eps=0.01), module.FGSM(s.model, eps=0.5)
    found = Mine([first, last])(s.images, s.labels)  # all are fooled by the first
    assert 0.009 < (found - s.images).abs().max() < 0.011


INTERNAL = {
    "APGD": "dlr_loss",
    "APGDT": "dlr_loss_targeted",
    "FAB": "get_diff_logits_grads_batch",
    "Square": "margin_and_loss",
}


@pytest.mark.parametrize("name", INTERNAL)
def test_a_searchs_methods_of_a_users_own_are_refused(s, name):
    kind = getattr(torchattacks, name)
    for method in ("get_logits", "perturb", "attack_single_run", INTERNAL[name]):
        with pytest.raises(ValueError, match=f"{method}: got one of Mine's own, accepted: none"):
            type("Mine", (kind,), {method: print})
        with pytest.raises(ValueError, match=f"{method}: got one of {name}'s own"):
            setattr(kind(s.model), method, print)


def test_all_that_the_searches_of_the_library_call_is_refused():
    library = pytest.importorskip("torchattacks")
    for name in INTERNAL:
        theirs, ours = getattr(library, name), getattr(torchattacks, name)
        internal = {method for method in dir(theirs) if method[0] != "_"} - {*dir(ours)}
        assert internal <= {*ours._never_called}


@pytest.mark.parametrize("module", ["roli_fast.compat.torchattacks", "torchattacks"])
def test_attacks_of_a_users_own(s, module):
    """Their forward, and their function of targets, see the model in eval mode, and the mode is left."""
    base = pytest.importorskip(f"{module}.attack").Attack
    modes = []

    class Mine(base):
        def __init__(self, model):
            super().__init__("Mine", model)
            self.supported_mode = ["default", "targeted"]

        def forward(self, images, labels):
            modes.append(self.model.training)
            targets = self.get_target_label(images, labels) if self.targeted else labels
            return images - 0.1 * (self.get_logits(images).argmax(1) == targets)[:, None, None, None]

    model = copy.deepcopy(s.model).train()
    attack = Mine(model)
    attack(s.images, s.labels)
    attack.set_mode_targeted_by_function(lambda images, labels: modes.append(model.training) or labels)
    attack(s.images, s.labels)
    assert modes == [False, False, False]
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), s.model.buffers(), strict=True))


def test_images_that_are_no_pixels_are_refused(s):
    attack = torchattacks.PGD(s.model)
    with pytest.raises(ValueError, match="images: got values in"):
        attack(3 * s.images - 1, s.labels)
    attack.set_normalization_used([0.5], [0.5])
    with pytest.raises(ValueError, match="images: got values in"):
        attack(3 * s.images - 1, s.labels)


@pytest.mark.parametrize("normalised", [False, True])
def test_pixels_from_0_to_255_are_told_from_normalised_ones(normalised, s):
    attack = torchattacks.PGD(s.model)
    if normalised:
        attack.set_normalization_used([127.5], [127.5])
    with pytest.raises(ValueError, match=r"If they are pixels from 0 to 255: images / 255\. .*normalis"):
        attack(2 * s.images - 1 if normalised else 255 * s.images, s.labels)
    with pytest.raises(ValueError, match=r"accepted: values within bounds=.*\)\. If they are normalised"):
        torchattacks.PGD(s.model)(3 * s.images - 1, s.labels)


def test_normalisation_has_to_be_set_before_it_is_asked_for(s):
    with pytest.raises(ValueError, match="set_normalization_used"):
        torchattacks.PGD(s.model).normalize(s.images)


# --- settings ----------------------------------------------------------------------------------------------


def test_settings_may_change_between_calls(s):
    attack = torchattacks.PGD(s.model, eps=0.05, alpha=0.05, steps=2, random_start=False)
    for name, value in {"eps": 0.1, "alpha": 0.07, "steps": 4, "random_start": True}.items():
        setattr(attack, name, value)
        settings = {"eps": attack.eps, "alpha": attack.alpha, "steps": attack.steps}
        fresh = torchattacks.PGD(s.model, **settings, random_start=attack.random_start)
        found = []
        for other in (attack, fresh):
            torch.manual_seed(0)
            found.append(other(s.images, s.labels))
        assert torch.equal(*found)
    attack.eps = -1
    with pytest.raises(ValueError, match="eps: got -1"):
        attack(s.images, s.labels)


def test_another_size_needs_no_other_copy_of_the_model(s):
    attack = torchattacks.BIM(s.model)
    core = attack._made()
    view = core.view(s.model)
    attack.eps, attack.alpha = 0.2, 0.1
    assert attack._made() is core
    assert core.view(s.model) is view
    attack.steps += 1
    assert attack._made() is not core


def test_the_model_is_followed_as_it_trains(s):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    attack = torchattacks.FGSM(model, eps=0.1)
    before = attack(s.images, s.labels)
    with torch.no_grad():
        model[1].weight.neg_()
    after = attack(s.images, s.labels)
    assert not torch.equal(before, after)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    expected = torchattacks.FGSM(other, eps=0.1)(s.images, s.labels)
    attack.set_model(other)
    assert torch.equal(attack(s.images, s.labels), expected)
    attack.set_normalization_used([0.0], [1.0])
    attack.model = model
    torch.testing.assert_close(attack(s.images, s.labels), after)
    attack.model = model.forward
    with pytest.raises(ValueError, match="model: got a method, accepted: a "):
        attack(s.images, s.labels)


def test_bim_chooses_its_steps(s):
    assert torchattacks.BIM(s.model, eps=16 / 255, steps=0).steps == 20
    assert torchattacks.BIM(s.model, eps=4 / 255, steps=0).steps == 5


def test_training_mode_is_refused(s):
    attack = torchattacks.PGD(s.model)
    attack.set_model_training_mode()
    with pytest.raises(ValueError, match="model_training: got True, accepted: False"):
        attack.set_model_training_mode(model_training=True)


def test_it_says_what_it_is(s):
    text = repr(torchattacks.PGD(s.model, eps=0.25))
    assert text.startswith("PGD(")
    assert "eps=0.25" in text
    assert "attack_mode=default" in text
    assert "model=" not in text


def test_it_can_be_pickled(s):
    attack = torchattacks.BIM(s.model, eps=0.1)
    attack.set_mode_targeted_least_likely(quiet=True)
    expected = attack(s.images, s.labels)
    assert torch.equal(pickle.loads(pickle.dumps(attack))(s.images, s.labels), expected)


@pytest.mark.parametrize("name", [name for name in torchattacks.__all__ if name != "MultiAttack"])
def test_every_attack_can_be_pickled(s, name):
    attack = getattr(torchattacks, name)(s.model)
    again = pickle.loads(pickle.dumps(attack))
    assert type(again) is type(attack)
    assert repr(again) == repr(attack)


# --- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save_type", ["float", "int"])
def test_save_and_load(s, tmp_path, save_type, capsys):
    attack = torchattacks.BIM(s.model, eps=0.1, alpha=0.03, steps=5)
    batches = list(zip(s.images.split(16), s.labels.split(16), strict=True))
    path = tmp_path / "adversarial.pt"
    options = {"save_predictions": True, "save_clean_inputs": True, "save_type": save_type}
    accuracy, distance, seconds = attack.save(batches, path, return_verbose=True, **options)
    expected = attack(s.images, s.labels)
    predicted = logits(s, expected).argmax(1)
    assert accuracy == pytest.approx(100 * (predicted == s.labels).double().mean().item())
    wrong = predicted != s.labels
    assert distance == pytest.approx(
        (expected - s.images)[wrong].flatten(1).norm(dim=1).mean().item(), rel=1e-4
    )
    assert seconds > 0
    loader = torchattacks.PGD.load(path, batch_size=40, load_predictions=True, load_clean_inputs=True)
    ((adversarial, labels, predictions, clean),) = list(loader)
    tolerance = 1e-6 if save_type == "float" else 1 / 255
    torch.testing.assert_close(adversarial, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(clean, s.images, rtol=0, atol=tolerance)
    assert torch.equal(labels, s.labels)
    assert torch.equal(predictions, predicted)


def test_files_that_cannot_be_as_asked(s, tmp_path):
    attack, path = torchattacks.FGSM(s.model), tmp_path / "adversarial.pt"
    attack.save([(s.images, s.labels)], path, verbose=False)
    for name, option in (("preds", "load_predictions"), ("clean_inputs", "load_clean_inputs")):
        with pytest.raises(ValueError, match=f"without {name}, accepted: a file of save"):
            torchattacks.FGSM.load(path, **{option: True})
    with pytest.raises(FileNotFoundError, match=r"save_path: got .*none/a\.pt, accepted: a file in a folder"):
        attack.save(iter(lambda: pytest.fail("was attacked"), None), tmp_path / "none" / "a.pt")


def test_a_file_is_the_librarys_own(s, tmp_path, capsys):
    library = pytest.importorskip("torchattacks")
    batches = [(s.images, s.labels)]
    torchattacks.BIM(s.model).save(batches, tmp_path / "ours.pt", verbose=False)
    library.BIM(s.model).save(batches, tmp_path / "theirs.pt", verbose=False)
    ours, theirs = (torch.load(tmp_path / f"{name}.pt") for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    read = next(
        iter(torchattacks.Attack.load(tmp_path / "theirs.pt", normalize={"mean": [0.5], "std": [0.5]}))
    )
    torch.testing.assert_close(read[0], (theirs["adv_inputs"] - 0.5) / 0.5)


def batches_of(s, size):
    return list(zip(s.images.split(size), s.labels.split(size), strict=True))


def test_save_says_how_far_it_is(s, capsys):
    torchattacks.FGSM(s.model, eps=0.1).save(batches_of(s, 16))
    lines = re.split("[\r\n]", capsys.readouterr().out)
    shown = re.findall(r"- Save progress: ([\d.]+) % / Robust accuracy: [\d.]+ % / L2: ", "\n".join(lines))
    assert shown == ["33.33", "66.67", "100.00", "100.00"]
    ensemble = torchattacks.MultiAttack([torchattacks.FGSM(s.model, eps=0.05), torchattacks.BIM(s.model)])
    ensemble.save(batch for batch in batches_of(s, 20))
    lines = re.split("[\r\n]", capsys.readouterr().out.strip())
    assert len(lines) == 3
    for number, line in zip((1, 2, 2), lines, strict=True):
        reached = r"Robust accuracy: [\d.]+ % / Attack success rate: [\d.]+ % \| [\d.]+ % / L2: [\d.]+"
        assert re.fullmatch(rf"- Save progress: {number} batches / {reached} \([\d.]+ s/it\)", line)


@pytest.mark.parametrize("into_a_file", [False, True])
def test_save_keeps_of_a_batch_what_it_writes(s, tmp_path, into_a_file):
    living = []

    def loader():
        for number, batch in enumerate(batches_of(s, 4)):
            if number in (2, 9):
                gc.collect()  # of what earlier tests have left, too
                held = (thing for thing in gc.get_objects() if type(thing) is torch.Tensor)
                living.append(sum(tensor.numel() for tensor in held if tensor.shape[1:] == (1, 8, 8)))
            yield batch

    path = tmp_path / "images.pt" if into_a_file else None
    attack = torchattacks.VANILA(s.model)
    accuracy, distance, _ = attack.save(loader(), path, verbose=False, return_verbose=True)
    grown = (living[1] - living[0]) / (7 * 4 * 64)  # from the third to the tenth batch of four images
    assert grown == (1 if into_a_file else 0)  # without the clean images
    right = logits(s, s.images).argmax(1) == s.labels
    assert accuracy == pytest.approx(100 * right.double().mean().item())
    assert distance == 0 or (right.all() and math.isnan(distance))


def test_save_takes_integers(s, tmp_path):
    pixels = (s.images * 255).round().to(torch.uint8)
    attack = torchattacks.FGSM(s.model, eps=0.1)
    results = [
        attack.save([(images, s.labels)], tmp_path / name, False, True, save_clean_inputs=True)[:2]
        for name, images in (("integers", pixels), ("floats", pixels / 255))
    ]
    assert results[0] == results[1]
    integers, floats = (torch.load(tmp_path / name) for name in ("integers", "floats"))
    assert all(torch.equal(integers[name], floats[name]) for name in ("adv_inputs", "clean_inputs"))


# --- searches and ensembles --------------------------------------------------------------------------------

SEARCHES = {
    "APGD": {"steps": 10},
    "APGDT": {"steps": 5, "n_classes": 4},
    "FAB": {"steps": 5, "multi_targeted": True, "n_classes": 4},
    "Square": {"n_queries": 200},
}


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_returns_what_fools_or_the_image(s, name, norm):
    eps = {"Linf": 0.1, "L2": 0.8}[norm]
    attack = getattr(torchattacks, name)(s.model, norm=norm, eps=eps, **SEARCHES[name])
    found = attack(s.images, s.labels)
    checked = verify(s.model, s.images, found, s.labels, norm.lower(), eps)
    withstood = (found == s.images).flatten(1).all(1)
    assert torch.equal(checked.success | withstood, torch.ones(40, dtype=torch.bool))
    assert 0.1 < checked.success.double().mean() < 1
    torch.rand(3)  # other draws in between
    assert torch.equal(attack(s.images, s.labels), found)  # seed=0
    if name == "FAB":  # starts at random from the second run on
        return
    attack.seed = 1
    assert not torch.equal(attack(s.images, s.labels), found)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_is_as_strong_as_the_original(s, name):
    library = pytest.importorskip("torchattacks")
    settings = {"eps": 0.1, **SEARCHES[name], "n_classes": 10}
    if name in ("APGD", "Square"):
        del settings["n_classes"]
    right = []
    for module in (torchattacks, library):
        found = getattr(module, name)(s.model, **settings)(s.images, s.labels)
        right.append((logits(s, found).argmax(1) == s.labels).sum().item())
    assert abs(right[0] - right[1]) <= 3  # of 40


def test_norms_are_named(s):
    with pytest.raises(ValueError, match="norm: got 'L3', accepted: Linf, L2"):
        torchattacks.APGD(s.model, norm="L3")(s.images, s.labels)


def test_an_ensemble_attacks_what_withstands(s, capsys):
    weak, strong = torchattacks.FGSM(s.model, eps=0.01), torchattacks.PGD(s.model, eps=0.3, alpha=0.1)
    calls = []
    forward = strong.forward
    strong.forward = lambda images, labels: calls.append(len(images)) or forward(images, labels)
    ensemble = torchattacks.MultiAttack([weak, strong], verbose=True)
    found = ensemble(s.images, s.labels)
    after_weak = (logits(s, weak(s.images, s.labels)).argmax(1) == s.labels).sum().item()
    assert calls == [after_weak]
    assert (logits(s, found).argmax(1) != s.labels).double().mean() > 0.9
    assert capsys.readouterr().out.startswith("Attack success rate: ")


@pytest.mark.parametrize("attacks", [["one"], ["one", "other model"]])
def test_ensembles_that_are_none(s, attacks):
    models = {"one": s.model, "other model": nn.Identity()}
    with pytest.raises(ValueError, match="attacks: got "):
        torchattacks.MultiAttack([torchattacks.FGSM(models[name]) for name in attacks])


def ensembles(model):
    attacks = [torchattacks.FGSM(model), torchattacks.BIM(model)]
    ensemble = torchattacks.MultiAttack(attacks)
    autoattack = torchattacks.AutoAttack(model)
    return [
        (ensemble, attacks),
        (autoattack, [autoattack._autoattack, *autoattack._autoattack.attacks]),
    ]


@pytest.mark.parametrize("which", [0, 1])
def test_settings_of_an_ensemble_are_those_of_its_parts(s, which, capsys):
    ensemble, parts = ensembles(s.model)[which]
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    ensemble.set_model(other)
    ensemble.set_device("meta")
    ensemble.set_normalization_used([0.25], [0.5])
    for part in parts:
        assert part.model is other
        assert part.device == torch.device("meta")
        assert (part.normalization_used["mean"].item(), part.normalization_used["std"].item()) == (0.25, 0.5)
    modes = {
        "set_mode_targeted_by_label": (),
        "set_mode_targeted_random": (),
        "set_mode_targeted_least_likely": (2,),
        "set_mode_targeted_by_function": (lambda images, labels: labels,),
    }
    for name, arguments in modes.items():
        with pytest.raises(ValueError, match="Targeted mode is not supported"):
            getattr(ensemble, name)(*arguments)
    targeted = [part for part in parts if "targeted" in part.supported_mode]
    assert targeted
    for part in targeted:
        part.set_mode_targeted_by_label()
    ensemble.set_mode_default()
    assert {part.get_mode() for part in parts} == {"default"}
    with pytest.raises(ValueError, match="model_training: got True"):
        ensemble.set_model_training_mode(True)


def test_an_ensemble_of_attacks_that_normalise(s):
    """Each keeps its own ball of pixels, though the normalised range lies inside [0, 1]."""
    attacks = [torchattacks.FGSM(s.model, eps=0.05), torchattacks.BIM(s.model, eps=0.1, alpha=0.05)]
    for attack in attacks:
        attack.set_normalization_used([-0.5], [2.0])
    inputs = attacks[0].normalize(s.images)
    found = torchattacks.MultiAttack(attacks)(inputs, s.labels)
    assert 0.04 < (attacks[0].inverse_normalize(found) - s.images).abs().max() <= 0.1 + 1e-5
    library = pytest.importorskip("torchattacks")
    theirs = [library.FGSM(s.model, eps=0.05), library.BIM(s.model, eps=0.1, alpha=0.05)]
    for attack in theirs:
        attack.set_normalization_used([-0.5], [2.0])
    differs = (found - library.MultiAttack(theirs)(inputs, s.labels)).abs() > 1e-4
    assert differs.double().mean() < 1e-3


@pytest.mark.parametrize("module", ["roli_fast.compat.torchattacks", "torchattacks"])
def test_what_an_ensemble_saves(s, tmp_path, module):
    module = pytest.importorskip(module)
    ensemble = module.MultiAttack(
        [module.FGSM(s.model, eps=0.05), module.BIM(s.model, eps=0.1, alpha=0.05)], verbose=True
    )
    batches = list(zip(s.images.split(16), s.labels.split(16), strict=True))
    path = tmp_path / "images.pt"
    accuracy, success, distance, _ = ensemble.save(batches, path, False, True, True, save_clean_images=True)
    found = ensemble(s.images, s.labels)
    wrong = logits(s, found).argmax(1) != s.labels
    first = logits(s, ensemble.attacks[0](s.images, s.labels)).argmax(1) != s.labels
    assert accuracy == pytest.approx(100 * (~wrong).double().mean().item())
    assert success == pytest.approx([100 * f.double().mean().item() for f in (first, wrong)])
    assert distance > 0
    assert {"adv_inputs", "labels", "preds", "clean_inputs"} <= torch.load(path).keys()
    assert ensemble.verbose
    ensemble.attacks = ensemble.attacks[:1]  # a list that may change
    assert torch.equal(logits(s, ensemble(s.images, s.labels)).argmax(1) != s.labels, first)


def test_what_ensembles_say_of_themselves(s):
    ensemble = torchattacks.MultiAttack([torchattacks.FGSM(s.model), torchattacks.BIM(s.model)])
    ensemble.check_validity()
    ensemble.attacks = ensemble.attacks[:1]
    with pytest.raises(ValueError, match="attacks: got 1, accepted: two or more"):
        ensemble.check_validity()
    assert torchattacks.AutoAttack(s.model, seed=3).get_seed() == 3
    assert torchattacks.AutoAttack(s.model).get_seed() > 0


def test_fab_knows_no_single_target(s):
    with pytest.raises(ValueError, match="Targeted mode is not supported"):
        torchattacks.FAB(s.model).set_mode_targeted_by_label()


def test_an_ensemble_takes_normalised_images(s):
    """As the ensemble on pixels through the normalisation."""
    found = []
    for model, normalises in ((Normalized(s.model, [0.3], [0.25]), False), (s.model, True)):
        attacks = [torchattacks.FGSM(model, eps=0.05), torchattacks.BIM(model, eps=0.1, alpha=0.05)]
        ensemble = torchattacks.MultiAttack(attacks)
        if normalises:
            ensemble.set_normalization_used([0.3], [0.25])
            images = ensemble.inverse_normalize(ensemble(ensemble.normalize(s.images), s.labels))
        else:
            images = ensemble(s.images, s.labels)
        found.append(images)
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)
    assert (found[0] != s.images).any()


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_autoattack_is_made_of_the_librarys_attacks(s, version):
    library = pytest.importorskip("torchattacks")
    ours, theirs = (
        m.AutoAttack(s.model, version=version, seed=3)._autoattack.attacks for m in (torchattacks, library)
    )
    assert [type(a).__name__ for a in ours] == [type(a).__name__ for a in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        shared = set(vars(mine)) & set(vars(other)) - {"model", "supported_mode"}  # FAB's has no targets here
        assert {"eps", "norm", "n_restarts", "seed"} <= shared
        for name in shared:
            if name[0] != "_":
                assert getattr(mine, name) == getattr(other, name), name


def test_autoattack_runs(s):
    few = s.first(8)
    attack = torchattacks.AutoAttack(s.model, eps=0.5, seed=0)
    found = attack(few.images, few.labels)
    assert (logits(s, found).argmax(1) != few.labels).all()
    with pytest.raises(ValueError, match="version: got 'fast'"):
        torchattacks.AutoAttack(s.model, version="fast")


def test_settings_reach_the_attacks_in_an_attack_of_ones_own(s):
    class Warm(torchattacks.Attack):
        def __init__(self, model):
            super().__init__("Warm", model)
            self.supported_mode = ["default", "targeted"]
            self.first = torchattacks.FGSM(model)
            self.others = [torchattacks.PGD(model), {"last": torchattacks.BIM(model)}]

        def forward(self, images, labels):
            return self.first(images, labels)

    attack = Warm(s.model)
    parts = [attack.first, attack.others[0], attack.others[1]["last"]]
    attack.set_normalization_used(mean=[0.5], std=[0.5])
    attack.set_mode_targeted_by_label(quiet=True)
    other = copy.deepcopy(s.model)
    attack.set_model(other)
    for part in parts:
        assert part.normalization_used is not None
        assert part.targeted
        assert part.model is other
