"""Training learns, with an attack learns to resist it, and keeps what validation chose."""

import pytest
import torch
from torch import nn

from roli_fast.attacks import PGD
from roli_fast.evaluation import evaluate
from roli_fast.training import fit, train_epoch

EPS = 0.25


def problem(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two classes told apart by one strong pixel, or by many weak ones that eps can overturn."""
    labels = torch.randint(0, 2, (n,))
    side = labels[:, None] * 2.0 - 1
    strong = 0.5 + 0.4 * side * (torch.rand(n, 1) < 0.9)
    weak = 0.5 + 0.15 * side.expand(-1, 20)
    images = torch.cat([strong, weak + 0.02 * torch.randn(n, 20)], dim=1).clamp(0, 1)
    return [(images[i : i + 32], labels[i : i + 32]) for i in range(0, n, 32)]


def test_adversarial_training_finds_the_robust_feature():
    train, val = problem(512), problem(256)
    attack = PGD(eps=EPS, step_size=EPS / 2, steps=3)
    robust = {}
    for name, used in (("normal", None), ("adversarial", attack)):
        torch.manual_seed(0)
        model = nn.Linear(21, 2)
        fit(model, train, val, epochs=8, lr=0.05, attack=used, val_attack=used)
        robust[name] = evaluate(model, val, attack).value
    assert robust["adversarial"] > 0.8
    assert robust["normal"] < robust["adversarial"] - 0.2


def test_an_epoch_trains_in_train_mode_and_reports_its_inputs(convnet, batch):
    modes = []
    convnet.model[8].register_forward_hook(lambda module, *_: modes.append(module.training))
    optimizer = torch.optim.SGD(convnet.parameters(), lr=0.1)
    weights = [p.detach().clone() for p in convnet.parameters()]
    epoch = train_epoch(convnet.eval(), [batch], optimizer)
    assert modes == [True]
    assert all(
        not torch.equal(p, w) for p, w in zip(convnet.parameters(), weights, strict=True) if p.dim() > 1
    )
    assert epoch.seconds > 0
    assert 0 <= epoch.accuracy <= 1
    frozen = torch.optim.SGD(convnet.parameters(), lr=0.0)
    for module in convnet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    clean = train_epoch(convnet, [batch], frozen).loss
    attacked = train_epoch(convnet, [batch], frozen, PGD()).loss
    assert attacked > clean  # the reported loss is the one on adversarial images


def test_the_best_validation_weights_are_kept():
    """A learning rate that wrecks the model late: fit() must end with an earlier epoch's weights."""
    train, val = problem(64), problem(128)
    model = nn.Linear(21, 2)
    seen = []

    def wreck(epoch, validation):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        if len(seen) == 3:
            with torch.no_grad():
                model.weight.mul_(-100)

    done = fit(model, train, val, epochs=4, lr=0.05, on_epoch=wreck)
    values = [v.value for v in done.validation]
    assert done.best == values.index(max(values)) < 3
    assert torch.equal(model.weight, seen[done.best]["weight"])
    assert len(done.epochs) == 4


@pytest.mark.parametrize("attack", [None, PGD(steps=2)])
def test_a_seed_repeats_a_run(attack, convnet, batch):
    start = {k: v.clone() for k, v in convnet.state_dict().items()}

    def run():
        torch.manual_seed(5)
        convnet.load_state_dict(start)
        fit(convnet, [batch], [batch], epochs=2, lr=0.01, attack=attack)
        return [p.detach().clone() for p in convnet.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))
