"""An object of another library, on this core: the same settings, the same mode, the same images."""

from types import SimpleNamespace

import pytest
import torch

import roli_fast
from roli_fast.compat import options

from .cases import cleverhans, estimator, original


@pytest.fixture
def s(digits_subject):
    return digits_subject.first(40)


@pytest.mark.parametrize("name", ["FGSM", "BIM", "PGD", "PGDL2", "MIFGSM", "EOTPGD"])
def test_torchattacks(s, name):
    library = original("torchattacks")
    attack = getattr(library, name)(s.model)
    attack.eps, attack.alpha = 0.1, 0.03
    if hasattr(attack, "random_start"):
        attack.random_start = False
    fast = roli_fast.accelerate(attack)
    assert type(fast).__name__ == name
    assert type(fast).__module__ == "roli_fast.compat.torchattacks"
    same(fast(s.images, s.labels), attack(s.images, s.labels))
    for name, value in vars(attack).items():
        if name[0] != "_" and name not in ("supported_mode", "alpha"):
            assert getattr(fast, name) == value, name


def same(ours, theirs):
    """But for pixels whose gradient is zero up to rounding."""
    assert ((ours - theirs).abs() > 1e-3).double().mean() <= 1e-3


def test_torchattacks_modes_and_normalisation(s, capsys):
    library = original("torchattacks")
    attack = library.BIM(s.model, eps=0.1, alpha=0.03)
    attack.set_normalization_used([0.1], [0.9])
    inputs = attack.normalize(s.images)
    for change in (
        lambda: attack.set_mode_targeted_by_label(),
        lambda: attack.set_mode_targeted_least_likely(2),
        lambda: attack.set_mode_targeted_by_function(lambda images, labels: (labels + 1) % 10),
        lambda: attack.set_mode_default(),
    ):
        change()
        fast = roli_fast.accelerate(attack)
        assert fast.get_mode() == attack.get_mode()
        same(fast(inputs, s.labels), attack(inputs, s.labels))
    attack.set_mode_targeted_random()
    targets = roli_fast.accelerate(attack).get_target_label(s.images, s.labels)
    assert (targets != s.labels).all()


def test_torchattacks_searches(s):
    library = original("torchattacks")
    for attack, settings in (
        (library.APGD(s.model, eps=0.1, steps=7, rho=0.6, eot_iter=2), {"rho": 0.6, "eot_iter": 2}),
        (library.APGDT(s.model, n_classes=5), {"n_classes": 5}),
        (library.FAB(s.model, multi_targeted=True, n_classes=5), {"n_classes": 5, "multi_targeted": True}),
        (library.Square(s.model, n_queries=50, resc_schedule=False), {"resc_schedule": False}),
        (library.AutoAttack(s.model, version="plus", n_classes=5, seed=3), {"version": "plus", "seed": 3}),
    ):
        fast = roli_fast.accelerate(attack)
        for name, value in settings.items():
            assert getattr(fast, name) == value


def test_torchattacks_ensembles(s):
    library = original("torchattacks")
    attack = library.MultiAttack([library.FGSM(s.model, eps=0.05), library.BIM(s.model, eps=0.1, alpha=0.05)])
    same(roli_fast.accelerate(attack)(s.images, s.labels), attack(s.images, s.labels))


def test_foolbox(s):
    library = original("foolbox")
    model = library.PyTorchModel(s.model, bounds=(0, 1), device="cpu")
    for attack in (
        library.attacks.LinfPGD(rel_stepsize=0.3, steps=5, random_start=False),
        library.attacks.L2PGD(abs_stepsize=0.1, steps=5, random_start=False),
        library.attacks.FGSM(),
        library.attacks.MIFGSM(momentum=0.5),
    ):
        fast = roli_fast.accelerate(attack)
        assert repr(fast) == repr(attack)
        for mine, other in zip(
            fast(model, s.images, s.labels, epsilons=[0.1, 0.2]),
            attack(model, s.images, s.labels, epsilons=[0.1, 0.2]),
            strict=True,
        ):
            same(torch.stack(list(mine)).float(), torch.stack(list(other)).float())
    repeated = roli_fast.accelerate(library.attacks.LinfPGD().repeat(3))
    assert (repeated.times, repeated.attack.steps) == (3, 40)


def test_art(s):
    library = original("art")
    classifier = estimator(s.model, (1, 8, 8))
    for attack in (
        library.ProjectedGradientDescent(classifier, eps=0.1, eps_step=0.03, decay=0.5, max_iter=5),
        library.ProjectedGradientDescentPyTorch(classifier, norm=2, eps=0.8, eps_step=0.2, max_iter=5),
        library.BasicIterativeMethod(classifier, eps=0.1, eps_step=0.03, max_iter=5),
        library.MomentumIterativeMethod(classifier, eps=0.1, eps_step=0.03, max_iter=5),
        library.FastGradientMethod(classifier, eps=0.1, targeted=True),
    ):
        fast = roli_fast.accelerate(attack)
        images = [torch.from_numpy(a.generate(s.images.numpy(), s.labels.numpy())) for a in (fast, attack)]
        same(*images)
    later = library.ProjectedGradientDescent(classifier)
    later.set_params(eps=0.2, max_iter=3)
    assert (roli_fast.accelerate(later).eps, roli_fast.accelerate(later).max_iter) == (0.2, 3)


def test_cleverhans(s):
    library = original("cleverhans")
    for name in ("fast_gradient_method", "projected_gradient_descent"):
        fast = roli_fast.accelerate(getattr(library, name))
        assert (fast.__name__, fast.__module__) == (name, "roli_fast.compat.cleverhans")
    call = cleverhans("fast_gradient_method")
    library.fast_gradient_method = roli_fast.accelerate(library.fast_gradient_method)
    assert call(library, s).shape == s.images.shape


def test_autoattack_by_its_attributes(s):
    """It is in no package registry: a stand-in with the attributes of the official object."""
    kind = type("AutoAttack", (), {"__module__": "autoattack.autoattack"})
    attack = kind()
    vars(attack).update(
        model=s.model,
        norm="L2",
        epsilon=0.5,
        seed=3,
        verbose=False,
        attacks_to_run=["apgd-ce", "apgd-t", "fab-t", "square"],
        version="standard",
        is_tf_model=False,
        device="cpu",
        logger=type("Logger", (), {"log_path": None})(),
    )
    fast = roli_fast.accelerate(attack)
    assert (fast.model, fast.norm, fast.epsilon, fast.seed) == (s.model, "L2", 0.5, 3)
    assert fast.attacks_to_run == attack.attacks_to_run
    assert (fast.device, fast.verbose) == ("cpu", False)
    attack.square = SimpleNamespace(n_queries=5000, n_restarts=1)
    attack.fab = SimpleNamespace(n_iter=100, n_restarts=1, n_target_classes=9)
    attack.apgd = SimpleNamespace(n_iter=100, n_restarts=1, eot_iter=1)
    attack.apgd_targeted = SimpleNamespace(n_iter=100, n_restarts=1, n_target_classes=9)
    roli_fast.accelerate(attack)
    attack.apgd.n_iter = 50
    with pytest.raises(ValueError, match=r"attack\.apgd\.n_iter: got 50, accepted: 100; for others, use"):
        roli_fast.accelerate(attack)
    attack.version, attack.attacks_to_run = "custom", ["square"]
    assert roli_fast.accelerate(attack).attacks_to_run == ["square"]


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("thing", [object(), 3, len, torch.nn.Linear(1, 1), None])
def test_what_is_no_attack(thing):
    with pytest.raises(ValueError, match=r"attack: got .*, accepted: an attack of torchattacks, foolbox"):
        roli_fast.accelerate(thing)


def test_attacks_that_are_not_covered(s):
    torchattacks, foolbox = original("torchattacks"), original("foolbox")
    with pytest.raises(ValueError, match=r"attack: got torchattacks\.attacks\.cw\.CW, accepted: APGD, "):
        roli_fast.accelerate(torchattacks.CW(s.model))
    with pytest.raises(ValueError, match=r"DeepFool, accepted: |L2DeepFoolAttack, accepted: "):
        roli_fast.accelerate(foolbox.attacks.L2DeepFoolAttack())


def test_subclasses_and_replaced_methods(s):
    library = original("torchattacks")

    class Mine(library.PGD):
        pass

    with pytest.raises(ValueError, match=r"Mine, accepted: an attack of .*, and no subclass"):
        roli_fast.accelerate(Mine(s.model))
    attack = library.PGD(s.model)
    attack.get_logits = lambda inputs, labels=None: s.model(inputs) / 2
    with pytest.raises(ValueError, match="PGD with a get_logits of its own"):
        roli_fast.accelerate(attack)


def test_settings_that_mean_something_else_here(s):
    library = original("torchattacks")
    attack = library.PGD(s.model)
    attack.set_model_training_mode(model_training=True)
    with pytest.raises(ValueError, match="model_training: got True"):
        roli_fast.accelerate(attack)


def test_options_hold_inside_with(s):
    attack = roli_fast.accelerate(original("torchattacks").BIM(s.model))
    assert (attack._made().precision, attack._made().fold) == ("fp32", True)
    with options(precision="bf16", fold=False):
        assert (attack._made().precision, attack._made().fold) == ("bf16", False)
        assert attack(s.images, s.labels).dtype == s.images.dtype
    assert attack._made().precision == "fp32"
    with pytest.raises(ValueError, match="precision: got 'fp8'"), options(precision="fp8"):
        pass
