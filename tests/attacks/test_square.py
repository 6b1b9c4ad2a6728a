"""Square: its moves against what they must be, and random search on models whose optimum is known."""

import math

import numpy
import pytest
import torch
from torch import nn

from roli_fast.attacks import Square, verify
from roli_fast.attacks.square_moves import Mass, Stripes, pattern

from .cases import projection, sizes

NORMS = {"linf": 0.1, "l2": 0.8, "l1": 4.0}


def draws(*shape):
    return torch.rand(shape, dtype=torch.float64)


def moves(norm):
    return Stripes((0.0, 1.0)) if norm == "linf" else Mass(norm, (0.0, 1.0))


@pytest.fixture
def images():
    return torch.rand(200, 3, 12, 10, dtype=torch.float64) * 0.6 + 0.2


def test_stripes_and_squares(images):
    """A start of vertical stripes; a move puts one colour per channel into one square, and nothing else."""
    of, eps = moves("linf"), 0.1
    start = of.start(images, eps, draws(200, of.start_draws(images.shape)))
    change = (start - images) / eps
    torch.testing.assert_close(change.abs(), torch.ones_like(change))
    assert (change == change[:, :, :1]).all() or torch.allclose(change, change[:, :, :1].expand_as(change))

    best, side = images.clone(), 4
    moved = of.move(best, images, eps, side, draws(200, of.draws(images.shape)))
    inside = (moved != best).any(1)
    assert (inside.flatten(1).sum(1) == side * side).all()
    rows, columns = inside.any(2), inside.any(1)
    assert (rows.sum(1) == side).all()
    assert (columns.sum(1) == side).all()
    colours = ((moved - best) / eps).masked_select(inside[:, None].expand_as(best)).reshape(200, 3, -1)
    torch.testing.assert_close(colours, colours[..., :1].sign().expand_as(colours))


@pytest.mark.parametrize("norm", NORMS)
def test_squares_lie_anywhere(images, norm):
    """The first and the last row and column included, which a range without its end would never reach."""
    of = moves(norm)
    moved = of.move(images.clone(), images, NORMS[norm], 3, draws(200, of.draws(images.shape)))
    touched = (moved != images).any(1).any(0)
    assert touched.all()


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_mass_stays_on_the_ball(images, norm):
    """From start through moves; away from the box, on its surface."""
    of, eps, order = moves(norm), NORMS[norm], 2 if norm == "l2" else 1
    best = of.start(images, eps, draws(200, of.start_draws(images.shape)))
    for side in (9, 5, 3, 3):
        size = (best - images).flatten(1).norm(p=order, dim=1)
        assert (size <= eps * (1 + 1e-12)).all()
        assert (size > 0.9 * eps).double().mean() > 0.9
        best = of.move(best, images, eps, side, draws(200, of.draws(images.shape)))
        assert ((best >= 0) & (best <= 1)).all()


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 11])
def test_the_pattern(order, side):
    """Of mass one; two halves of opposite sign, each with its peak in the middle."""
    found = pattern(order, side)
    assert (found.abs() ** order).sum() ** (1 / order) == pytest.approx(1)
    half = side // 2
    assert (found[half:] <= 0).all()
    assert (found[:half] >= 0).all()
    if side >= 8:
        middle, centre = half // 2, side // 2
        assert found[:half].max() == found[middle, centre]


def authors_pattern(order, side, lying):
    """In numpy: at distance d from the middle of each half, the sum of 1 / k^2 (in L1 1 / k^4) over k > d."""

    def peak(height, width):
        rows, columns = numpy.indices((height, width))
        far = numpy.maximum(abs(rows - height // 2), abs(columns - width // 2))
        terms = numpy.arange(1, max(height // 2, width // 2) + 2) ** -(2.0 if order == 2 else 4.0)
        found = (terms * (numpy.arange(len(terms)) >= far[..., None])).sum(-1)
        return found / (found**order).sum() ** (1 / order)

    whole = numpy.concatenate([peak(side // 2, side), -peak(side - side // 2, side)])
    whole /= (abs(whole) ** order).sum() ** (1 / order)
    return whole.T if lying else whole


def authors_move(norm, best, clean, eps, to, taken, side, lying, colours):
    """Algorithm 3 of Andriushchenko et al. 2020, in L1 as in Croce and Hein 2021, for an image (C, H, W) in
    numpy. to, taken: top and left of the squares that gain and lose mass."""
    order, channels = (2 if norm == "l2" else 1), len(clean)
    gains, loses = (
        (slice(None), slice(top, top + side), slice(left, left + side)) for top, left in (to, taken)
    )

    def mass(part):  # of each channel
        return (abs(part) ** order).sum((1, 2), keepdims=True) ** (1 / order)

    change = best - clean
    outside = change.copy()
    outside[gains] = outside[loses] = 0
    unused = max(eps**order - (abs(change) ** order).sum(), 0) / channels
    share = (unused + mass(change) ** order - mass(outside) ** order) ** (1 / order)
    new = colours[:, None, None] * authors_pattern(order, side, lying) + change[gains] / mass(change[gains])
    new *= share / mass(new) * (channels if norm == "l1" else 1)
    change[loses] = 0
    change[gains] = new
    if norm == "l2":
        change *= eps / (change**2).sum() ** 0.5
    moved, image = torch.from_numpy(clean + change)[None], torch.from_numpy(clean)[None]
    return projection(norm, moved, image, sizes(eps, image), 0, 1)[0]


@pytest.mark.parametrize(
    ("to", "taken"), [((0, 0), (7, 5)), ((2, 1), (4, 3)), ((4, 2), (4, 2)), ((7, 0), (3, 0))]
)
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_move_of_mass_is_the_authors(images, norm, to, taken):
    """Of squares that overlap or not; from the ball's surface, and from halfway to it."""
    of, eps, side = moves(norm), NORMS[norm], 5
    images = images[:8]
    start = of.start(images, eps, draws(8, of.start_draws(images.shape)))
    for best in (start, (start + images) / 2):
        given = draws(8, of.draws(images.shape))
        places = [12 - side + 1, 10 - side + 1] * 2  # of a square in rows and columns
        given[:, :4] = (torch.tensor([*to, *taken]) + 0.5) / torch.tensor(places)
        moved = of.move(best.clone(), images, eps, side, given)
        colours = torch.where(given[:, 5:] > 0.5, 1.0, -1.0).numpy()
        for i, lying in enumerate((given[:, 4] > 0.5).tolist()):
            expected = authors_move(
                norm, best[i].numpy(), images[i].numpy(), eps, to, taken, side, lying, colours[i]
            )
            torch.testing.assert_close(moved[i], expected, rtol=0, atol=1e-11)


def test_the_square_shrinks_as_the_authors_have_it():
    """Share of pixels after 0, 10, 11, 51 ... of 10,000 queries; spread over fewer where asked."""

    def sides(queries, **options):
        class Noted(Square):
            def _proposal(self, state, query):
                tried = super()._proposal(state, query)
                shares[query] = (tried != state.best).any(1).flatten(1).sum(1).amax().item()
                return tried

        shares = {}
        model = nn.Sequential(nn.Flatten(), nn.Linear(20 * 20, 2))
        x = torch.rand(1, 1, 20, 20) * 0.5 + 0.25
        with torch.no_grad():
            model[1].weight.mul_(1e-6)
            model[1].bias.copy_(torch.tensor([1.0, 0.0]))
        Noted(eps=0.1, queries=queries, **options).run(model, x, torch.zeros(1, dtype=torch.int64))
        return shares

    found = sides(60)
    side = [round(math.sqrt(0.8 / 2**k * 400)) for k in range(3)]
    assert max(found[q] for q in range(11)) == side[0] ** 2
    assert max(found[q] for q in range(11, 51)) == side[1] ** 2
    assert max(found[q] for q in range(51, 60)) == side[2] ** 2
    rescaled = sides(60, rescale_schedule=True)
    assert max(rescaled[q] for q in range(49, 60)) == max(1, round(math.sqrt(0.8 / 2**9 * 400))) ** 2


@pytest.mark.parametrize("norm", NORMS)
def test_the_loss_never_falls(norm):
    """Kept is what raises the margin, of all that the model was asked."""
    asked = []
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 5)).eval()

    def model(x):
        logits = net(x)
        asked.append(logits.detach())
        return logits

    images = torch.rand(4, 3, 10, 10)
    labels = net(images).argmax(1)
    result = Square(norm, NORMS[norm] / 100, queries=30).run(model, images, labels)
    assert not result.success.any()
    seen = torch.stack([logits for logits in asked if len(logits) == 4][-32:-1])  # the start, and the queries
    margins = seen.scatter(2, labels[None, :, None].expand(31, 4, 1), -torch.inf).amax(2)
    margins -= seen.gather(2, labels[None, :, None].expand(31, 4, 1))[..., 0]
    torch.testing.assert_close(result.loss, margins.amax(0))


def test_finds_the_corner_of_a_linear_model():
    """In Linf the optimum of a linear model of a few pixels is found by squares of one pixel."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    images = torch.rand(6, 1, 4, 4, dtype=torch.float64) * 0.4 + 0.3
    labels, eps = model(images).argmax(1), 0.01
    way = model[1].weight[1 - labels] - model[1].weight[labels]
    with torch.no_grad():  # out of reach
        model[1].bias += torch.nn.functional.one_hot(labels[:1], 2)[0] * 5
    same = labels == labels[0]
    result = Square(eps=eps, queries=600, p_init=0.05).run(model, images[same], labels[same])
    corner = images[same] + eps * way[same].sign().reshape(-1, 1, 4, 4)
    torch.testing.assert_close(result.adversarial, corner.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_fooled_samples_leave(norm):
    """No query is spent on them any more, and the model itself says who they are."""
    by_copy, by_model = [], []
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5)).eval()
    own = id(net)  # a hook that reaches the model itself keeps it from being copied
    net.register_forward_hook(
        lambda module, inputs, _: (by_model if id(module) == own else by_copy).append(len(inputs[0]))
    )
    images, eps = torch.rand(30, 3, 10, 10), NORMS[norm] / 2
    labels = net(images).argmax(1)
    by_model.clear()
    result = Square(norm, eps, queries=40).run(net, images, labels)
    queries, judged = by_copy[1:], by_model[1:]  # the first of each confirm that the copy is one
    assert len(queries) == 41
    assert queries == sorted(queries, reverse=True)
    assert queries[0] == 30
    assert queries[-1] < 25
    assert result.forwards == sum(queries) + sum(judged)
    assert result.gradients == 0
    checked = verify(net, images, result.adversarial, labels, norm, eps)
    assert torch.equal(checked.success, result.success)
    assert checked.in_ball.all()
    assert 5 < result.success.sum() < 30


def test_targets():
    net = nn.Sequential(nn.Flatten(), nn.Linear(75, 4)).eval()
    images = torch.rand(12, 3, 5, 5)
    target = (net(images).argmax(1) + 1) % 4
    result = Square(eps=0.3, queries=100, targeted=True).run(net, images, target)
    assert result.success.any()
    assert torch.equal(net(result.adversarial).argmax(1) == target, result.success)
