"""Whatever the images, sizes and settings: what an attack returns lies in ball and box."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from roli_fast.attacks import FGSM, MIFGSM, NFGSM, PGD, TPGD, FeaturePGD, verify

KINDS = (FGSM, PGD, MIFGSM, TPGD, FeaturePGD, NFGSM)
FEATURES = 12


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 4)).double()

    def forward(self, x):
        return self.net(x.double().reshape(len(x), -1))


@st.composite
def calls(draw):
    lo = draw(st.sampled_from([0.0, -1.0, -2.5, 0.1]))
    bounds = (lo, lo + draw(st.sampled_from([1.0, 255.0, 0.3])))
    width = bounds[1] - bounds[0]
    samples = draw(st.integers(1, 4))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    images = torch.rand(samples, 3, 4, generator=random, dtype=torch.float64)
    if draw(st.booleans()):
        images = images.round()  # at the walls
    images = (images * width + lo).to(dtype)
    inside = (images.double() >= lo) & (images.double() <= bounds[1])
    images = torch.where(inside, images, torch.full_like(images, lo + width / 2))
    eps = draw(st.one_of(st.floats(0, 2), st.sampled_from([0.0, 1e-6, 8 / 255, 1e3]))) * width
    if draw(st.booleans()):
        eps = torch.rand(samples, generator=random) * eps
    kind = draw(st.sampled_from(KINDS))
    options = {"norm": draw(st.sampled_from(["linf", "l2", "l1"])), "eps": eps, "bounds": bounds}
    if kind not in (FGSM, NFGSM):
        options["step_size"] = draw(st.floats(0, 1)) * width
        options["steps"] = draw(st.integers(1, 4))
    options["iterate"] = draw(st.sampled_from(["last", "best"]))
    if kind in (PGD, MIFGSM, FGSM):
        options["targeted"] = draw(st.booleans())
        options["early_stop"] = options["iterate"] == "best" and draw(st.booleans())
        options["loss"] = draw(st.sampled_from(["ce", "margin", "dlr"]))
    if kind is PGD:
        options["random_start"] = draw(st.booleans())
    options["sparsity"] = draw(st.floats(0.01, 1))
    return kind, options, images, torch.randint(0, 4, (samples,), generator=random)


@settings(max_examples=2 * settings.default.max_examples, suppress_health_check=list(HealthCheck))
@given(calls())
def test_every_result_verifies(call):
    kind, options, images, labels = call
    torch.manual_seed(0)
    model = Net()
    # Not strict: pixels up to 255 may saturate the model, whose gradient is then zero.
    attack = kind(**options)
    result = attack.run(model, images, labels, strict=False)
    assert result.adversarial.dtype == images.dtype
    targeted = options.get("targeted", False)
    eps, bounds = attack.eps, options["bounds"]
    checked = verify(
        model, images, result.adversarial, labels, options["norm"], eps, bounds, targeted=targeted
    )
    assert checked.finite.all()
    assert checked.in_box.all()
    assert checked.in_ball.all(), (checked.distance, eps)
    assert result.success is None or torch.equal(result.success, checked.success)
