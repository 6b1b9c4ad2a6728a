"""The view computes what the model computes, follows it, and leaves it alone."""

from typing import ClassVar

import pytest
import timm
import torch
from torch import nn

from roli_fast.attacks import PGD
from roli_fast.engine import AttackView
from roli_fast.models import Normalized
from roli_fast.training import Recipe
from roli_fast.training.attack import fastest_precision

from ..selection import few
from .cases import assert_same_logits, logits, plain, through


class TwoReaders(nn.Module):
    """A convolution whose output goes to a BatchNorm and elsewhere."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        x = self.conv(x)
        return self.head((self.norm(x) + x).mean((2, 3)))


class CalledTwice(nn.Module):
    def __init__(self, norm_twice: bool):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.other = nn.Identity() if norm_twice else nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 5)
        self.norm_twice = norm_twice

    def forward(self, x):
        if self.norm_twice:
            x = self.norm(self.b(self.norm(self.a(x))))
        else:
            x = self.other(self.a(self.norm(self.a(x))))
        return self.head(x.mean((2, 3)))


class ReadsTheWeight(nn.Module):
    """Uses the convolution's weight besides calling it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)) + self.conv.weight.sum())


class Branches(nn.Module):
    """Cannot be traced: its path depends on values."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        x = self.norm(self.conv(x)).mean((2, 3))
        return self.head(x if x.sum() > 0 else -x)


def tied() -> nn.Module:
    first, second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
    second.weight = first.weight
    return nn.Sequential(
        first, nn.BatchNorm2d(3), second, nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def hooked(pre: bool) -> nn.Module:
    model = plain()
    if pre:
        model[1].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    else:
        model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    return model


def without_statistics() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


SWIN = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}


TIMM = [
    ("resnet18", {}),
    ("resnet18", {"act_layer": nn.SiLU}),
    ("resnet26d", {}),
    ("convnext_atto", {}),
    ("efficientnet_b0", {}),
    ("mobilenetv3_small_050", {}),
    ("vit_tiny_patch16_224", {"img_size": 64, "depth": 3}),
    ("swin_tiny_patch4_window7_224", SWIN),
]


@pytest.mark.parametrize(("subject", "half_trained"), few(TIMM, [False, True]))
def test_logits_of_timm_models(subject, half_trained, randomize_norms):
    name, options = subject
    model = timm.create_model(name, num_classes=7, **options)
    model = Normalized(randomize_norms(model), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).train()
    if half_trained:
        model.model.eval()
    images = torch.rand(2, 3, 64, 64)
    view = AttackView(model)
    assert_same_logits(view, model, images)
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert len(view.report.folded) == norms  # these models hide no BatchNorm from tracing
    assert not view.report.left
    assert view.report.note is None
    assert 0 <= view.report.moved < 1e-4


def test_folding_is_exact_in_float64(convnet):
    model = convnet.double()
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    view = AttackView(model)
    torch.testing.assert_close(through(view, images), logits(model, images), rtol=1e-12, atol=1e-12)
    assert view.report.folded == {"1": "0", "4": "3"}


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (TwoReaders, {"norm": "used elsewhere"}),
        (lambda: CalledTwice(norm_twice=True), {"norm": "called 2 times"}),
        (lambda: CalledTwice(norm_twice=False), {"norm": "used elsewhere", "other": "used elsewhere"}),
        (ReadsTheWeight, {"norm": "shared"}),
        (Branches, {"norm": "cannot be traced"}),
        (tied, {"1": "shared", "3": "shared"}),
        (lambda: hooked(pre=True), {"1": "hook"}),
        (lambda: hooked(pre=False), {"1": "hook"}),
        (without_statistics, {"1": "no running statistics"}),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 5)),
            {"1": "follows a Flatten"},
        ),
    ],
)
def test_what_is_not_proven_is_left_and_reported(make, left, randomize_norms):
    model = randomize_norms(make())
    images = torch.rand(4, 3, 8, 8)
    view = AttackView(model)
    torch.testing.assert_close(through(view, images), logits(model, images), rtol=1e-4, atol=1e-5)
    assert view.report.left.keys() == left.keys()
    for name, reason in left.items():
        assert reason in view.report.left[name]


def test_the_first_batch_can_veto_a_fold(monkeypatch, convnet, batch):
    from roli_fast.engine.folding import FoldedLayers

    exact = FoldedLayers.take_over

    def inexact(folds):
        exact(folds)
        for tensor in folds.parameters():
            tensor.data.add_(0.1)

    monkeypatch.setattr(FoldedLayers, "take_over", inexact)
    view = AttackView(convnet)
    torch.testing.assert_close(through(view, batch[0]), logits(convnet, batch[0]), rtol=1e-4, atol=1e-5)
    assert not view.report.folded
    assert "moved the first batch's output" in view.report.left["1"]


def test_fold_can_be_declined(convnet, batch):
    view = AttackView(convnet, fold=False)
    torch.testing.assert_close(through(view, batch[0]), logits(convnet, batch[0]), rtol=1e-5, atol=1e-5)
    assert not view.report.folded


def test_a_subclass_of_normalized_may_do_otherwise(batch):
    class Inverted(Normalized):
        def forward(self, images):
            return super().forward(1 - images)

    model = Inverted(plain(), (0.5,) * 3, (0.2,) * 3)
    view = AttackView(model)
    torch.testing.assert_close(through(view, batch[0]), logits(model, batch[0]), rtol=1e-4, atol=1e-5)


def test_a_model_that_no_copy_stands_for_runs_as_it_is(batch):
    class Counting(nn.Module):
        copies = 0

        def __init__(self):
            super().__init__()
            self.net, self.sign = plain(), 1.0

        def __deepcopy__(self, memo):
            other = Counting()
            other.load_state_dict(self.state_dict())
            other.sign = -1.0
            return other

        def forward(self, x):
            return self.sign * self.net(x)

    model = Counting()
    view = AttackView(model)
    torch.testing.assert_close(through(view, batch[0]), logits(model, batch[0]))
    assert "output differs" in view.report.note
    with pytest.raises(ValueError, match="precision: got 'bf16'"):
        AttackView(model, precision="bf16").prepare(batch[0])


def test_a_model_that_views_its_features_keeps_its_layout(batch):
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, 5)

        def forward(self, x):
            x = self.norm(self.conv(x))
            return self.head(x.view(x.size(0), -1))

    model = Views()
    view = AttackView(model)
    torch.testing.assert_close(through(view, batch[0]), logits(model, batch[0]), rtol=1e-4, atol=1e-5)
    assert view.report.folded == {"norm": "conv"}


def test_bf16_stays_near(convnet, batch):
    view = AttackView(convnet, precision="bf16")
    x = view.prepare(batch[0])
    assert x.dtype == torch.bfloat16
    assert x.is_contiguous(memory_format=torch.channels_last)
    expected = logits(convnet, batch[0])
    torch.testing.assert_close(view(x).float(), expected, rtol=0.1, atol=0.1)


def test_bf16_normalises_before_it_casts(convnet, batch):
    """(image - mean) / std in float32, then the cast; not a cast image that is normalised in bf16."""
    x = AttackView(convnet, precision="bf16").prepare(batch[0])
    mean, std = convnet.mean[:, None, None], convnet.std[:, None, None]
    assert torch.equal(x, ((batch[0] - mean) / std).bfloat16())


def test_an_unfolded_norm_stays_in_float32():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    view = AttackView(model, precision="bf16")
    view.prepare(torch.rand(2, 3, 8, 8))
    assert view._copy.module[0].weight.dtype == torch.float32
    assert view._copy.module[1].weight.dtype == torch.bfloat16


def test_wrappers_are_taken_off(batch):
    model = plain().eval()
    expected = logits(model, batch[0])
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        view = AttackView(wrapped)
        torch.testing.assert_close(through(view, batch[0]), expected, rtol=1e-4, atol=1e-5)
        assert view.report.folded == {"1": "0"}


def test_what_cannot_be_copied_runs_as_it_is(batch):
    class Uncopyable(nn.Sequential):
        def __deepcopy__(self, memo):
            raise TypeError("no copies")

    model = Uncopyable(*plain()).train()
    view = AttackView(model)
    torch.testing.assert_close(through(view, batch[0]), logits(model, batch[0]))
    assert "no copies" in view.report.note
    assert model.training
    with pytest.raises(ValueError, match=r"precision: got 'bf16'.*accepted: fp32"):
        AttackView(model, precision="bf16")


def test_a_plain_callable_runs_as_it_is(batch):
    view = AttackView(lambda x: x.flatten(1)[:, :5])
    assert torch.equal(through(view, batch[0]), batch[0].flatten(1)[:, :5])
    assert view.classes == 5


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (
            lambda x: x.flatten(1)[:2],
            r"its output for 4 images is of dtype torch.float32 and shape \(2, 192\)",
        ),
        (lambda x: x.sum(), r"its output for 4 images is of dtype torch.float32 and shape \(\)"),
        (lambda x: x.flatten(1).argmax(1), "its output for 4 images is of dtype torch.int64"),
        (lambda x: (x.flatten(1),), r"got a tuple for output=None.* such as output=0"),
        (lambda x: {"logits": x.flatten(1)}, r"got a dict for output=None.* such as output='logits'"),
    ],
)
def test_an_output_without_a_row_per_image_is_refused(output, got):
    with pytest.raises(ValueError, match=f"model: {got}"):
        AttackView(output).prepare(torch.rand(4, 3, 8, 8))


def test_an_unknown_precision_is_refused(convnet):
    with pytest.raises(ValueError, match="precision: got 'fp8', accepted: fp32, tf32, bf16, fp16"):
        AttackView(convnet, precision="fp8")


def test_a_model_that_was_refused_is_refused_again():
    view = AttackView(nn.Flatten(0))
    for _ in range(2):
        with pytest.raises(ValueError, match="model: its output"):
            view.prepare(torch.rand(4, 3, 8, 8))


# --- outputs that are no plain numbers -------------------------------------------------------------------


class Masked(nn.Module):
    """Leaves classes out, as continual learners do."""

    def __init__(self, value):
        super().__init__()
        self.net, self.value = plain(), value

    def forward(self, x):
        return torch.cat([self.net(x), torch.full((len(x), 1), self.value)], dim=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("value", [-torch.inf, torch.nan])
def test_infinite_logits_are_compared_with_infinite_ones(value, precision, batch):
    view = AttackView(Masked(value), precision=precision)
    view.prepare(batch[0])
    assert view.is_copy
    assert view.report.moved < 0.05


def test_a_model_beyond_the_range_of_fp16_is_refused_every_time(batch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    with torch.no_grad():
        model[1].weight.fill_(1e4)
    view = AttackView(model, precision="fp16")
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"precision: got 'fp16', whose range .* accepted: fp32, tf32, bf16"
        ):
            view.prepare(batch[0])


class Random(nn.Sequential):
    def forward(self, x):
        x = super().forward(x)
        return x + torch.randn_like(x)


def test_a_random_model_runs_as_it_is_and_never_at_half_precision(batch):
    view = AttackView(Random(*plain()))
    view.prepare(batch[0])
    assert "is it random" in view.report.note
    view = AttackView(Random(*plain()), precision="bf16")
    for _ in range(2):  # the second time, too
        with pytest.raises(ValueError, match="precision: got 'bf16', accepted: fp32, tf32, torch, since"):
            view.prepare(batch[0])


class Noisy(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x + 0.5 * torch.randn_like(x))


def replaced(net):
    net.forward = lambda x, forward=net.forward: forward(x)
    return net


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("made", [Noisy, replaced, torch.jit.script, lambda net: lambda x: net(x)])
def test_what_runs_as_it_is_is_attacked_in_its_own_precision(made, dtype, batch):
    torch.manual_seed(0)
    images, labels = batch[0].to(dtype), batch[1]
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).to(dtype).eval()
    attack = PGD(eps=0.05, step_size=0.02, steps=3, eot=2)
    result = attack.run(made(net), images, labels)
    assert "runs as it is" in result.notes[0]
    assert result.adversarial.dtype == dtype
    clean, attacked = (attack.objective(net(x).double(), labels).mean() for x in (images, result.adversarial))
    assert attacked > clean + 0.2


def test_a_model_that_wants_its_weights_in_bf16_runs_as_it_is(batch):
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(192, 5)

        def forward(self, x):
            return self.net(x.flatten(1).to(torch.bfloat16))

    model = Casts().bfloat16()
    view = AttackView(model)
    assert torch.equal(through(view, batch[0]), logits(model, batch[0]))
    assert "a copy fails (RuntimeError: mat1 and mat2" in view.report.note


class Island(nn.Sequential):
    """Gives its head float32, as a guard of float32 training under autocast does."""

    def forward(self, x):
        *body, head = self
        for layer in body:
            x = layer(x)
        return head(x.float())


def test_a_model_with_an_island_of_float32_is_refused_at_half_precision(batch):
    attack = PGD(steps=1, precision="bf16")
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"precision: got 'bf16', accepted: fp32, tf32, torch, since a copy fails"
        ):
            attack(Island(nn.Flatten(), nn.Linear(192, 5)), *batch)
    assert fastest_precision(Island(nn.Flatten(), nn.Linear(192, 5)), *batch, Recipe(1, 1.0)) == "fp32"


class Asserting(nn.Sequential):
    def forward(self, x):
        if not isinstance(x, torch.Tensor):  # as a bare assertion does, to which pytest would give words
            raise AssertionError
        return super().forward(x)


def test_an_error_without_words_costs_no_more_than_its_folds(convnet, batch):
    model = Asserting(*convnet.model).eval()
    view = AttackView(model)
    torch.testing.assert_close(through(view, batch[0]), logits(model, batch[0]), rtol=1e-4, atol=1e-5)
    assert view.is_copy
    assert set(view.report.left.values()) == {"the model cannot be traced: AssertionError"}


class Hungry(nn.Sequential):
    lacks: ClassVar[list[bool]] = []  # by call

    def forward(self, x):
        if self.lacks and self.lacks.pop(0):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


def test_a_lack_of_memory_says_nothing_about_the_model(convnet, batch):
    """It is raised, and forgotten: layout, folds and copy stay."""
    view = AttackView(Hungry(*convnet.model).eval())
    Hungry.lacks += [False, True]  # the model's own call, the copy's
    with pytest.raises(torch.OutOfMemoryError):
        view.prepare(batch[0])
    view.prepare(batch[0])
    assert view.is_copy
    assert view.report.folded
    assert view.memory_format(batch[0]) == torch.channels_last


def test_a_traced_module_is_attacked(batch):
    model = torch.jit.trace(plain().eval(), batch[0])
    view = AttackView(model)
    torch.testing.assert_close(through(view, batch[0]), logits(model, batch[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inside", [False, True])
def test_a_frozen_script_is_attacked(inside, batch):
    """It has no mode: it is in eval mode for good."""
    frozen = torch.jit.freeze(torch.jit.trace(plain().eval(), batch[0]))
    model = nn.Sequential(nn.Identity(), frozen) if inside else frozen
    view = AttackView(model)
    torch.testing.assert_close(through(view, batch[0]), logits(model, batch[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrapped", [torch.autocast("cpu", enabled=False), lambda f: lambda x: f(x)])
def test_a_forward_that_was_replaced_runs_in_eval_mode_and_changes_no_statistics(wrapped, batch):
    """A copy would call the original's own modules: torch.compile and autocast wrap a bound method."""
    model = plain()
    expected = logits(model, batch[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.forward = wrapped(model.forward)
    model.train()
    view = AttackView(model)
    torch.testing.assert_close(through(view, batch[0]), expected, rtol=1e-4, atol=1e-5)
    assert model.training
    assert "it reaches a module that it has not registered there" in view.report.note
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_with_a_tensor_of_five_dimensions_is_copied(batch):
    """Which has no channels-last layout, in which its other layers are."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.deep, self.flat, self.head = nn.Conv3d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 5)

        def forward(self, x):
            return self.head(self.flat(self.deep(x[:, None])[:, :, 0]).relu().mean((2, 3)))

    model = Mixed()
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    assert view.is_copy
    assert view.memory_format(batch[0]) == torch.channels_last


class Part(nn.Module):
    def forward(self, x):
        return self.read(x)


class Reaching(nn.Module):
    """One of its parts computes with another one, to which it has some way."""

    def __init__(self, way):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.part, self.head = Part(), nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
        self.part.read = way(self.stem)

    def forward(self, x):
        return self.head(self.part(x))


REACHED = {}


def by_a_string(stem):
    REACHED["stem"] = stem
    return lambda x: globals()["REACHED"]["stem"](x)


def weights_by_a_string(stem):
    REACHED["conv"] = stem[0]
    return lambda x: nn.functional.conv2d(x, globals()["REACHED"]["conv"].weight)


@pytest.mark.parametrize("way", [by_a_string, weights_by_a_string])
def test_a_copy_that_would_reach_into_the_model_is_none(way):
    """It would run what the model has in the mode that it is in, and change its statistics."""
    torch.manual_seed(0)
    model = Reaching(way).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    attack = PGD(steps=2, random_start=False)
    found = attack.run(model, images, labels)
    assert any("a copy would compute with some of the model's own tensors" in note for note in found.notes)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_a_feature_extractor_in_train_mode_is_copied(batch):
    """Whose forward torch.fx makes anew each time its mode is set."""
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    model = extraction.create_feature_extractor(net, {"3": "out"}).train()
    view = AttackView(model, precision="bf16", output="out")
    view.prepare(batch[0])
    assert view.is_copy
    assert view.report.folded == {"1": "0"}
    for mode in (False, True):
        view.refresh()
        model.train(mode)
    view.refresh()
    assert view.generation == 1


def test_a_graph_is_compared_by_what_it_computes(batch):
    factors = [lambda x: 1.0 * x, lambda x: -3.0 * x]
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))
    output = next(node for node in model.graph.nodes if node.op == "output")
    with model.graph.inserting_before(output):
        node = model.graph.call_function(factors[0], (output.args[0],))
    output.args = (node,)
    model.recompile()
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    model.recompile()
    view.refresh()
    assert view.generation == 1
    node.target = factors[1]  # under the same name
    model.recompile()
    view.refresh()
    assert_same_logits(view, model, batch[0])
    assert view.generation == 2
