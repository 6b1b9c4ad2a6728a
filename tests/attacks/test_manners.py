"""What other libraries get wrong, for every attack: manners towards the model, the caller and the images."""

import contextlib
import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

from roli_fast.attacks import APGD, APGDT, FAB, FABT, PGD, Attack, Square
from roli_fast.evaluation import evaluate
from roli_fast.models import Normalized

from .cases import ALL, ATTACKS, KINDS, ONE_STEP, SIZES, STRONGER, each, each_attack, each_descent, make

NO_LABELS = ("TPGD", "FeaturePGD")
ORDERS = {"linf": torch.inf, "l2": 2, "l1": 1}


def kind_of(name):
    return name.split("-")[0]


def always_moves(name):
    """Whether it returns changed images where it fools nothing, too."""
    return kind_of(name) not in ("FAB", "FABT", "AutoAttack")


def skip_if_it_keeps_the_best_anyway(name, options):
    if kind_of(name) in STRONGER and "iterate" in options:
        pytest.skip("no option of this attack")


def norm_of(name):
    return name.split("-")[1]


def eps_of(name):
    return SIZES[norm_of(name)][0]


def distance(name, adv, images):
    change = (adv.double() - images.double()).reshape(len(adv), -1)
    return torch.linalg.vector_norm(change, ORDERS[norm_of(name)], dim=1)


def assert_in_ball(name, adv, images, eps, bounds=(0.0, 1.0)):
    """By plain norms, to a unit in the last place of each pixel, and to what sums in float64 round."""
    state = torch.float64 if torch.float64 in (adv.dtype, images.dtype) else torch.float32
    magnitude = torch.maximum(adv.abs(), images.abs()).double()
    rounding = torch.finfo(state).eps * distance(name, magnitude, torch.zeros_like(magnitude))
    rounding = rounding + eps * images[0].numel() ** 0.5 * torch.finfo(torch.float64).eps
    lo, hi = torch.tensor(bounds, dtype=state).tolist()
    assert adv.isfinite().all()
    assert ((adv >= lo) & (adv <= hi)).all()
    assert (distance(name, adv, images) <= eps + rounding).all()


# --- the model ---------------------------------------------------------------------------------------------


@each(ALL, way=["call", "run", "best"])
def test_the_model_is_left_alone(name, way, convnet, batch):
    """Gradients, modes (a frozen BatchNorm's too), requires_grad, parameters and statistics."""
    net = convnet.train().model
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[8].weight.grad = torch.ones_like(net[8].weight)
    modes = [m.training for m in convnet.modules()]
    wants = [p.requires_grad for p in convnet.parameters()]
    before = {k: t.clone() for k, t in convnet.state_dict().items()}
    versions = [t._version for t in convnet.state_dict().values()]
    attack = make(name, **({"iterate": "best"} if way == "best" and kind_of(name) not in STRONGER else {}))
    attack.run(convnet, *batch) if way == "run" else attack(convnet, *batch)
    assert [m.training for m in convnet.modules()] == modes
    assert [p.requires_grad for p in convnet.parameters()] == wants
    assert all(torch.equal(t, before[k]) for k, t in convnet.state_dict().items())
    assert [t._version for t in convnet.state_dict().values()] == versions
    assert (net[8].weight.grad == 1).all()
    assert sum(p.grad is not None for p in convnet.parameters()) == 1


@each_attack
def test_a_model_in_train_mode_is_attacked_in_eval_mode(name, convnet, batch):
    def run():
        return make(name, generator=torch.Generator())(convnet, *batch)

    assert torch.equal(run(), (convnet.eval(), run())[1])


@each_descent
def test_the_model_is_left_alone_where_the_attack_fails(name, convnet, batch):
    def fails(module, inputs):
        if torch.is_grad_enabled():
            raise RuntimeError("broken")

    convnet.model[3].register_forward_pre_hook(fails)
    modes = [m.training for m in convnet.modules()]
    with pytest.raises(RuntimeError, match="broken"):
        make(name)(convnet, *batch)
    assert [m.training for m in convnet.modules()] == modes
    assert torch.is_grad_enabled()


@each_attack
def test_training_goes_on_between_attacks(name, convnet, batch):
    """An attack in the midst of a forward and its backward disturbs neither."""
    images, labels = batch
    convnet.model[7].p = 0.0
    loss = nn.functional.cross_entropy(convnet(images), labels)
    make(name)(convnet, images, labels)
    loss.backward()
    assert all(p.grad is not None for p in convnet.parameters())


# --- the caller's modes ------------------------------------------------------------------------------------


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


@each(ALL, mode=[torch.no_grad, torch.inference_mode, autocast])
def test_every_mode_of_the_caller(name, mode, convnet, batch):
    def run(*batch):
        return make(name, generator=torch.Generator()).run(convnet, *batch).adversarial

    expected = run(*batch)
    with mode():
        enabled = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()
        made_here = tuple(t.clone() for t in batch)
        found = run(*made_here)
        if enabled[1] and not always_moves(name):  # what the model says in bf16 guides the search
            assert_in_ball(name, found, batch[0], eps_of(name))
        else:
            assert torch.equal(found, expected)
        assert enabled == (
            torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled(),
        )  # fmt: skip
    assert torch.equal(run(*batch), expected)


@each_attack
def test_the_result_is_the_callers(name, convnet, batch):
    images = batch[0].clone().requires_grad_()
    kept = batch[0].clone()
    with torch.inference_mode():
        adv = make(name)(convnet, images, batch[1])
    assert not adv.requires_grad
    assert not adv.is_inference()
    assert images.grad is None
    assert torch.equal(images, kept)
    adv.requires_grad_().mul(2).sum().backward()
    with torch.no_grad():
        adv.zero_()
    assert torch.equal(images, kept)


@each_attack
def test_the_global_generator(name, convnet, batch):
    """Honoured, never seeded anew, and left alone where the attack has one of its own or draws nothing."""

    def run(seed):
        torch.manual_seed(seed)
        adv = make(name)(convnet, *batch)
        return adv, torch.rand(3)

    (first, after), (second, again), (other, _) = run(5), run(5), run(6)
    draws = kind_of(name) not in ("FGSM", "MIFGSM", "FAB", "FABT")  # of one run
    assert torch.equal(first, second)
    assert torch.equal(after, again)
    assert torch.equal(first, other) == (not draws)
    state = torch.get_rng_state()
    make(name, generator=torch.Generator().manual_seed(1))(convnet, *batch)
    assert torch.equal(torch.get_rng_state(), state)


# --- the images --------------------------------------------------------------------------------------------


@each_attack
@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}, {"iterate": "best"}])
def test_layouts(name, options, convnet, batch):
    """The layout is kept, and says nothing about the result."""
    images, labels = batch
    skip_if_it_keeps_the_best_anyway(name, options)

    def run(images):
        return make(name, generator=torch.Generator(), **options)(convnet, images, labels)

    expected = run(images)
    assert expected.is_contiguous()
    channels_last = run(images.to(memory_format=torch.channels_last))
    assert channels_last.stride() == images.to(memory_format=torch.channels_last).stride()
    sliced = torch.cat([images, images], dim=3)[..., :8]
    for other in (channels_last, run(sliced)):
        torch.testing.assert_close(other, expected, rtol=0, atol=1e-6)


@each(ALL, dtype=[torch.bfloat16, torch.float16])
def test_models_and_images_in_half_precision(name, dtype, convnet, batch):
    images, labels = batch[0].to(dtype), batch[1]
    result = make(name).run(convnet.to(dtype), images, labels)
    assert result.adversarial.dtype == dtype
    assert (result.adversarial != images).any() or not always_moves(name)
    assert_in_ball(name, result.adversarial, images, eps_of(name))


@each(ALL, dtype=[torch.bfloat16, torch.float16, torch.float64])
def test_callables_of_the_images_precision(name, dtype, convnet, batch):
    """Are given it, and no other: of a callable nobody knows what it takes."""
    images, labels = batch[0].to(dtype), batch[1]
    net = convnet.eval().to(dtype)

    def model(x):
        assert x.dtype == dtype
        return net(x)

    result = make(name).run(model, images, labels)
    assert result.adversarial.dtype == dtype
    assert (result.adversarial != images).any() or not always_moves(name)
    assert_in_ball(name, result.adversarial, images, eps_of(name))
    if result.success is not None:
        assert torch.equal(result.success, net(result.adversarial).argmax(1) != labels)


@each(KINDS, precision=["tf32", "bf16", "fp16"])
def test_gradients_at_other_precisions(name, precision, convnet, batch):
    """Reach about the same loss."""
    reached = {
        p: make(name, precision=p, generator=torch.Generator()).run(convnet, *batch)
        for p in ("fp32", precision)
    }
    torch.testing.assert_close(reached[precision].loss, reached["fp32"].loss, rtol=0.1, atol=0.05)
    assert_in_ball(name, reached[precision].adversarial, batch[0], eps_of(name))


@each_attack
def test_uint8_images(name, convnet, batch):
    """Are v / 255, for the attack and for the judge."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    for model in (convnet, net):
        images = (batch[0] * 255).to(torch.uint8)
        results = [
            make(name, generator=torch.Generator()).run(model, x, batch[1])
            for x in (images, images.float() / 255)
        ]
        assert torch.equal(results[0].adversarial, results[1].adversarial)
        assert torch.equal(results[0].loss, results[1].loss)
        assert results[0].success is None or torch.equal(results[0].success, results[1].success)
    with pytest.raises(ValueError, match=r"got torch.uint8 with bounds=\(0, 255\), accepted: float images"):
        make(name, bounds=(0, 255)).run(net, images, batch[1])


@each(ALL, shape=[(5,), (5, 7), (5, 3, 4), (5, 2, 3, 4, 3)])
def test_batches_of_any_rank(name, shape):
    linear = nn.Linear(torch.Size(shape).numel() // 5, 4)
    images, labels = torch.rand(shape), torch.randint(0, 4, (5,))
    if kind_of(name) == "Square":
        with pytest.raises(ValueError, match=r"images: got shape .*accepted: \(N, C, H, W\)"):
            make(name)(lambda x: linear(x.reshape(len(x), -1)), images, labels)
        return
    adv = make(name)(lambda x: linear(x.reshape(len(x), -1)).tanh(), images, labels)
    assert adv.shape == images.shape
    assert (adv != images).flatten().any() or not always_moves(name)
    assert_in_ball(name, adv, images, eps_of(name))


@each_attack
def test_an_empty_batch(name, convnet):
    empty = torch.rand(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64)
    assert make(name)(convnet, *empty).shape == (0, 3, 8, 8)
    result = make(name).run(convnet, *empty)
    assert result.loss.shape == (0,)
    assert (result.forwards, result.gradients) == (0, 0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    asked = []
    net.register_forward_hook(lambda *_: asked.append(1))
    make(name).run(net, *empty)
    assert asked == []


@each_descent
def test_a_zero_gradient_moves_nothing(name, batch):
    """A model that is flat has no direction: no NaN, and no step."""

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(5))

        def forward(self, x):
            return x.flatten(1)[:, :5] * 0 + self.shift

    images, labels = batch
    adversarial = make(name)(Flat(), images, labels)
    assert adversarial.isfinite().all()
    if name.split("-")[0] in ("FGSM", "MIFGSM"):
        assert torch.equal(adversarial, images)
    assert_in_ball(name, adversarial, images, eps_of(name))
    if make(name).compares_with_clean:
        assert "images withstood without a gradient" in make(name).run(Flat(), images, labels).notes[0]
    else:  # which is no robust accuracy
        with pytest.raises(ValueError, match="zero or NaN for all 6 images"):
            make(name).run(Flat(), images, labels)


@pytest.mark.parametrize("flat", [6, 3])
@pytest.mark.parametrize("norm", SIZES)
@pytest.mark.parametrize("kind", ["APGD", "APGDT", "FAB", "FABT", "AutoAttack"])
def test_flat_images_do_no_harm(kind, norm, flat, batch):
    """All of them, or the first half: the model is asked about numbers, and the rest is attacked."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))

    class Flat(nn.Module):
        def forward(self, x):
            assert x.isfinite().all()
            logits = net(x)
            constant = 0 * logits + torch.tensor([1.0, 0, 0, 0, 0])
            return torch.where(x[:, :1, 0, 0] < 0.5, constant, logits)

    name, images = f"{kind}-{norm}", batch[0].clone()
    images[:flat, 0, 0, 0], images[flat:, 0, 0, 0] = 0.0, 1.0
    labels = Flat()(images).argmax(1)
    result = make(name).run(Flat(), images, labels, strict=False)
    assert result.loss[result.success].isfinite().all()
    assert_in_ball(name, result.adversarial, images, eps_of(name))
    if kind in ("FAB", "FABT"):
        assert torch.equal(result.adversarial[:flat], images[:flat])
        assert not result.success[:flat].any()
    assert max(stuck for stuck, _ in result.undirected_by_stage.values()) >= flat


@each(ALL, bounds=[(-1.0, 1.0), (0.0, 255.0), (-2.5, -0.5)])
def test_other_bounds(name, bounds, convnet, batch):
    """The attack scales with the box."""
    lo, hi = bounds
    images, labels = batch[0] * (hi - lo) + lo, batch[1]
    model = nn.Sequential(nn.Identity(), convnet)
    model.forward = lambda x: convnet((x - lo) / (hi - lo))
    eps, step_size = (s * (hi - lo) for s in SIZES[norm_of(name)])
    sizes = {"eps": eps} if name[:4] == "FGSM" else {"eps": eps, "step_size": step_size}
    adv = make(name, bounds=bounds, **sizes)(model, images.clamp(lo, hi), labels)
    assert_in_ball(name, adv, images.clamp(lo, hi), eps, bounds)
    assert distance(name, adv, images).max() > eps / 5


@each(ALL, shift=[-1e-3, 1e-3, 100.0])
def test_images_outside_the_bounds_are_refused(name, shift, convnet, batch):
    images = batch[0].clone()
    images[2, 1, 3, 3] = shift if shift < 0 else 1 + shift
    kept = images.clone()
    for call in (make(name), make(name).run):
        with pytest.raises(ValueError, match=r"images: got values in .*bounds=.*(Normalized|images / 255)"):
            call(convnet, images, batch[1])
    assert torch.equal(images, kept)


@each_attack
def test_eps_per_sample(name, convnet, batch):
    share = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    eps, step_size = (s * share for s in SIZES[norm_of(name)])
    sizes = {"eps": eps} if name[:4] == "FGSM" else {"eps": eps, "step_size": step_size}
    adv = make(name, **sizes)(convnet, *batch)
    assert torch.equal(adv[0], batch[0][0])
    assert_in_ball(name, adv, batch[0], eps)
    moved = distance(name, adv, batch[0])
    assert (moved[1:] > 0.1 * eps[1:]).all() or not always_moves(name)


@each_attack
@pytest.mark.parametrize("options", [{}, {"iterate": "best"}])
def test_a_result_belongs_to_the_sample(name, options, convnet):
    skip_if_it_keeps_the_best_anyway(name, options)
    model = convnet.double()
    images, labels = torch.rand(9, 3, 8, 8, dtype=torch.float64), torch.randint(0, 5, (9,))
    index = torch.randperm(50)[:9]

    def run(rows):
        attack = make(name, generator=torch.Generator(), **options)
        return attack.run(model, images[rows], labels[rows], index=index[rows]).adversarial

    whole, order = run(slice(None)), torch.randperm(9)
    torch.testing.assert_close(run(order), whole[order])
    torch.testing.assert_close(torch.cat([run(slice(0, 2)), run(slice(2, 9))]), whole)


@each_descent
def test_the_best_iterate_is_each_samples_own(name, convnet, batch):
    """At least as good as the last, for every sample; where the last is best, the same."""
    last, best = (
        make(name, iterate=i, generator=torch.Generator()).run(convnet, *batch) for i in ("last", "best")
    )
    ahead = torch.zeros(6, dtype=torch.bool) if best.success is None else best.success & ~last.success
    assert (ahead | (best.loss >= last.loss - 1e-5)).all()
    assert best.success is None or (best.success | ~last.success).all()
    assert_in_ball(name, best.adversarial, batch[0], eps_of(name))


@pytest.mark.parametrize("name", [n for n in ATTACKS if kind_of(n) not in ("FeaturePGD", *ONE_STEP)])
def test_fooled_samples_leave_the_batch(name, convnet):
    """The model's gradient is asked for ever fewer of them; success is that of the whole run."""
    images, labels = torch.rand(30, 3, 8, 8), torch.randint(0, 5, (30,))
    sizes = []
    convnet.model[0].register_forward_hook(
        lambda module, inputs, output: sizes.append(len(inputs[0])) if inputs[0].requires_grad else None
    )
    options = {"iterate": "best", "steps": 6, "fold": False}
    whole = make(name, generator=torch.Generator(), **options).run(convnet, images, labels)
    assert sizes == [30] * 6
    del sizes[:]
    stopped = make(name, generator=torch.Generator(), early_stop=True, **options).run(convnet, images, labels)
    assert torch.equal(stopped.success, whole.success)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 30 > sizes[-1]
    assert stopped.gradients == sum(sizes)


@pytest.mark.parametrize(
    ("attack", "calls"),
    [
        (PGD(eps=0.2, step_size=0.1, iterate="best", early_stop=True, precision="bf16"), 11),
        (APGD(eps=0.2, steps=10, early_stop=True, precision="bf16"), 11),
        (APGDT(eps=0.2, steps=10, targets=2, early_stop=True, precision="bf16"), 22),
        (FAB(eps=0.2, steps=10, early_stop=True, precision="bf16"), 20),
        (FABT(eps=0.2, steps=10, targets=2, early_stop=True, precision="bf16"), 40),
        (Square(eps=0.2, queries=10, precision="bf16"), 11),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Attack) else "",
)
def test_no_sample_leaves_on_a_copys_word(attack, calls):
    """The model is sure of its class, and not where it computes in half precision: it alone says who is
    fooled, and nobody is, so that all of them take part to the end."""
    net, asked = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), []

    class SureInFloat32(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            logits = self.net(x)
            if x.dtype == torch.bfloat16:
                asked.append(len(x))
                return logits
            return logits + torch.tensor([10.0, 0, 0, 0, 0])

    images, labels = torch.rand(6, 3, 8, 8), torch.zeros(6, dtype=torch.int64)
    result = attack.run(SureInFloat32(), images, labels)
    assert not result.success.any()
    assert asked[-calls:] == [6] * calls
    assert len(asked) == calls + 1  # to see that a copy stands for the model


@each_attack
def test_weights_are_followed(name, convnet, batch):
    attack = make(name, generator=torch.Generator())
    for _ in range(3):
        attack.generator.manual_seed(4)
        fresh = make(name, generator=torch.Generator().manual_seed(4))
        assert torch.equal(attack(convnet, *batch), fresh(convnet, *batch))
        with torch.no_grad():
            for parameter in convnet.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)


@each_attack
def test_labels_are_needed_where_the_loss_wants_them(name, convnet, batch):
    needs = name.split("-")[0] not in NO_LABELS
    with pytest.raises(TypeError, match="labels: got None") if needs else contextlib.nullcontext():
        make(name)(convnet, batch[0])


@each_attack
def test_an_attack_that_is_gone_leaves_no_copy(name, convnet, batch):
    """At once, and not when Python looks for cycles: many a loop makes its attack anew for each batch."""
    attack = make(name)
    attack(convnet, *batch)
    left = [weakref.ref(attack), weakref.ref(attack.view(convnet))]
    gc.collect()
    gc.disable()
    try:
        del attack
        assert [reference() for reference in left] == [None, None]
    finally:
        gc.enable()


@each_attack
def test_nothing_is_kept_alive(name, batch):
    """An attack that outlives its models keeps none of them."""
    attack = make(name)
    for _ in range(3):
        attack(Normalized(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), (0.5,) * 3, (0.2,) * 3), *batch)
    gc.collect()
    assert len(attack._oracles) == 0


def test_a_million_images_are_not_moved_at_once(convnet):
    """A generator of batches is read one by one."""
    alive = []

    def batches():
        for _ in range(4):
            images = torch.rand(5, 3, 8, 8)
            alive.append(images)
            assert len(alive) == 1
            yield images, torch.zeros(5, dtype=torch.int64)
            alive.clear()

    assert len(evaluate(convnet, batches(), PGD(steps=1)).right) == 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_of_another_dtype_than_its_images_is_named(dtype, batch):
    images, labels = batch
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).to(dtype)
    with pytest.raises(
        ValueError, match=f"images: got torch.float32 for a model of {dtype} .* accepted: images"
    ):
        make("PGD-linf").run(model, images, labels)
    assert make("PGD-linf").run(model, images.to(dtype), labels).adversarial.dtype == dtype


def test_a_model_may_be_a_function_of_one_batch(convnet, batch):
    """Such as one in which a mask for each image says what the attack may change: it is asked about all."""
    images, labels = batch
    assert len(images) > 4  # more than are asked about at first
    mask = (torch.rand(len(images), 1, *images.shape[2:]) < 0.5).float()

    def masked(x):
        return convnet.eval()(images + mask * (x - images))

    attack = PGD(eps=0.1, step_size=0.05, steps=2, random_start=False)
    adv = attack(masked, images, labels)
    assert torch.equal(torch.where(mask.bool(), images, adv), images)
    assert (adv != images).flatten(1).any(dim=1).all()
    result = attack.run(masked, images, labels)
    assert torch.equal(result.adversarial, adv)
    assert torch.equal(result.success, convnet(adv).argmax(dim=1) != labels)


def test_a_model_that_fails_fails_as_it_does(batch):
    def broken(x):
        raise RuntimeError(f"{len(x)} are too many")

    with pytest.raises(RuntimeError, match=f"{len(batch[0])} are too many") as caught:
        PGD(steps=1)(broken, *batch)
    assert caught.value.__context__ is None


def test_torch_compile_leaves_an_attack_out_of_its_graphs(convnet, batch):
    images, labels = batch
    attack = PGD(steps=2, random_start=False)
    expected = attack(convnet.eval(), images, labels)
    compiled = torch.compile(convnet, backend="eager")
    step = torch.compile(lambda x, y: 1 - attack(compiled, x, y), backend="eager")
    for _ in range(2):  # the copy that the attack keeps was no stranger to torch.compile the second time
        assert torch.equal(step(images, labels), 1 - expected)


def test_an_attack_does_not_load_torchs_compiler():
    """Which takes seconds."""
    code = (
        "import sys, torch; from roli_fast.attacks import PGD;"
        "PGD(steps=1)(torch.nn.Linear(3, 2), torch.rand(4, 3), torch.arange(4) % 2);"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
