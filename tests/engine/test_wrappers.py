"""Models as distributed and compiled training wraps them, in one process."""

import pytest
import torch
from torch import nn

from roli_fast.attacks import PGD, verify
from roli_fast.engine import AttackView, eval_mode
from roli_fast.models import Normalized

from .cases import assert_same_logits

dist = torch.distributed


@pytest.fixture
def process_group(tmp_path):
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("torch was built without gloo")
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def distributed(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def test_distributed(process_group, convnet, batch):
    expected = PGD(random_start=False)(convnet, *batch)
    wrapped = distributed(convnet)
    attack = PGD(random_start=False)
    assert torch.equal(attack(wrapped, *batch), expected)
    assert attack.view(wrapped).report.folded == {"1": "0", "4": "3"}


def test_the_normalisation_around_a_distributed_model(process_group, convnet, batch):
    """The layers inside are copied, not the wrapper, and folded all the same."""
    wrapped = Normalized(distributed(convnet.model), (0.5,) * 3, (0.2,) * 3)
    view = AttackView(wrapped)
    assert_same_logits(view, wrapped, batch[0])
    assert view.report.folded == {"1": "0", "4": "3"}
    assert not any(isinstance(m, nn.parallel.DistributedDataParallel) for m in view._copy.module.modules())


def test_a_distributed_part_of_a_model(process_group, convnet, batch):
    model = nn.Sequential(distributed(convnet.model), nn.Linear(5, 4))
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    assert not any(isinstance(m, nn.parallel.DistributedDataParallel) for m in view._copy.module.modules())
    with torch.no_grad():
        convnet.model[0].weight.mul_(2)
    view.refresh()
    assert_same_logits(view, model, batch[0])


def test_no_process_waits_for_another(process_group, convnet, batch, monkeypatch):
    """Processes judge at different times: a wrapper that spread its buffers would wait for ever."""
    wrapped = distributed(convnet).train()

    def spread(self, *args, **kwargs):
        raise AssertionError("buffers were spread")

    monkeypatch.setattr(nn.parallel.DistributedDataParallel, "_sync_buffers", spread)

    def reduce(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        raise AssertionError("gradients were reduced")

    wrapped.register_comm_hook(None, reduce)
    result = PGD(iterate="best", early_stop=True, restarts=2).run(wrapped, *batch)
    verify(wrapped, batch[0], result.adversarial, batch[1], "linf", 8 / 255)
    with eval_mode(nn.Sequential(wrapped)):
        assert not wrapped.broadcast_buffers
    assert wrapped.broadcast_buffers
    assert all(p.grad is None for p in wrapped.parameters())


def test_a_sharded_model_is_refused(process_group):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    fully_shard = pytest.importorskip("torch.distributed.fsdp").fully_shard
    try:
        fully_shard(model[1], mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
    except Exception as error:
        pytest.skip(f"torch does not shard on a CPU: {error}")
    images, labels = torch.rand(2, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="model: 1 is sharded by FSDP, accepted: a model whose parameters"):
        PGD()(model, images, labels)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_other_wrappers(wrap, convnet, batch):
    expected = PGD(random_start=False)(convnet, *batch)
    wrapped, attack = wrap(convnet), PGD(random_start=False)
    result = attack.run(wrapped, *batch)
    assert torch.equal(result.adversarial, expected)
    assert attack.view(wrapped).report.folded == {"1": "0", "4": "3"}
    with torch.no_grad():
        convnet.model[0].weight.add_(0.1)
    assert torch.equal(attack(wrapped, *batch), PGD(random_start=False)(convnet, *batch))


def test_a_part_that_is_compiled_is_copied_with_the_rest(batch):
    part = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model = nn.Sequential(torch.compile(part, backend="eager"), nn.Flatten(), nn.Linear(144, 5)).train()
    view = AttackView(model)
    assert_same_logits(view, model, batch[0])
    assert view.is_copy
    with torch.no_grad():
        part[0].weight.mul_(2)
    view.refresh()
    assert_same_logits(view, model, batch[0])
