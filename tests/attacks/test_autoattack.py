"""AutoAttack: what it runs, who broke what, what it warns of, and that it is as strong as its parts."""

import pickle

import pytest
import torch
from torch import nn

from roli_fast.attacks import APGD, FAB, FABT, PGD, AutoAttack, verify
from roli_fast.attacks.autoattack import VERSIONS
from roli_fast.evaluation import evaluate

from ..selection import few

QUICK = {"steps": 10, "queries": 20}


@pytest.fixture
def problem(convnet):
    images = torch.rand(24, 3, 8, 8)
    labels = convnet.eval()(images).argmax(1)
    labels[:3] = (labels[:3] + 1) % 5  # wrong when clean
    return convnet, images, labels


@pytest.mark.parametrize(("norm", "version"), few(["linf", "l2", "l1"], VERSIONS))
def test_what_runs_and_who_broke_what(problem, norm, version):
    model, images, labels = problem
    eps = {"linf": 0.004, "l2": 0.05, "l1": 0.6}[norm]
    result = AutoAttack(norm, eps, version, **QUICK).run(model, images, labels)
    assert result.stages == ("clean", *VERSIONS[version])
    assert torch.equal(result.broken_by == 0, torch.arange(24) < 3)
    assert torch.equal(result.success, result.broken_by >= 0)
    assert (result.broken_by > 0).any()
    assert (result.broken_by == -1).any()
    checked = verify(model, images, result.adversarial, labels, norm, eps)
    assert torch.equal(checked.success, result.success)
    untouched = (result.broken_by <= 0).nonzero().flatten()
    assert torch.equal(result.adversarial[untouched], images[untouched])
    assert torch.equal(result.loss > 0, result.success)
    assert result.notes == ()
    for said in ("roli_fast 0.", version, norm, str(eps)):
        assert said in result.label


def test_the_versions_are_the_official_ones():
    def settings(version, norm, name):
        return AutoAttack(norm, version=version)._stages[name]

    assert settings("standard", "linf", "apgd-ce").restarts == 1
    assert settings("standard", "l1", "apgd-ce").restarts == 5
    assert settings("standard", "l2", "apgd-t").targets == settings("standard", "l1", "fab-t").targets == 9
    assert settings("standard", "l1", "apgd-t").targets == 5
    assert settings("plus", "linf", "apgd-dlr").restarts == settings("plus", "linf", "fab").restarts == 5
    assert settings("rand", "linf", "apgd-dlr").eot == 20
    others = AutoAttack(version="rand", attacks=("square", "fab-t")).parts
    assert [part.eot for part in others.values()] == [20, 20]
    for name in VERSIONS["standard"]:
        attack = settings("standard", "linf", name)
        assert attack.early_stop
        assert getattr(attack, "steps", 100) == 100
        assert getattr(attack, "queries", 5000) == 5000


def test_an_attack_sees_only_what_withstood(problem):
    """No gradient is spent on what is wrong already, or broken before."""
    model, images, labels = problem
    asked = []
    model.model[0].register_forward_hook(
        lambda module, inputs, output: asked.append(len(inputs[0])) if inputs[0].requires_grad else None
    )
    result = AutoAttack(eps=0.004, attacks=("apgd-ce", "apgd-t"), fold=False, **QUICK).run(
        model, images, labels
    )
    assert max(asked) == 21
    assert asked == sorted(asked, reverse=True)
    assert sum(asked) == result.gradients


def test_a_result_belongs_to_the_sample(problem):
    """Whatever the batch, its order and the other attacks."""
    model, images, labels = problem
    model, images, key = model.double(), images.double(), torch.tensor([11])
    index = torch.arange(24) + 100

    def run(rows, **options):
        attack = AutoAttack(eps=0.004, **QUICK, **options)
        return attack.run(model, images[rows], labels[rows], index=index[rows], key=key)

    whole, order = run(slice(None)), torch.randperm(24)
    assert torch.equal(run(order).broken_by, whole.broken_by[order])
    torch.testing.assert_close(run(order).adversarial, whole.adversarial[order])
    alone = run(slice(None), attacks=("square",))
    by_square = whole.broken_by == whole.stages.index("square")
    torch.testing.assert_close(alone.adversarial[by_square], whole.adversarial[by_square])


@pytest.mark.parametrize(("classes", "left_out"), [(2, {"apgd-dlr", "apgd-t"}), (3, {"apgd-t"}), (4, set())])
def test_few_classes(classes, left_out):
    """Fewer targets; losses that are not defined are left out, by name."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(27, classes))
    images = torch.rand(8, 3, 3, 3)
    labels = model(images).argmax(1)
    result = AutoAttack(eps=0.01, version="plus", **QUICK).run(model, images, labels)
    assert {note.split(" left out: ")[0] for note in result.notes} == left_out
    assert all(f"and the model has {classes}" in note for note in result.notes)


def test_images_without_squares():
    model = nn.Linear(6, 4)
    images = torch.rand(5, 6)
    result = AutoAttack(eps=0.001, **QUICK).run(model, images, model(images).argmax(1))
    assert result.notes == ("square left out: images of shape (5, 6) have no squares",)


class TestDoubts:
    """What the official implementation warns of."""

    def notes(self, model, images=None, **options):
        images = torch.rand(16, 3, 4, 4) if images is None else images
        with torch.no_grad():
            labels = model(images).argmax(1)
        attack = AutoAttack(eps=0.001, **{**QUICK, "steps": 2, **options})
        return " | ".join(attack.run(model, images, labels).notes)

    @pytest.fixture
    def net(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval()

    def test_none(self, net):
        assert self.notes(net) == ""

    def test_random_outputs(self, net):
        def noisy(x):
            return net(x) + 0.01 * torch.randn(len(x), 5)

        assert 'outputs are random: version="rand"' in self.notes(noisy)
        assert "random" not in self.notes(noisy, version="rand")

    def test_probabilities(self, net):
        assert "outputs are probabilities" in self.notes(nn.Sequential(net, nn.Softmax(1)))

    def test_zero_gradients(self, net):
        """Of all images, which is an error for a single attack, and of some."""

        class Flat(nn.Module):
            def forward(self, x):
                logits = net(x)
                return torch.where(x[:, :1, 0, 0] < 0.5, logits, logits.detach() + 0 * logits)

        images = torch.rand(16, 3, 4, 4)
        images[:, 0, 0, 0] = torch.linspace(0.1, 0.9, 16)
        assert "apgd-ce: 8 of 16 images withstood without a gradient" in self.notes(Flat(), images)
        images[:, 0, 0, 0] = 0.9
        said = self.notes(Flat(), images)
        assert all(f"{name}: 16 of 16" in said for name in ("apgd-ce", "apgd-t", "fab-t"))

    def test_a_saturated_output(self, net):
        """Where DLR is dead, it is named."""
        saturated = nn.Sequential(net, nn.Hardtanh(-1e-6, 1e-6))
        assert "apgd-t: 16 of 16 images withstood without a gradient" in self.notes(saturated)

    def test_optimisation_at_test_time(self, net):
        def purifying(x):
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(net(leaf).logsumexp(1).sum(), leaf)
            return net(x - 0.001 * gradient.sign())

        assert "the model differentiates when it is asked" in self.notes(purifying)

    def test_its_hooks_are_gone_afterwards(self, net):
        import sys

        before = sys.getprofile()
        self.notes(net)
        assert sys.getprofile() is before


def test_one_copy_of_the_model_serves_all(problem):
    model, images, labels = problem
    attack = AutoAttack(eps=0.004, **QUICK)
    attack.run(model, images, labels)
    views = {id(stage.view(model)) for stage in attack._stages.values()} | {id(attack.view(model))}
    assert len(views) == 1
    again = pickle.loads(pickle.dumps(attack))
    assert len({id(stage._views) for stage in again._stages.values()} | {id(again._views)}) == 1
    assert again.label == attack.label


def test_half_precision_counts_only_what_the_model_confirms(problem):
    model, images, labels = problem
    result = AutoAttack(eps=0.004, precision="bf16", **QUICK).run(model, images, labels)
    checked = verify(model, images, result.adversarial, labels, "linf", 0.004)
    assert torch.equal(checked.success, result.success)
    single = AutoAttack(eps=0.004, **QUICK).run(model, images, labels)
    assert (result.success != single.success).sum() <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "fast"}, "version: got 'fast', accepted: standard, plus, rand"),
        ({"attacks": ("pgd",)}, "attacks: got 'pgd', accepted: apgd-ce"),
        ({"attacks": ()}, "attacks: got .*accepted: at least one"),
        ({"attacks": ("square", "square")}, "attacks: got .*each once"),
        ({"norm": "l0"}, "norm: got 'l0'"),
        ({"queries": 0}, "queries: got 0"),
        ({"precision": "fp16"}, "precision: got 'fp16', accepted: fp32, tf32, bf16: loss scaling"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        AutoAttack(**options)


@pytest.mark.parametrize("kind", [PGD, APGD, FAB, FABT, AutoAttack])
def test_a_single_class_is_no_classifier(kind):
    """Named before labels that would fit two."""
    model, batch = nn.Linear(4, 1), (torch.rand(2, 4), torch.tensor([0, 1]))
    for ask in (
        lambda: kind().run(model, *batch),
        lambda: verify(model, batch[0], *batch, "linf", 0.1),
        lambda: evaluate(model, [batch]),
    ):
        with pytest.raises(ValueError, match="model: got 1 class, accepted: 2 or more; output=lambda z"):
            ask()


def test_one_logit_becomes_two_classes_as_the_refusal_says():
    model, batch = nn.Linear(4, 1), (torch.rand(2, 4), torch.tensor([0, 1]))
    result = PGD(output=lambda z: torch.cat([0 * z, z], dim=1)).run(model, *batch)
    assert torch.equal(result.success, (model(result.adversarial)[:, 0] > 0) != batch[1])


@pytest.mark.parametrize("version", VERSIONS)
def test_every_call_of_the_model_is_counted(problem, version):
    """But for the few images that confirm a new view."""
    model, images, labels = problem
    counts = [0, 0]

    def counted(x):
        counts[0] += len(x)
        counts[1] += len(x) if x.requires_grad else 0
        return model(x)

    attack = AutoAttack(eps=0.004, version=version, **QUICK)
    result = attack.run(counted, images, labels)
    confirmed = 4 * (1 + len(attack.attacks))  # a callable gets a view of its own in each
    assert result.forwards == counts[0] - confirmed
    if version != "plus":  # untargeted FAB goes back once per class
        assert result.gradients == counts[1]


def test_fab_alone_finds_what_it_finds_in_the_ensemble(problem):
    model, images, labels = problem
    model, images = model.double(), images.double()
    alone = FAB(eps=0.004, steps=10, early_stop=True).run(model, images, labels)
    inside = AutoAttack(eps=0.004, attacks=("fab",), **QUICK).run(model, images, labels)
    assert torch.equal(alone.success, inside.success)


@pytest.mark.parametrize("eps", [0.0, 1e-9])
def test_a_random_model_is_not_broken_by_its_own_luck(eps):
    """A call in eight is wrong at random, and of a hundred steps' calls nearly surely one; the mean of twenty
    is not."""

    class Noisy(nn.Module):
        def forward(self, x):
            z = x.flatten(1)[:, :4]
            hit = torch.rand(len(z), 1) < 0.125
            return torch.where(hit, z.roll(1, dims=1), z)

    images = torch.full((30, 1, 2, 2), 0.1)
    labels = torch.arange(30) % 4
    images.view(30, 4)[torch.arange(30), labels] = 0.9
    attack = AutoAttack(eps=eps, version="rand", steps=30)
    result = attack.run(Noisy(), images, labels, strict=False)
    assert result.success.double().mean() < 0.1


def test_nothing_that_runs_is_no_robustness():
    images, labels = torch.rand(4, 6), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"attacks: got square left out: .*accepted: one that this model can"
    ):
        AutoAttack(attacks=("square",)).run(nn.Linear(6, 3), images, labels)


def test_no_gradient_in_any_stage_is_an_error_of_evaluate():
    from roli_fast.evaluation import evaluate

    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Softmax(1), nn.Threshold(2.0, 0.0))
    images, labels = torch.rand(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="model: got one whose gradient"):
        evaluate(model, [(images, labels)], AutoAttack(attacks=("apgd-ce",), steps=3))
