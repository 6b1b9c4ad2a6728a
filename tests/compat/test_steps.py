"""Without a random start, a face takes its library's steps: those of the library's loop, written out in plain
torch, so that no library has to be installed."""

import dataclasses
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ..attacks.cases import cross_entropy, norm_of
from .cases import ONE_STEP, SEVERAL_STEPS, face

ORDERS = {"l2": 2, "l1": 1}


def unit(norm: str, g: Tensor) -> Tensor:
    """The gradient over its length; in Linf its signs."""
    return g.sign() if norm == "linf" else g / norm_of(g, ORDERS[norm])


def steepest(norm: str, g: Tensor) -> Tensor:
    """The same, in L1 the sign of the largest element alone."""
    if norm != "l1":
        return unit(norm, g)
    flat = g.flatten(1)
    at = flat.abs().argmax(1, keepdim=True)
    return torch.zeros_like(flat).scatter(1, at, flat.gather(1, at).sign()).reshape(g.shape)


def over_l1(norm: str, g: Tensor) -> Tensor:
    return g / norm_of(g, 1)


def into_ball(norm: str, x: Tensor, clean: Tensor, eps: float) -> Tensor:
    """In L2 and L1 along the line to the clean image."""
    d = x - clean
    if norm == "linf":
        return clean + d.clamp(-eps, eps)
    return clean + d * (eps / norm_of(d, ORDERS[norm])).clamp(max=1)


@dataclasses.dataclass(frozen=True)
class Library:
    """What the loops of the libraries differ in.

    direction: of a step. summed: of a gradient, where momentum adds these up.
    ball_first: whether a step is brought into the ball and then into the box, or the other way round.
    """

    direction: Callable[[str, Tensor], Tensor]
    summed: Callable[[str, Tensor], Tensor]
    ball_first: bool


LIBRARIES = {
    "torchattacks": Library(unit, over_l1, ball_first=True),
    "foolbox": Library(unit, unit, ball_first=True),
    "art": Library(steepest, over_l1, ball_first=False),
    "cleverhans": Library(steepest, over_l1, ball_first=False),
}


def least_likely(s) -> Tensor:
    others = s.model(s.images).detach().scatter(1, s.labels[:, None], torch.inf)
    return others.argmin(1)


def following(s) -> Tensor:
    return (s.labels + 1) % 10


def loop(s, library, norm="linf", steps=1, share=1.0, *, momentum=False, targets=None) -> Tensor:
    """Steps of this share of eps; targets: a function of s that gives them."""
    clean, eps = s.images, getattr(s, norm)
    loss = cross_entropy(s.labels if targets is None else targets(s), targets is not None)
    x, total = clean, torch.zeros_like(clean)
    for _ in range(steps):
        leaf = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(s.model(leaf)).sum(), leaf)
        if momentum:
            g = total = total + library.summed(norm, g)
        x = x + share * eps * library.direction(norm, g)
        if library.ball_first:
            x = into_ball(norm, x, clean, eps).clamp(0, 1)
        else:
            x = into_ball(norm, x.clamp(0, 1), clean, eps)
    return x


one = {norm: partial(loop, norm=norm) for norm in ("linf", "l2", "l1")}
ten = {norm: partial(loop, norm=norm, steps=10) for norm in one}
LOOPS = {
    "torchattacks FGSM": one["linf"],
    "foolbox FGSM": one["linf"],
    "foolbox FGM": one["l2"],
    "foolbox L1FastGradientAttack": one["l1"],
    "art FGM": one["linf"],
    "art FGM L2": one["l2"],
    "art FGM L1": one["l1"],
    "cleverhans FGM": one["linf"],
    "cleverhans FGM L2": one["l2"],
    "cleverhans FGM L1": one["l1"],
    "torchattacks BIM": partial(ten["linf"], share=1 / 4),
    "torchattacks BIM targeted": partial(ten["linf"], share=1 / 4, targets=least_likely),
    "torchattacks PGD": partial(ten["linf"], share=1 / 4),
    "torchattacks PGDL2": partial(ten["l2"], share=1 / 4),
    "torchattacks MIFGSM": partial(ten["linf"], share=1 / 4, momentum=True),
    "torchattacks EOTPGD": partial(ten["linf"], share=1 / 4),
    "foolbox LinfPGD": partial(ten["linf"], share=1 / 30),
    "foolbox LinfPGD targeted": partial(ten["linf"], share=1 / 30, targets=following),
    "foolbox L2PGD": partial(ten["l2"], share=1 / 40),
    "foolbox L1PGD": partial(ten["l1"], share=1 / 40),
    "foolbox LinfBIM": partial(ten["linf"], share=1 / 5),
    "foolbox L2BIM": partial(ten["l2"], share=1 / 5),
    "foolbox L1BIM": partial(ten["l1"], share=1 / 5),
    "foolbox MIFGSM": partial(ten["linf"], share=1 / 5, momentum=True),
    "foolbox L2MIFGSM": partial(ten["l2"], share=1 / 5, momentum=True),
    "foolbox L1MIFGSM": partial(ten["l1"], share=1 / 5, momentum=True),
    "art PGD": partial(ten["linf"], share=1 / 4),
    "art PGD targeted": partial(ten["linf"], share=1 / 4, targets=following),
    "art PGD L2": partial(ten["l2"], share=1 / 4),
    "art PGD L1": partial(ten["l1"], share=1 / 4),
    "art BIM": partial(ten["linf"], share=1 / 4),
    "art MIM": partial(ten["linf"], share=1 / 4, momentum=True),
    "art MIM L2": partial(ten["l2"], share=1 / 4, momentum=True),
    "cleverhans PGD": partial(ten["linf"], share=1 / 4),
    "cleverhans PGD targeted": partial(ten["linf"], share=1 / 4, targets=following),
    "cleverhans PGD L2": partial(ten["l2"], share=1 / 4),
}


class InDouble(nn.Module):
    """A curved model in float64, whatever its images are in: ART's are in float32."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(96, 10)).double()
        with torch.no_grad():
            self.net[0].weight.mul_(4)

    def forward(self, x):
        return self.net(x.double())


@pytest.fixture
def s():
    """Images that touch the walls of the box, and balls that reach beyond them."""
    images = (1.4 * torch.rand(8, 1, 6, 6) - 0.2).clamp(0, 1).double()
    labels = torch.randint(0, 10, (8,))
    return SimpleNamespace(model=InDouble().eval(), images=images, labels=labels, linf=0.15, l2=0.8, l1=3.0)


@pytest.mark.parametrize("case", [*ONE_STEP, *SEVERAL_STEPS])
def test_a_face_takes_the_steps_of_its_library(case, s):
    library = case.split()[0]
    if library == "art":
        s.images = s.images.float().double()
    found = {**ONE_STEP, **SEVERAL_STEPS}[case](face(library), s)
    expected = LOOPS[case](s, LIBRARIES[library])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 if library == "art" else 1e-9)
