"""FAB: the way to a hyperplane within a box is exact, and on linear models so is the attack."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from roli_fast.attacks import FAB, FABT, verify
from roli_fast.attacks.hyperplane import to_hyperplane

from .cases import places
from .test_apgd import problem  # noqa: F401

ORDERS = {"linf": torch.inf, "l2": 2, "l1": 1}
DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}


def shortest(norm, x, w, gap):
    """The least norm of a change within [0, 1] along w to gap: by linear programming, or, in L2, by halving
    the multiplier of its optimality condition."""
    n = len(x)
    if norm == "l2":
        low, high = 0.0, 1e6
        for _ in range(200):
            middle = (low + high) / 2
            d = (middle * w * gap.sign()).clamp(-x, 1 - x)
            low, high = (middle, high) if w @ d * gap.sign() < gap.abs() else (low, middle)
        return d.norm().item()
    bound = [(-a, 1 - a) for a in x.tolist()]
    eye = torch.eye(n, dtype=torch.float64)
    sizes = eye if norm == "l1" else torch.ones(n, 1, dtype=torch.float64)
    cost = [0.0] * n + [1.0] * sizes.shape[1]
    above = torch.cat([torch.cat([eye, -sizes], 1), torch.cat([-eye, -sizes], 1)]).numpy()
    found = linprog(
        cost,
        A_ub=above,
        b_ub=[0.0] * (2 * n),
        A_eq=[[*w.tolist(), *[0.0] * sizes.shape[1]]],
        b_eq=[gap.item()],
        bounds=bound + [(0, None)] * sizes.shape[1],
    )
    assert found.success
    return found.fun


@pytest.mark.parametrize("norm", ORDERS)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 12), share=st.floats(0.05, 0.95), up=st.booleans())
def test_the_shortest_way_to_a_hyperplane(norm, seed, size, share, up):
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.rand(size, dtype=torch.float64, generator=generator) for _ in range(2))
    w = w * 2 - 1
    reach = (w * torch.where((w > 0) == up, 1 - x, -x)).sum()
    gap = share * reach
    d = to_hyperplane(norm, x[None], w[None], gap[None], 0.0, 1.0)[0]
    assert ((x + d >= -1e-12) & (x + d <= 1 + 1e-12)).all()
    torch.testing.assert_close(w @ d, gap, rtol=1e-9, atol=1e-9)
    assert d.norm(p=ORDERS[norm]).item() == pytest.approx(shortest(norm, x, w, gap), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("norm", ORDERS)
def test_a_hyperplane_out_of_reach(norm):
    """The corner of the box that comes nearest."""
    x, w = torch.rand(5, 9), torch.randn(5, 9)
    d = to_hyperplane(norm, x, w, torch.full((5,), 1e3), 0.0, 1.0)
    torch.testing.assert_close(x + d, (w > 0).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ORDERS)
def test_a_zero_gradient_leads_nowhere(norm):
    assert not to_hyperplane(norm, torch.rand(3, 4), torch.zeros(3, 4), torch.ones(3), 0.0, 1.0).any()


@pytest.mark.parametrize("norm", ORDERS)
def test_a_way_hangs_on_no_other_samples(norm):
    """Bit for bit, in float32: those that arrive early wait."""
    x, w, gap = torch.rand(40, 200), torch.randn(40, 200) * torch.logspace(-3, 3, 40)[:, None], torch.rand(40)
    whole = to_hyperplane(norm, x, w, gap, 0.0, 1.0)
    alone = [to_hyperplane(norm, x[[i]], w[[i]], gap[[i]], 0.0, 1.0) for i in range(40)]
    assert torch.equal(torch.cat(alone), whole)


@pytest.fixture
def linear():
    """Three classes in float64, and the distance of each image to the nearest boundary in each norm."""
    model = nn.Linear(60, 3, dtype=torch.float64)
    images = torch.rand(16, 60, dtype=torch.float64) * 0.4 + 0.3
    logits = model(images).detach()
    labels, weights = logits.argmax(1), model.weight.detach()
    others = torch.stack([(labels + k) % 3 for k in (1, 2)], dim=1)
    gaps = logits.gather(1, labels[:, None]) - logits.gather(1, others)
    ways = weights[others] - weights[labels][:, None]
    return model, images, labels, gaps, ways


def boundaries(model, x, label, others):
    """How far each of the others' logits is above the label's, and the gradient of that."""
    leaf, found = x.clone().requires_grad_(), []
    logits = model(leaf[None])[0]
    for other in others:
        difference = logits[other] - logits[label]
        found.append((difference.detach(), torch.autograd.grad(difference, leaf, retain_graph=True)[0]))
    return found


def one_sample(model, clean, label, others, start, norm, steps, u, alpha_max, eta, beta):
    """Algorithm 1 of Croce and Hein 2020: the nearest image that fools the model, of those nearer than u (the
    clean image where there is none), and all places at which a gradient is asked for."""
    order, x, kept, visited = ORDERS[norm], start, clean, []
    for _ in range(steps):
        visited.append(x)
        difference, w = min(
            boundaries(model, x, label, others), key=lambda b: b[0].abs() / b[1].flatten().norm(DUAL[norm])
        )

        def shortest(z, x=x, difference=difference, w=w):
            gap = -difference - (w * (z - x)).sum()
            return to_hyperplane(norm, z.reshape(1, -1), w.reshape(1, -1), gap[None], 0, 1).reshape(z.shape)

        here, there = shortest(x), shortest(clean)
        near, far = here.flatten().norm(order), there.flatten().norm(order)
        alpha = min(near / (near + far), alpha_max)
        x = ((1 - alpha) * (x + eta * here) + alpha * (clean + eta * there)).clamp(0, 1)
        if model(x[None]).argmax() != label:
            if (distance := (x - clean).flatten().norm(order)) < u:
                kept, u = x, distance
            x = (1 - beta) * clean + beta * x
    return kept, torch.stack(visited)


@pytest.mark.parametrize(
    "options", [{}, {"alpha_max": 1.0, "eta": 1.2, "beta": 0.5}, {"alpha_max": 0.0, "eta": 1.01}]
)
@pytest.mark.parametrize("norm", ORDERS)
def test_the_algorithm(problem, norm, options):  # noqa: F811
    model, images, labels = problem
    result, asked = places(FAB(norm, torch.inf, steps=8, **options), model, images, labels)
    settings = {"alpha_max": 0.1, "eta": 1.05, "beta": 0.9, **options}
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        others = [c for c in range(5) if c != label]
        kept, visited = one_sample(model, image, label, others, image, norm, steps=8, u=torch.inf, **settings)
        torch.testing.assert_close(asked[i], visited, rtol=0, atol=1e-9)
        torch.testing.assert_close(result.adversarial[i], kept, rtol=0, atol=1e-9)
    assert result.success.any()


@pytest.mark.parametrize("kind", [FAB, FABT])
@pytest.mark.parametrize("norm", ORDERS)
def test_a_restart(problem, norm, kind):  # noqa: F811
    """Half as far from the clean image as the nearest found before, or eps; the algorithm goes on from there,
    towards the likeliest other class in FABT."""
    model, images, labels = problem
    images = 0.5 + 0.4 * (images - 0.5)  # away from the box
    labels = model(images).argmax(1)
    options = {"norm": norm, "steps": 4, **({"targets": 1} if kind is FABT else {})}
    eps = -1.001 * kind(eps=torch.inf, **options).run(model, images, labels).loss.median().item()
    first = kind(eps=eps, **options).run(model, images, labels)
    assert 0 < first.success.sum() < len(images)
    result, asked = places(kind(eps=eps, restarts=2, **options), model, images, labels)
    u = torch.where(first.success, -first.loss, eps)
    starts = asked[:, 4]
    far = (starts - images).flatten(1).norm(ORDERS[norm], dim=1)
    torch.testing.assert_close(far, u / 2)
    likeliest = model(images).topk(2).indices[:, 1:]
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        others = likeliest[i].tolist() if kind is FABT else [c for c in range(5) if c != label]
        kept, visited = one_sample(model, image, label, others, starts[i], norm, 4, u[i], 0.1, 1.05, 0.9)
        torch.testing.assert_close(asked[i, 4:], visited, rtol=0, atol=1e-9)
        expected = first.adversarial[i] if torch.equal(kept, image) else kept
        torch.testing.assert_close(result.adversarial[i], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", [FAB, FABT])
@pytest.mark.parametrize("norm", ORDERS)
def test_the_nearest_boundary_of_a_linear_model(linear, kind, norm):
    """Reached but for the overshoot, by steps that end there."""
    model, images, labels, gaps, ways = linear
    nearest = (gaps / ways.norm(p=DUAL[norm], dim=2)).amin(1)
    result = kind(norm, torch.inf, steps=30, eta=1.001).run(model, images, labels)
    assert result.success.all()
    found = -result.loss
    assert (found >= nearest * (1 - 1e-6)).all()
    box_is_far = found < 0.29 if norm != "l1" else nearest < 0.2
    assert box_is_far.sum() > 1
    assert (found < 1.01 * nearest)[box_is_far].all()
    moved = (result.adversarial - images).norm(p=ORDERS[norm], dim=1)
    torch.testing.assert_close(moved, found)


@pytest.mark.parametrize("kind", [FAB, FABT])
@pytest.mark.parametrize("norm", ORDERS)
def test_half_precision_finds_the_same_distances(linear, kind, norm):
    model, images, labels, *_ = linear
    model, images = model.float(), images.float()
    whole, half = (
        kind(norm, torch.inf, steps=20, precision=p).run(model, images, labels).loss for p in ("fp32", "bf16")
    )
    torch.testing.assert_close(half, whole, rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("norm", ORDERS)
def test_success_is_within_eps(linear, norm):
    model, images, labels, gaps, ways = linear
    nearest = (gaps / ways.norm(p=DUAL[norm], dim=2)).amin(1)
    eps = nearest.median().item()
    for early_stop in (False, True):
        result = FABT(norm, eps, steps=30, eta=1.001, early_stop=early_stop).run(model, images, labels)
        clear = (nearest / eps - 1).abs() > 0.02
        assert torch.equal(result.success[clear], (nearest < eps)[clear])
        checked = verify(model, images, result.adversarial, labels, norm, eps)
        assert torch.equal(checked.success, result.success)
        assert checked.in_ball.all()


def test_standalone_it_goes_on_after_the_first_success(convnet, batch):
    """Nearer and nearer; with early_stop it takes the first within eps, and spends less."""
    images = batch[0]
    labels = convnet.eval()(images).argmax(1)
    first, whole = (FABT(eps=0.5, steps=20, early_stop=e).run(convnet, images, labels) for e in (True, False))
    assert torch.equal(first.success, whole.success)
    assert (whole.loss >= first.loss).all()
    assert (whole.loss > first.loss).any()
    assert first.gradients < whole.gradients


@pytest.mark.parametrize("norm", ORDERS)
def test_restarts_begin_elsewhere(norm):
    """Beside a plateau, on which the gradient leads away."""

    def model(x):
        hill = (x[:, :1] - 0.5).relu() * 40 - 1 - x[:, :1] / 100
        return torch.cat([torch.zeros_like(hill), hill], dim=1)

    images, labels = torch.full((4, 3), 0.5, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    images[:, 0] = 0.49
    one, many = (FAB(norm, 0.2, steps=5, restarts=r).run(model, images, labels) for r in (1, 12))
    assert not one.success.any()
    assert many.success.all()


def test_what_is_misclassified_is_left_as_it_is(convnet, batch):
    images = batch[0]
    labels = (convnet.eval()(images).argmax(1) + 1) % 5
    result = FAB(steps=3).run(convnet, images, labels)
    assert result.success.all()
    assert torch.equal(result.adversarial, images)
    assert result.gradients == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha_max": 1.5}, "alpha_max: got 1.5, accepted: a number >= 0 and up to 1"),
        ({"eta": 0.9}, "eta: got 0.9, accepted: a number >= 1"),
        ({"beta": 0.0}, "beta: got 0.0"),
        ({"steps": -1}, "steps: got -1"),
        ({"precision": "fp16"}, "precision: got 'fp16', accepted: .*loss scaling changes"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        FAB(**options)
