"""Faces are constructed and called as their originals are: same names, order, kinds and defaults."""

import inspect

import pytest

from .cases import face, original

# As documented; checked where the library is not installed, too. The object itself comes first in a method.
TORCHATTACKS = {
    "VANILA": "model",
    "FGSM": "model, eps=8/255",
    "FFGSM": "model, eps=8/255, alpha=10/255",
    "BIM": "model, eps=8/255, alpha=2/255, steps=10",
    "RFGSM": "model, eps=8/255, alpha=2/255, steps=10",
    "PGD": "model, eps=8/255, alpha=2/255, steps=10, random_start=True",
    "PGDL2": "model, eps=1.0, alpha=0.2, steps=10, random_start=True, eps_for_division=1e-10",
    "EOTPGD": "model, eps=8/255, alpha=2/255, steps=10, eot_iter=2, random_start=True",
    "MIFGSM": "model, eps=8/255, alpha=2/255, steps=10, decay=1.0",
    "TPGD": "model, eps=8/255, alpha=2/255, steps=10",
    "APGD": (
        "model, norm='Linf', eps=8/255, steps=10, n_restarts=1, seed=0, loss='ce', eot_iter=1, rho=0.75, "
        "verbose=False"
    ),
    "APGDT": (
        "model, norm='Linf', eps=8/255, steps=10, n_restarts=1, seed=0, eot_iter=1, rho=0.75, verbose=False, "
        "n_classes=10"
    ),
    "FAB": (
        "model, norm='Linf', eps=8/255, steps=10, n_restarts=1, alpha_max=0.1, eta=1.05, beta=0.9, "
        "verbose=False, seed=0, multi_targeted=False, n_classes=10"
    ),
    "Square": (
        "model, norm='Linf', eps=8/255, n_queries=5000, n_restarts=1, p_init=0.8, loss='margin', "
        "resc_schedule=True, seed=0, verbose=False"
    ),
    "AutoAttack": (
        "model, norm='Linf', eps=8/255, version='standard', n_classes=10, seed=None, verbose=False"
    ),
    "MultiAttack": "attacks, verbose=False",
}
_PGD = "*, rel_stepsize=0.025, abs_stepsize=None, steps=50, random_start=True"
_BIM = "*, rel_stepsize=0.2, abs_stepsize=None, steps=10, random_start=False"
_MIM = "*, momentum=1.0, rel_stepsize=0.2, abs_stepsize=None, steps=10, random_start=False"
FOOLBOX = {
    "LinfPGD": "*, rel_stepsize=0.01/0.3, abs_stepsize=None, steps=40, random_start=True",
    "PGD": "*, rel_stepsize=0.01/0.3, abs_stepsize=None, steps=40, random_start=True",
    "L2PGD": _PGD,
    "L1PGD": _PGD,
    "LinfBasicIterativeAttack": _BIM,
    "L2BasicIterativeAttack": _BIM,
    "L1BasicIterativeAttack": _BIM,
    "MIFGSM": _MIM,
    "L2MomentumIterativeFastGradientMethod": _MIM,
    "L1MomentumIterativeFastGradientMethod": _MIM,
    "FGSM": "*, random_start=False",
    "FGM": "*, random_start=False",
    "L1FastGradientAttack": "*, random_start=False",
}
_ART_PGD = (
    "estimator, norm=float('inf'), eps=0.3, eps_step=0.1, decay=None, max_iter=100, targeted=False, "
    "num_random_init=0, batch_size=32, random_eps=False, summary_writer=False, verbose=True"
)
ART = {
    "ProjectedGradientDescentPyTorch": _ART_PGD,
    "ProjectedGradientDescent": _ART_PGD,
    "BasicIterativeMethod": (
        "estimator, eps=0.3, eps_step=0.1, max_iter=100, targeted=False, batch_size=32, verbose=True"
    ),
    "MomentumIterativeMethod": (
        "estimator, norm=float('inf'), eps=0.3, eps_step=0.1, decay=1.0, max_iter=100, targeted=False, "
        "batch_size=32, verbose=True"
    ),
    "FastGradientMethod": (
        "estimator, norm=float('inf'), eps=0.3, eps_step=0.1, targeted=False, num_random_init=0, "
        "batch_size=32, minimal=False, summary_writer=False"
    ),
}
CLEVERHANS = {
    "projected_gradient_descent": (
        "model_fn, x, eps, eps_iter, nb_iter, norm, clip_min=None, clip_max=None, y=None, targeted=False, "
        "rand_init=True, rand_minmax=None, sanity_checks=True"
    ),
    "fast_gradient_method": (
        "model_fn, x, eps, norm, clip_min=None, clip_max=None, y=None, targeted=False, sanity_checks=False"
    ),
}
AUTOATTACK = {
    "AutoAttack": (
        "model, norm='Linf', eps=.3, seed=None, verbose=True, attacks_to_run=[], version='standard', "
        "is_tf_model=False, device='cuda', log_path=None"
    )
}
TABLES = {
    "autoattack": AUTOATTACK,
    "torchattacks": TORCHATTACKS,
    "foolbox": FOOLBOX,
    "art": ART,
    "cleverhans": CLEVERHANS,
}
ALL = [(library, name) for library, table in TABLES.items() for name in table]

# Methods that all the attacks of a library have.
METHODS = {
    "torchattacks": (
        "__call__",
        "forward",
        "get_least_likely_label",
        "get_logits",
        "get_mode",
        "get_output_with_eval_nograd",
        "get_random_target_label",
        "get_target_label",
        "inverse_normalize",
        "load",
        "normalize",
        "save",
        "set_device",
        "set_mode_default",
        "set_mode_targeted_by_function",
        "set_mode_targeted_by_label",
        "set_mode_targeted_least_likely",
        "set_mode_targeted_random",
        "set_model",
        "set_model_training_mode",
        "set_normalization_used",
        "to_type",
    ),
    "foolbox": ("__call__", "run", "repeat"),
    "art": ("generate", "set_params"),
}


def shape(function, skip=()):
    """Name, kind and default of each argument."""
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters if p.name not in skip]


def written(arguments):
    return shape(eval(f"lambda {arguments}: None"))


def found(library, name):
    """foolbox has its attacks in a module of their own."""
    return getattr(library.attacks if "foolbox" in library.__name__ else library, name)


@pytest.mark.parametrize(("library", "name"), ALL)
def test_as_documented(library, name):
    assert shape(found(face(library), name)) == written(TABLES[library][name])


@pytest.mark.parametrize(("library", "name"), ALL)
def test_as_installed(library, name):
    theirs, ours = found(original(library), name), found(face(library), name)
    assert shape(ours) == shape(theirs)
    assert ours.__name__ == theirs.__name__


def undecorated(method):
    """What torchattacks' decorator, which takes anything, calls."""
    arguments = [name for name, *_ in shape(method)]
    return (
        inspect.getclosurevars(method).nonlocals["func"]
        if arguments == ["self", "args", "kwargs"]
        else method
    )


@pytest.mark.parametrize(("library", "name"), [(lib, n) for lib, n in ALL if lib in METHODS])
def test_methods_as_installed(library, name):
    theirs, ours = found(original(library), name), found(face(library), name)
    for method in METHODS[library]:
        expected = shape(undecorated(getattr(theirs, method)))
        if (library, method) == ("art", "generate"):  # wrapped: the signature is in the base class
            expected = written("self, x, y=None, **kwargs")
        assert shape(getattr(ours, method)) == expected, method


def test_autoattacks_methods_as_documented():
    kind = face("autoattack").AutoAttack
    evaluation = "self, x_orig, y_orig, bs=250, return_labels=False"
    assert shape(kind.run_standard_evaluation) == written(f"{evaluation}, state_path=None")
    assert shape(kind.run_standard_evaluation_individual) == written(evaluation)
    assert shape(kind.clean_accuracy) == written("self, x_orig, y_orig, bs=250")
    assert shape(kind.set_version) == written("self, version='standard'")
    assert shape(kind.get_logits) == written("self, x")
    assert shape(kind.get_seed) == written("self")


def test_foolbox_model_and_criteria():
    theirs, ours = original("foolbox"), face("foolbox")
    for name in ("PyTorchModel", "Misclassification", "TargetedMisclassification", "accuracy"):
        assert shape(getattr(ours, name)) == shape(getattr(theirs, name))
    transform = ours.PyTorchModel.transform_bounds
    assert shape(transform) == shape(theirs.PyTorchModel.transform_bounds)


@pytest.mark.parametrize("library", TABLES)
def test_every_covered_name_is_in_the_table(library):
    module = face(library).attacks if library == "foolbox" else face(library)
    aliases = {getattr(module, name).__name__ for name in TABLES[library]}
    assert {getattr(module, name).__name__ for name in module.__all__} == aliases


@pytest.mark.parametrize("library", TABLES)
def test_what_is_not_covered_is_refused_by_name(library):
    module = face(library).attacks if library == "foolbox" else face(library)
    with pytest.raises(AttributeError, match="got 'DeepFool', accepted: "):
        _ = module.DeepFool
    assert not hasattr(module, "DeepFool")
