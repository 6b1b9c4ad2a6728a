"""Models that return more than logits."""

import collections
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from roli_fast.attacks import PGD, FeaturePGD, predict, verify
from roli_fast.engine import AttackView, select
from roli_fast.evaluation import evaluate

Pair = collections.namedtuple("Pair", ["logits", "features"])


@dataclasses.dataclass
class Answer:
    loss: Tensor | None
    logits: Tensor


class ModelOutput(collections.OrderedDict):
    """As HuggingFace's: keys, attributes and indices."""

    def __getitem__(self, key):
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]

    def __getattr__(self, name):
        try:
            return super().__getitem__(name)
        except KeyError:
            raise AttributeError(name) from None


class Returns(nn.Module):
    def __init__(self, net, pack):
        super().__init__()
        self.net, self.pack = net, pack

    def forward(self, x):
        return self.pack(self.net(x))


PACKS = {
    "tuple": (lambda o: (o, o.sum()), [0, lambda r: r[0]]),
    "last of a list": (lambda o: [o.sum(), o], [-1, 1]),
    "dict": (lambda o: {"aux": -o, "out": o}, ["out", lambda r: r["out"]]),
    "dict of numbers": (lambda o: {3: o}, [3]),
    "named tuple": (lambda o: Pair(o, -o), ["logits", 0]),
    "dataclass": (lambda o: Answer(None, o), ["logits", lambda r: r.logits]),
    "model output": (lambda o: ModelOutput(logits=o, hidden=-o), ["logits", 0, lambda r: r.logits]),
    "tensor": (lambda o: o, [None, lambda r: r]),
}
CASES = [
    pytest.param(pack, output, id=f"{name}-{output if not callable(output) else 'callable'}")
    for name, (pack, outputs) in PACKS.items()
    for output in outputs
]


@pytest.mark.parametrize(("pack", "output"), CASES)
def test_every_face_takes_them(pack, output, convnet, batch):
    images, labels = batch
    model = Returns(convnet, pack)
    plain = PGD(random_start=False, steps=3).run(convnet, images, labels)
    attack = PGD(random_start=False, steps=3, output=output)
    result = attack.run(model, images, labels)
    # Inside another module, the normalisation is the model's and not the kernel's: rounding differs.
    assert (result.adversarial - plain.adversarial).abs().gt(1e-6).double().mean() < 0.01
    assert torch.equal(result.success, plain.success)
    expected = predict(convnet, images)
    assert torch.equal(predict(model, images, output), expected)
    checked = verify(model, images, images, labels, "linf", 0.0, output=output)
    assert torch.equal(checked.prediction, expected.argmax(1))
    assert torch.equal(evaluate(model, [batch], output=output).right, verify_right(convnet, images, labels))
    robust = evaluate(model, [batch], attack)
    assert torch.equal(robust.right, evaluate(convnet, [batch], PGD(random_start=False, steps=3)).right)


def verify_right(model, images, labels):
    return predict(model, images).argmax(1) == labels


def test_features_are_found_too(convnet, batch):
    model = Returns(convnet.model[:7], lambda o: {"features": o})
    adv = FeaturePGD(output="features")(model, batch[0])
    assert (adv - batch[0]).abs().max() > 0.02


@pytest.mark.parametrize(
    ("pack", "output", "message"),
    [
        ("tuple", None, r"got a tuple for output=None.* such as output=0"),
        ("tuple", 2, "got a NoneType for output=2"),
        ("tuple", "logits", "got a NoneType for output='logits'"),
        ("dict", None, "got a dict for output=None.* such as output='out'"),
        ("dict", "logits", "got a dict of 'aux', 'out' for output='logits'"),
        ("dataclass", None, "got a Answer for output=None.* such as output='logits'"),
        ("dataclass", 0, "got a NoneType for output=0"),
        ("dataclass", "loss", "got a NoneType for output='loss'"),
        ("named tuple", None, "got a Pair for output=None.* such as output='logits'"),
        ("model output", None, "got a ModelOutput for output=None.* such as output='logits'"),
    ],
)
def test_what_is_not_there_is_named(pack, output, message, convnet, batch):
    model = Returns(convnet, PACKS[pack][0])
    for ask in (
        lambda: PGD(output=output)(model, *batch),
        lambda: PGD(output=output).run(model, *batch),
        lambda: predict(model, batch[0], output),
        lambda: verify(model, batch[0], batch[0], batch[1], "linf", 0.1, output=output),
        lambda: evaluate(model, [batch], output=output),
    ):
        with pytest.raises(ValueError, match=f"model: {message}"):
            ask()


@pytest.mark.parametrize("output", [1.5, True, ["logits"], b"logits"])
def test_an_output_of_another_type(output):
    for make in (lambda: PGD(output=output), lambda: AttackView(nn.Identity(), output=output)):
        with pytest.raises(TypeError, match=r"output: got a .*, accepted: None, an index, a key"):
            make()


def test_select_of_a_mapping_prefers_its_keys():
    found = torch.rand(2)
    assert select({"keys": found}, "keys") is found
