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
    assert isinstance(fast, getattr(roli_fast.compat.torchattacks, name))
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
        (library.APGD(s.model, eps=0.1, steps=7, rho=0.6, eot_iter=2), {"thr_decr": 0.6, "eot_iter": 2}),
        (library.APGDT(s.model, n_classes=5), {"n_target_classes": 4}),
        (library.FAB(s.model, multi_targeted=True, n_classes=5), {"n_target_classes": 4}),
        (library.Square(s.model, n_queries=50, resc_schedule=False), {"rescale_schedule": False}),
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


@pytest.mark.parametrize("name", ["BasicIterativeMethod", "MomentumIterativeMethod"])
def test_settings_of_art_that_are_no_arguments(s, name):
    library = original("art")
    later = getattr(library, name)(estimator(s.model, (1, 8, 8)))
    later.set_params(norm=2, num_random_init=3)
    fast = roli_fast.accelerate(later)
    assert (fast.norm, fast.num_random_init) == (2, 3)


def test_settings_of_foolbox_that_are_no_arguments(s):
    library = original("foolbox")
    model = library.PyTorchModel(s.model, bounds=(0, 1), device="cpu")
    attack = library.attacks.FGSM()
    attack.steps, attack.rel_stepsize = 7, 0.1
    fast = roli_fast.accelerate(attack)
    assert (fast.steps, fast.rel_stepsize) == (7, 0.1)
    same(*(a(model, s.images, s.labels, epsilons=0.1)[0] for a in (fast, attack)))


def test_what_has_no_place_here(s):
    attack = original("art").FastGradientMethod(estimator(s.model, (1, 8, 8)))
    attack.attack_params = ["eps"]
    with pytest.raises(
        ValueError, match=r"attack\.attack_params: got one of its own, accepted: FastGradient"
    ):
        roli_fast.accelerate(attack)


def test_autoattack_of_torchattacks_is_that_of_its_parts(s):
    library = original("torchattacks")
    attack = library.AutoAttack(s.model, eps=0.1)
    parts = attack._autoattack.attacks
    parts[0].steps, parts[2].alpha_max = 100, 0.2
    attack._autoattack.attacks = parts[:3]
    attack.eps = 0.3  # of no influence any more
    fast = roli_fast.accelerate(attack)._autoattack.attacks
    assert [type(part).__name__ for part in fast] == ["APGD", "APGDT", "FAB"]
    assert (fast[0].steps, fast[2].alpha_max, fast[0].eps) == (100, 0.2, 0.1)
    assert [part.seed for part in fast] == [part.seed for part in parts[:3]]


def test_methods_that_were_replaced_anywhere(s):
    torchattacks, foolbox, art = map(original, ("torchattacks", "foolbox", "art"))
    ensemble = torchattacks.MultiAttack([torchattacks.FGSM(s.model), torchattacks.BIM(s.model)])
    repeated = foolbox.attacks.LinfPGD().repeat(2)
    general = art.ProjectedGradientDescent(estimator(s.model, (1, 8, 8)))
    for attack, owner, name in (
        (ensemble, ensemble, "get_logits"),
        (repeated, repeated, "repeat"),
        (general, general._attack, "generate"),
    ):
        vars(owner)[name] = print
        with pytest.raises(ValueError, match=f"with a {name} of its own"):
            roli_fast.accelerate(attack)


def test_the_librarys_attributes_are_the_faces(s):
    """What an original sets at construction is here, too, but for what it sets anew at every call."""
    library, foreign = original("torchattacks"), {"target_class"}
    for name in roli_fast.compat.torchattacks.__all__:
        if name != "MultiAttack":
            kinds = (getattr(m, name) for m in (roli_fast.compat.torchattacks, library))
            mine, other = ({n for n in vars(kind(s.model)) if n[0] != "_"} for kind in kinds)
            assert mine == other - foreign, name


def test_fab_towards_a_target(s):
    attack = original("torchattacks").FAB(s.model)
    attack.set_mode_targeted_by_label(quiet=True)
    with pytest.raises(ValueError, match=r"FAB in the mode targeted\(label\), accepted: FAB in the default"):
        roli_fast.accelerate(attack)


def test_a_class_is_no_attack():
    with pytest.raises(ValueError, match=r"attack: got the class torchattacks.*PGD, accepted: an instance"):
        roli_fast.accelerate(original("torchattacks").PGD)


def test_cleverhans(s):
    library = original("cleverhans")
    for name in ("fast_gradient_method", "projected_gradient_descent"):
        fast = roli_fast.accelerate(getattr(library, name))
        assert (fast.__name__, fast.__module__) == (name, "roli_fast.compat.cleverhans")
    call = cleverhans("fast_gradient_method")
    expected = call(library, s)
    library.fast_gradient_method = roli_fast.accelerate(library.fast_gradient_method)
    same(call(library, s), expected)


def official(s, norm="L2", version="standard", names=("apgd-ce", "apgd-t", "fab-t", "square")):
    """It is in no package registry: a stand-in with the attributes of the official object."""
    attack = type("AutoAttack", (), {"__module__": "autoattack.autoattack"})()
    vars(attack).update(
        model=s.model,
        norm=norm,
        epsilon=0.5,
        seed=3,
        verbose=False,
        attacks_to_run=list(names),
        version=version,
        is_tf_model=False,
        device="cpu",
        logger=SimpleNamespace(log_path=None),
    )
    large, many = norm == "L1", version in ("plus", "custom")
    shared = {"eps": 0.5, "norm": norm, "n_iter": 100, "seed": 3, "verbose": False}
    apgd = {**shared, "thr_decr": 0.75, "eot_iter": 1, "topk": None, "use_largereps": large, "model": s.model}
    attack.apgd = SimpleNamespace(**apgd, n_restarts=5 if many or large else 1)
    attack.apgd_targeted = SimpleNamespace(**apgd, n_restarts=1, n_target_classes=5 if large else 9)
    fab = {"alpha_max": 0.1, "eta": 1.05, "beta": 0.9, "n_target_classes": 9, "predict": s.model}
    attack.fab = SimpleNamespace(**shared, **fab, n_restarts=5 if many else 1)
    square = {"eps": 0.5, "norm": norm, "n_queries": 5000, "n_restarts": 1, "p_init": 0.8, "loss": "margin"}
    attack.square = SimpleNamespace(**square, rescale_schedule=False, predict=s.model)
    return attack


def test_autoattack_by_its_attributes(s):
    attack = official(s)
    fast = roli_fast.accelerate(attack)
    assert (fast.model, fast.norm, fast.epsilon, fast.seed) == (s.model, "L2", 0.5, 3)
    assert fast.attacks_to_run == attack.attacks_to_run
    assert (fast.device, fast.verbose) == ("cpu", False)
    names = ("apgd-dlr", "fab")
    assert roli_fast.accelerate(official(s, "Linf", "custom", names)).attacks_to_run == list(names)


def test_autoattack_runs_the_list_as_it_stands(s):
    attack = official(s)
    attack.attacks_to_run = ["square", "fab-t"]
    assert roli_fast.accelerate(attack).attacks_to_run == ["square", "fab-t"]


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("apgd", "n_iter", 50),
        ("apgd", "thr_decr", 0.9),
        ("apgd", "eps", 0.1),
        ("apgd", "norm", "Linf"),
        ("apgd", "topk", 3),
        ("apgd", "use_largereps", True),
        ("apgd", "model", torch.nn.Identity()),
        ("apgd_targeted", "eot_iter", 20),
        ("apgd_targeted", "n_target_classes", 3),
        ("fab", "alpha_max", 0.5),
        ("square", "eps", 1.0),
        ("square", "p_init", 0.3),
        ("square", "rescale_schedule", True),
        ("square", "predict", torch.nn.Identity()),
    ],
)
def test_settings_of_autoattacks_attacks(s, part, setting, value):
    attack = official(s)
    setattr(getattr(attack, part), setting, value)
    with pytest.raises(ValueError, match=rf"attack\.{part}\.{setting}: got .*, accepted: "):
        roli_fast.accelerate(attack)


def test_autoattacks_that_are_none_of_here(s):
    attack = official(s)
    del attack.fab
    with pytest.raises(ValueError, match=r"attack\.fab: got nothing, accepted: what runs fab-t"):
        roli_fast.accelerate(attack)
    attack = official(s)
    attack.is_tf_model = True
    with pytest.raises(ValueError, match=r"attack\.is_tf_model: got True, accepted: False"):
        roli_fast.accelerate(attack)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_the_core_has_the_settings_of_autoattacks_attacks(s, norm, version):
    """pyautoattack's object has the official one's attacks."""
    library = pytest.importorskip("pyautoattack")
    if norm == "L1" and version != "standard":
        pytest.skip("L1 is in the official standard alone in the balls of 3, 2 and 1 eps")
    theirs = library.AutoAttack(s.model, norm=norm, eps=0.5, version=version)
    attack = official(s, norm, version, theirs.attacks_to_run)
    for part in ("apgd", "apgd_targeted", "fab", "square"):
        setattr(attack, part, getattr(theirs, part))
    assert roli_fast.accelerate(attack).attacks_to_run == theirs.attacks_to_run


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
    assert (attack._made().precision, attack._made().fold) == ("torch", True)
    with options(precision="bf16", fold=False):
        assert (attack._made().precision, attack._made().fold) == ("bf16", False)
        assert attack(s.images, s.labels).dtype == s.images.dtype
    with options(precision="bf16"), options(fold=False):
        assert (attack._made().precision, attack._made().fold) == ("bf16", False)
        with options(fold=True, precision="fp16"):
            assert (attack._made().precision, attack._made().fold) == ("fp16", True)
    assert (attack._made().precision, attack._made().fold) == ("torch", True)
    with pytest.raises(ValueError, match="precision: got 'fp8'"), options(precision="fp8"):
        pass
