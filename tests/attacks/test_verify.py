"""The judge: NaN, box, ball, prediction."""

import pytest
import torch
from torch import nn

from roli_fast.attacks import FGSM, verify

EPS = 8 / 255


@pytest.fixture
def judged():
    """An identity model on four 'classes': the largest pixel is the class."""
    clean = torch.tensor([[0.9, 0.2, 0.3, 0.4]]).repeat(6, 1)
    return nn.Identity(), clean, torch.zeros(6, dtype=torch.int64)


def test_each_check_by_itself(judged):
    model, clean, labels = judged
    adv = clean.clone()
    adv[1] = torch.tensor([0.1, 0.9, 0.3, 0.4])  # fools the model, but left the ball
    adv[2, 1] = torch.nan
    adv[3, 1] = -0.001  # left the box
    adv[4, 0] -= EPS
    result = verify(model, clean, adv, labels, "linf", EPS)
    assert result.finite.tolist() == [True, True, False, True, True, True]
    assert result.in_box.tolist() == [True, True, False, False, True, True]
    assert result.in_ball.tolist() == [True, False, False, False, True, True]
    assert result.prediction.tolist() == [0, 1, 0, 0, 0, 0]
    assert not result.success.any()
    assert result.distance[4].item() == pytest.approx(EPS, abs=1e-7)
    wide = verify(model, clean, adv, labels, "linf", 1.0)
    assert wide.success.tolist() == [False, True, False, False, False, False]


def test_targeted(judged):
    model, clean, labels = judged
    target = torch.full_like(labels, 1)
    adv = clean.clone()
    adv[0, 1] = 0.95
    result = verify(model, clean, adv, target, "linf", 1.0, targeted=True)
    assert result.success.tolist() == [True, False, False, False, False, False]


@pytest.mark.parametrize("clean", [0.0, 0.1, 0.5, 250 / 255])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ball_to_one_unit_in_the_last_place(clean, dtype):
    clean = torch.full((1, 2), clean, dtype=dtype)
    edge = clean + EPS
    above = edge.clone()
    for _ in range(3):
        above = torch.nextafter(above, torch.full_like(above, 9))
    model, labels = nn.Identity(), torch.zeros(1, dtype=torch.int64)
    assert verify(model, clean, edge, labels, "linf", EPS, (0, 2)).in_ball.all()
    assert not verify(model, clean, above, labels, "linf", EPS, (0, 2)).in_ball.any()


@pytest.mark.parametrize(("norm", "far"), [("linf", 4 / 16), ("l2", 5 / 16), ("l1", 7 / 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ball_of_each_norm(norm, far, dtype):
    """By changes of 3 and 4 sixteenths, in numbers without rounding: up to eps, each sample's own, and not a
    ten-thousandth further."""
    clean = torch.tensor([[8, 6, 4]], dtype=dtype).repeat(3, 1) / 16
    adv = clean + torch.tensor([-3, 4, 0], dtype=dtype) / 16
    model, labels = nn.Identity(), torch.zeros(3, dtype=torch.int64)
    shares = torch.tensor([1, 1 - 1e-4, 2], dtype=torch.float64)
    result = verify(model, clean, adv, labels, norm, far * shares)
    assert result.in_ball.tolist() == result.success.tolist() == [True, False, True]
    assert result.distance.tolist() == [far] * 3
    for share, inside in ((1, True), (1 - 1e-4, False)):
        result = verify(model, clean, adv, labels, norm, far * share)
        assert result.in_ball.tolist() == result.success.tolist() == [inside] * 3


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_beside_black_pixels_eps_is_rounded(norm):
    """As a kernel rounds it, and its steps: the pixels' own units in the last place are next to nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 5)).eval()
    clean = torch.zeros(3, 4, 8, 8)
    labels = model(clean).argmax(1)
    for eps in (3e-6, 0.0012664182000042769, *(10**-e for e in torch.linspace(0, 7, 50).tolist())):
        adv = FGSM(norm, eps)(model, clean, labels)
        found = verify(model, clean, adv, labels, norm, eps)
        assert found.in_ball.all()
        beyond = adv * (eps * (1 + 1e-6) / found.distance).reshape(-1, 1, 1, 1)
        assert not verify(model, clean, beyond.float(), labels, norm, eps).in_ball.any()


def test_uint8_clean_and_eps_per_sample(judged):
    model, _, labels = judged
    clean = torch.tensor([[200, 10, 20, 30]], dtype=torch.uint8).repeat(6, 1)
    adv = clean.float() / 255
    adv[:, 1] += 4 / 255
    eps = torch.tensor([0.0, 0.01, 0.02, 0.0, 0.1, 0.2])
    result = verify(model, clean, adv, labels, "linf", eps)
    assert result.in_ball.tolist() == [False, False, True, False, True, True]


def test_the_model_is_asked_in_eval_mode_and_left_in_its_own():
    class Moody(nn.Module):
        def forward(self, x):
            return torch.stack([x.flatten(1).sum(1) * 0, torch.full((len(x),), float(self.training))], dim=1)

    model = Moody().train()
    x, labels = torch.rand(3, 2), torch.zeros(3, dtype=torch.int64)
    assert not verify(model, x, x, labels, "linf", EPS).success.any()
    assert model.training


def test_nan_logits_are_an_error():
    x = torch.rand(3, 4)
    with pytest.raises(ValueError, match=r"logits are NaN for samples \[0, 1, 2\]"):
        verify(lambda x: x / 0 * 0, x, x, torch.zeros(3, dtype=torch.int64), "linf", EPS)


def test_bad_input(judged):
    model, clean, labels = judged
    with pytest.raises(ValueError, match="norm: got 'l7', accepted: linf"):
        verify(model, clean, clean, labels, "l7", EPS)
    with pytest.raises(ValueError, match=r"adv: got torch\.float32 of shape"):
        verify(model, clean, clean[:, :2], labels, "linf", EPS)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"eps": -1.0}, ValueError, "eps: got -1.0"),
        ({"eps": float("nan")}, ValueError, "eps: got nan"),
        ({"bounds": (1, 0)}, ValueError, "bounds: got"),
        ({"clean": torch.ones(6, 4, dtype=torch.int32)}, ValueError, "images: got dtype torch.int32"),
        ({"adv": torch.ones(6, 4, dtype=torch.uint8)}, ValueError, "adv: got torch.uint8"),
        ({"adv": [1.0]}, TypeError, "adv: got a list"),
        ({"labels": torch.zeros(6, 1, dtype=torch.int64)}, ValueError, "labels: got torch.int64 of shape"),
        ({"labels": torch.full((6,), 4)}, ValueError, r"labels: got values in \[4, 4\], accepted: 0 .. 3"),
    ],
)
def test_more_bad_input(judged, change, error, message):
    model, clean, labels = judged
    arguments = {"clean": clean, "adv": clean, "labels": labels, "norm": "linf", "eps": EPS} | change
    with pytest.raises(error, match=message):
        verify(model, **arguments)


def test_any_rank():
    for shape in ((3,), (3, 2), (3, 1, 2, 2)):
        x = torch.rand(shape)
        labels = torch.zeros(3, dtype=torch.int64)
        result = verify(lambda x: x.reshape(3, -1)[:, :1].expand(3, 2), x, x, labels, "linf", 0)
        assert result.in_ball.all()
        assert result.distance.shape == (3,)


def test_each_element_has_its_own_rounding():
    """A large pixel's does not excuse a small one's step."""
    clean = torch.tensor([[1e6, 0.5, 0.1, 0.2]])
    adv = clean.clone()
    adv[0, 1] += 0.05
    checked = verify(nn.Identity(), clean, adv, torch.zeros(1, dtype=torch.int64), "linf", 0.01, (-1e7, 1e7))
    assert checked.in_ball.tolist() == [False]


def test_an_empty_batch_and_no_labels(judged):
    model, clean, labels = judged
    assert verify(model, clean[:0], clean[:0], labels[:0], "linf", EPS).success.shape == (0,)
    with pytest.raises(TypeError, match="labels: got None, accepted: int64"):
        verify(model, clean, clean, None, "linf", EPS)
    with pytest.raises(ValueError, match=r"clean: got shape \(6, 0\), accepted: images with elements"):
        verify(model, clean[:, :0], clean[:, :0], labels, "linf", EPS)
