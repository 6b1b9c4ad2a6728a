"""Auto-PGD against its algorithm written out in float64, sample by sample, and against closed forms."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from roli_fast.attacks import APGD, APGDT, PGD, verify
from roli_fast.evaluation import evaluate

from ..selection import slow
from .cases import ascent, projection, sizes
from .test_strength import knapsack, linear  # noqa: F401


@pytest.fixture
def problem(randomize_norms):
    """A curved float64 model, whose loss goes up and down along a run."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, 5))
    with torch.no_grad():
        net[0].weight.mul_(8)
    model = randomize_norms(net).double().eval()
    images = torch.rand(12, 3, 8, 8, dtype=torch.float64)
    return model, images, model(images).argmax(1)


def losses(model, x: Tensor, label: Tensor) -> tuple[float, Tensor, bool]:
    leaf = x.clone().requires_grad_()
    logits = model(leaf[None])
    loss = F.cross_entropy(logits, label[None])
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.item(), gradient, bool(logits.argmax() != label)


def direction(norm: str, gradient: Tensor) -> Tensor:
    return gradient.sign() if norm == "linf" else gradient / gradient.norm()


def one_sample(
    model, clean: Tensor, label: Tensor, start: Tensor, norm: str, eps: float, steps: int
) -> Tensor:
    """Algorithm 1 of Croce and Hein 2020, with checkpoints in whole steps as in the authors' code; where it
    returns the point of the highest loss, a point that fools the model goes first."""

    def inside(z: Tensor) -> Tensor:
        return projection(norm, z[None], clean[None], sizes(eps, clean[None]), 0, 1)[0]

    period, checks = max(int(0.22 * steps), 1), []
    while sum(checks[-1:]) + period <= steps:
        checks.append(sum(checks[-1:]) + period)
        period = max(period - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))

    x, previous = start, start
    loss, gradient, fooled = losses(model, x, label)
    best, best_loss, best_gradient, best_fooled = x, loss, gradient, fooled
    size, last_size, last_best, rises, since = 2 * eps, 2 * eps, loss, 0, 0
    for step in range(steps):
        moved = inside(x + size * direction(norm, gradient))
        alpha = 1.0 if step == 0 else 0.75
        x, previous = inside(x + alpha * (moved - x) + (1 - alpha) * (x - previous)), x
        before = loss
        loss, gradient, fooled = losses(model, x, label)
        rises, since = rises + (loss > before), since + 1
        if (fooled, loss) > (best_fooled, best_loss):
            best, best_loss, best_gradient, best_fooled = x, loss, gradient, fooled
        if step + 1 in checks:
            halved = rises <= 0.75 * since or (
                size == last_size and best_loss <= last_best and step + 1 > min(checks)
            )
            last_size, last_best, rises, since = size, best_loss, 0, 0
            if halved:
                size, x, gradient = size / 2, best, best_gradient
    return best


def one_sample_l1(
    model, clean: Tensor, label: Tensor, start: Tensor, eps: float, steps: int, lo: float, hi: float
) -> Tensor:
    """L1-APGD of Croce and Hein 2021: in balls of 3, 2 and 1 eps, for 30, 30 and 40 % of the steps, a ball's
    last leading from its best point into the next; only what fools within eps counts as such."""

    def inside(z: Tensor, radius: float) -> Tensor:
        z_in_box = z.clamp(lo, hi)  # to the last bit: what is at the wall is not to move on
        if (z_in_box - clean).abs().sum() <= radius:
            return z_in_box
        return projection("l1", z[None], clean[None], sizes(radius, clean[None]), lo, hi)[0]

    def support(z: Tensor) -> int:
        return int((z != clean).sum())

    larger, best = int(0.3 * steps), start
    for radius, length in ((3 * eps, larger), (2 * eps, larger), (eps, steps - 2 * larger)):
        if length == 0:
            continue
        period, moves = max(int(0.04 * length), 1), length if radius == eps else length - 1
        x = best if best is start else inside(best, radius)
        size, moved, best_fooled, best_loss = radius, support(x), False, -torch.inf
        for step in range(moves + 1):
            loss, gradient, fooled = losses(model, x, label)
            if (fooled and radius == eps, loss) > (best_fooled, best_loss):
                best, best_fooled, best_loss, best_gradient = x, fooled and radius == eps, loss, gradient
            if step == moves:
                break
            if step > 0 and step % period == 0:
                before, moved = moved, support(best)
                size = radius if moved < 0.95 * before else max(size / 1.5, radius / 10)
                if moved < 0.95 * before:
                    x, gradient = best, best_gradient
            at_the_wall = torch.where(gradient > 0, x >= hi, x <= lo)  # and on its way out of the box
            sparsity = moved / clean.numel() / 1.5
            way = ascent("l1", (gradient * ~at_the_wall)[None], sizes(size, clean[None]), sparsity)[0]
            x = inside(x + way, radius)
    return best


class Noted(APGD):
    """Takes down where it starts."""

    def begin(self, ascent, batch):
        state = super().begin(ascent, batch)
        vars(self)["starts"] = state.adv.clone()
        return state


@pytest.mark.parametrize("steps", [1, 7, 50, *slow(100)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_algorithm(problem, norm, steps):
    model, images, labels = problem
    eps = {"linf": 0.01, "l2": 0.2}[norm]
    attack = Noted(norm, eps, steps, fold=False)
    result = attack.run(model, images, labels)
    expected = [
        one_sample(model, image, label, start, norm, eps, steps)
        for image, label, start in zip(images, labels, attack.starts, strict=True)
    ]
    torch.testing.assert_close(result.adversarial, torch.stack(expected), rtol=0, atol=1e-9)
    assert result.success.sum() > 0 or steps == 1


@pytest.mark.parametrize("steps", [1, 10, 100])
def test_the_algorithm_in_l1(problem, steps):
    """In 100 steps, 4 % are another period than 8 %. In so many, rounding would decide whether a pixel is at
    its wall: it is far away."""
    count, bounds = (4, (0.0, 1.0)) if steps < 100 else (2, (-20.0, 21.0))
    model, images, labels = (part[:count] if isinstance(part, Tensor) else part for part in problem)
    eps = 2.0
    attack = Noted("l1", eps, steps, bounds=bounds, fold=False)
    result = attack.run(model, images, labels)
    expected = [
        one_sample_l1(model, image, label, start, eps, steps, *bounds)
        for image, label, start in zip(images, labels, attack.starts, strict=True)
    ]
    torch.testing.assert_close(result.adversarial, torch.stack(expected), rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_reaches_the_optimum_of_a_linear_model(linear, norm):  # noqa: F811
    model, images, labels, way = linear
    steepest = way.sign() if norm == "linf" else way / way.norm(dim=1, keepdim=True)
    adversarial = APGD(norm, 0.1)(model, images, labels)
    torch.testing.assert_close(adversarial, images + 0.1 * steepest, rtol=0, atol=1e-6)


@pytest.mark.parametrize("eps", [0.2, 3.0, 12.0])
def test_comes_near_the_knapsacks_optimum_in_l1(linear, eps):  # noqa: F811
    model, images, labels, way = linear
    result = APGD("l1", eps).run(model, images, labels)
    reached = (way * (result.adversarial - images)).sum(1)
    assert (reached > 0.97 * knapsack(way, images, eps)).all()
    assert verify(model, images, result.adversarial, labels, "l1", eps).in_ball.all()


def test_fooled_outside_the_ball_is_not_fooled(linear):  # noqa: F811
    """In L1 the first balls are larger: what fools there, and not within eps, is no success."""
    model, images, labels, way = linear
    logits = model(images).detach()
    margin = logits.gather(1, labels[:, None])[:, 0] - logits.gather(1, 1 - labels[:, None])[:, 0]
    eps = (margin / way.abs().amax(1)).min().item() / 2
    for early_stop in (False, True):
        result = APGD("l1", eps, early_stop=early_stop).run(model, images, labels)
        assert (knapsack(way, images, 3 * eps) > margin).any()
        assert not result.success.any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_leaving_early_changes_no_success(problem, norm):
    model, images, labels = problem
    eps = {"linf": 0.004, "l2": 0.05, "l1": 0.5}[norm]
    whole, stopped = (
        APGD(norm, eps, 30, early_stop=e, generator=torch.Generator().manual_seed(3)).run(
            model, images, labels
        )
        for e in (False, True)
    )
    assert torch.equal(whole.success, stopped.success)
    assert 0 < whole.success.sum() < len(images)
    assert stopped.gradients < whole.gradients == 30 * len(images)


def test_stronger_than_pgd_with_as_many_steps(problem):
    """Where a fixed step overshoots: the loss of every sample, on average."""
    model, images, labels = problem
    apgd = APGD(eps=0.01, steps=50).run(model, images, labels)
    pgd = PGD(eps=0.01, step_size=0.01, steps=50).run(model, images, labels)
    assert apgd.loss.mean() > pgd.loss.mean()


class TestTargets:
    def test_every_class_is_tried(self, problem):
        """A model on which one class alone can be reached: with enough targets it is."""
        weights = torch.zeros(6, 4, dtype=torch.float64)
        weights[5] = 1.0  # the least likely class, and the only one that the input moves
        bias = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6, -1.5], dtype=torch.float64)

        def model(x):
            return F.linear(x, weights, bias)

        images, labels = torch.full((3, 4), 0.5, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
        found = {t: APGDT(eps=0.3, steps=10, targets=t).run(model, images, labels) for t in (4, 5, 9)}
        assert [bool(r.success.all()) for r in found.values()] == [False, True, True]
        assert found[9].gradients == 5 * 10 * 3

    @pytest.mark.parametrize("classes", [2, 3])
    def test_few_classes(self, classes):
        model = nn.Linear(8, classes)
        with pytest.raises(ValueError, match=f"'targeted dlr' for a model of {classes} classes, accepted: 4"):
            APGDT().run(model, torch.rand(2, 8), torch.zeros(2, dtype=torch.int64))

    def test_at_least_as_strong_as_any_single_target(self, problem):
        model, images, labels = problem
        few, many = (APGDT(eps=0.004, steps=20, targets=t, generator=torch.Generator()) for t in (1, 4))
        assert (many.run(model, images, labels).success >= few.run(model, images, labels).success).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0}, "rho: got 0"),
        ({"steps": 0}, "steps: got 0"),
        ({"norm": "l3"}, "norm: got 'l3', accepted: linf, l2, l1"),
        ({"loss": "kl"}, "loss: got 'kl'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        APGD(**options)


def test_an_eps_whose_value_changes(problem):
    """A tensor's value counts when the attack is called."""
    model, images, labels = problem
    eps = torch.tensor(0.001, dtype=torch.float64)
    attack = APGD(eps=eps, steps=5)
    small = evaluate(model, [(images, labels)], attack).value
    eps.fill_(0.05)
    assert evaluate(model, [(images, labels)], attack).value < small
