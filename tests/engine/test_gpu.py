"""Captured CUDA graphs: what they compute, hold and do when they fail."""

import contextlib
import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from torch import nn

from roli_fast.attacks import FGSM, MIFGSM, PGD, TPGD, FeaturePGD, verify
from roli_fast.attacks.oracle import PASS
from roli_fast.engine import AttackView, GraphRunner
from roli_fast.models import Normalized, small_resnet

pytestmark = pytest.mark.gpu

DEVICE = "cuda"


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch):
    """So that an eager run is repeated to the bit."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


@pytest.fixture
def model(randomize_norms):
    net = randomize_norms(small_resnet(10, channels=(16, 16, 32, 32)))
    return Normalized(net, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)).to(DEVICE).train()


def batch(samples=16, size=16):
    images = torch.rand(samples, 3, size, size, device=DEVICE)
    return images, torch.randint(0, 10, (samples,), device=DEVICE)


@contextlib.contextmanager
def eagerly(monkeypatch):
    """No call is ever of a kind that came before."""
    with monkeypatch.context() as patch:
        patch.setattr(GraphRunner, "_recorder", lambda self, inputs: None)
        yield


SIZES = {"linf": (8 / 255, 2 / 255), "l2": (0.5, 0.1), "l1": (5.0, 1.0)}
ATTACKS = {
    "pgd": lambda **o: PGD(steps=4, **o),
    "best": lambda **o: PGD(steps=4, restarts=2, iterate="best", **o),
    "stop": lambda **o: PGD(steps=4, iterate="best", early_stop=True, **o),
    "mifgsm": lambda **o: MIFGSM(steps=4, **o),
    "tpgd": lambda **o: TPGD(steps=4, **o),
    "features": lambda **o: FeaturePGD(steps=4, **o),
    "fgsm": lambda **o: FGSM(**{k: v for k, v in o.items() if k != "step_size"}),
}


def sequence(make, model, norm, precision):
    """Over changing images, labels, seeds, sizes in tensors, and weights."""
    torch.manual_seed(1)
    eps, step_size = (torch.tensor(s, device=DEVICE) for s in SIZES[norm])
    generator = torch.Generator(DEVICE).manual_seed(2)
    attack = make(norm=norm, eps=eps, step_size=step_size, precision=precision, generator=generator)
    found = []
    for _ in range(5):
        images, labels = batch()
        eps.mul_(0.9)
        step_size.mul_(1.1)
        found.append(attack.run(model, images, labels))
        with torch.no_grad():  # the same change of weights whatever came before
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return found


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16", "torch"])
@pytest.mark.parametrize("norm", SIZES)
@pytest.mark.parametrize("name", ATTACKS)
def test_a_replay_is_what_eager_is(name, norm, precision, model, monkeypatch):
    if precision != "fp32" and (name, norm) not in (("pgd", "linf"), ("best", "l2"), ("mifgsm", "l1")):
        pytest.skip("one norm per precision suffices")
    weights = {k: t.clone() for k, t in model.state_dict().items()}
    replayed = sequence(ATTACKS[name], model, norm, precision)
    model.load_state_dict(weights)
    with eagerly(monkeypatch):
        eager = sequence(ATTACKS[name], model, norm, precision)
    for got, expected in zip(replayed, eager, strict=True):
        assert got.notes == ()
        assert torch.equal(got.adversarial, expected.adversarial)
        assert torch.equal(got.loss, expected.loss)
        if name != "stop":  # a batch that samples leave keeps a size that has a graph
            assert (got.forwards, got.gradients) == (expected.forwards, expected.gradients)
    assert not torch.equal(replayed[-1].adversarial, replayed[-2].adversarial)


def test_weights_that_move_in_memory_are_followed(model):
    attack, key = PGD(steps=2), torch.tensor([3], device=DEVICE)
    images, labels = batch()
    for _ in range(4):  # from the third call on, a graph copies the weights
        before = attack.run(model, images, labels, key=key)
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5
    after = attack.run(model, images, labels, key=key)
    fresh = PGD(steps=2).run(model, images, labels, key=key)
    assert torch.equal(after.adversarial, fresh.adversarial)
    assert not torch.equal(after.adversarial, before.adversarial)


def test_weights_whose_layout_changes_are_followed():
    """The memory may be the same again."""
    net = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=32, depth=1).to(DEVICE).eval()
    images, labels = torch.rand(4, 3, 32, 32, device=DEVICE), torch.arange(4, device=DEVICE)
    attack, key = PGD(steps=1), torch.tensor([7], device=DEVICE)
    for _ in range(3):
        expected = attack.run(net, images, labels, key=key).adversarial
    for layout in (torch.channels_last, torch.contiguous_format):
        net.cpu().to(memory_format=layout).cuda()
        found = attack.run(net, images, labels, key=key).adversarial
        assert (
            found == expected
        ).double().mean() > 0.95  # another layout rounds otherwise: a few signs differ


def test_a_capture_of_the_callers(model):
    """Another graph has an attack in it that would be one of its own."""
    images, labels = batch()
    key, attack = torch.tensor([7], device=DEVICE), PGD(steps=2)
    for _ in range(3):
        expected = attack.perturb(model, images, labels, key=key, checked=True).adversarial
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.graph(graph, stream=stream):
        found = attack.perturb(model, images, labels, key=key, checked=True).adversarial
    graph.replay()
    assert torch.equal(found, expected)
    assert torch.equal(attack.perturb(model, images, labels, key=key, checked=True).adversarial, expected)


def test_it_is_a_graph_that_runs(model):
    """From the second batch of a shape on, no layer of the copy is called any more."""
    attack = PGD(steps=3)
    calls = []
    attack(model, *batch())
    attack.view(model)._copy.module.register_forward_pre_hook(lambda *_: calls.append(1))
    attack(model, *batch())
    captured = len(calls)
    assert captured > 0
    for _ in range(3):
        attack(model, *batch())
    assert len(calls) == captured


def test_results_and_inputs_are_the_callers(model):
    attack = PGD(steps=2, random_start=False)
    batches = [batch() for _ in range(5)]
    kept = [images.clone() for images, _ in batches]
    results = [attack(model, *b) for b in batches]
    assert all(torch.equal(images, k) for (images, _), k in zip(batches, kept, strict=True))
    results[3].zero_()
    for (images, labels), result in [*zip(batches, results, strict=True)][:3]:
        assert torch.equal(attack(model, images, labels), result)


def allocated():
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


def test_memory_is_bounded_and_freed():
    """A recording keeps its outputs and what its kernels use; no more than ``limit`` are kept."""
    size = 2**20

    def work(x):
        return ((x * 2).sin() + 1,)

    runner = GraphRunner(work, limit=2)
    before = allocated()
    used = []
    for samples in range(1, 8):
        for _ in range(3):
            runner(torch.ones(size, device=DEVICE).expand(samples, size)[:, : size - samples].contiguous())
        used.append(allocated() - before)
        assert len(runner._recordings) <= 2
    assert runner.note is None
    # Two recordings of at most seven and six rows: input, output, and two between.
    assert used[-1] <= (7 + 6) * size * 4 * 5
    runner.clear()
    assert allocated() - before < size
    assert not runner._recordings


def test_an_attack_that_is_gone_frees_its_graphs(model):
    attack = PGD(steps=2)
    warm = PGD(steps=2)
    for _ in range(3):  # also what cuBLAS keeps for the stream that records
        warm(model, *batch())
    del warm
    gc.collect()
    before = allocated()
    for _ in range(3):
        attack(model, *batch(64, 32))
    assert allocated() > before
    del attack
    gc.collect()
    assert allocated() - before < 2**20


class Asks(nn.Module):
    """Looks at a value in the midst of its forward, which no capture allows."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(768, 10))

    def forward(self, x):
        x = self.net(x)
        return x if x.sum().item() > -1e9 else -x


@pytest.mark.parametrize("options", [{}, {"iterate": "best", "early_stop": True}])
def test_a_capture_that_fails_leaves_correct_results_and_a_note(options, monkeypatch):
    model, stream = Asks().to(DEVICE), torch.cuda.current_stream()
    images, labels = batch()
    attack = PGD(steps=3, random_start=False, **options)
    with eagerly(monkeypatch):
        expected = PGD(steps=3, random_start=False, **options).run(model, images, labels)
    with pytest.warns(UserWarning, match="runs without a CUDA graph") as caught:
        results = [attack.run(model, images, labels) for _ in range(2 * PASS)]
    assert len([w for w in caught if "CUDA graph" in str(w.message)]) == 1
    for result in results:
        assert torch.equal(result.adversarial, expected.adversarial)
        assert torch.equal(result.success, expected.success)
    # From the call on that would be a graph.
    assert all("runs without a CUDA graph" in " ".join(result.notes) for result in results[PASS - 1 :])
    # And the device is as usable as before.
    assert torch.cuda.current_stream() == stream
    torch.cuda.synchronize()
    assert torch.ones(3, device=DEVICE).sum().item() == 3
    assert torch.rand(3, device=DEVICE).unique().numel() == 3
    other = small_resnet(10).to(DEVICE)
    for _ in range(3):
        assert PGD(steps=2).run(other, *batch()).notes == ()


def test_several_threads_capture_at_once():
    """Each its own model's attack, whose random starts come from torch's own generator."""
    models = [small_resnet(10, channels=(8, 8, 8, 8)).to(DEVICE).eval() for _ in range(12)]
    images, labels = batch()
    key = torch.tensor([7], device=DEVICE)
    expected = [PGD(steps=2).run(model, images, labels, key=key).adversarial for model in models]

    def work(model):
        attack = PGD(steps=2)
        results = [attack.run(model, images, labels) for _ in range(4)]
        notes = {note for result in results for note in result.notes}
        return notes, attack.run(model, images, labels, key=key).adversarial

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, models))
    for (notes, adversarial), as_alone in zip(found, expected, strict=True):
        assert notes == set()
        assert torch.equal(adversarial, as_alone)


def test_a_training_loop_beside_a_loader_that_pins_memory(model):
    """Its thread allocates and copies while the graph is captured."""
    data = torch.utils.data.TensorDataset(torch.rand(256, 3, 16, 16), torch.randint(0, 10, (256,)))
    loader = torch.utils.data.DataLoader(data, 16, pin_memory=True, num_workers=2, shuffle=True)
    attack = PGD(steps=2, precision="bf16")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.use_deterministic_algorithms(False)
    for _ in range(2):
        for images, labels in loader:
            images, labels = images.to(DEVICE, non_blocking=True), labels.to(DEVICE, non_blocking=True)
            adv = attack(model, images, labels)
            assert (adv - images).abs().max() <= 8 / 255 + 1e-6
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(adv), labels).backward()
            optimizer.step()
    assert attack.run(model, images, labels).notes == ()
    assert all(p.isfinite().all() for p in model.parameters())


def test_weights_are_followed_by_replays(model):
    """An optimiser's step and a refresh, between replays: what a fresh attack does."""
    images, labels = batch()
    attack = PGD(steps=3, random_start=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        adv = attack(model, images, labels)
        assert torch.equal(adv, PGD(steps=3, random_start=False)(model, images, labels))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(adv), labels).backward()
        optimizer.step()


def test_other_streams(model):
    """A replay waits for the caller's work, and for the last replay on another stream."""
    attack = PGD(steps=3, random_start=False)
    batches = [batch() for _ in range(6)]
    expected = [PGD(steps=3, random_start=False)(model, *b) for b in batches]
    for b in batches[:3]:
        attack(model, *b)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    results = []
    for i, (images, labels) in enumerate(batches):
        stream = streams[i % 3]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            late = torch.empty_like(images)
            torch.cuda._sleep(10_000_000)  # the images come late, on this stream
            late.copy_(images)
            results.append(attack(model, late, labels))
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_the_first_call_on_another_stream(model):
    images, labels = batch()
    expected = PGD(steps=3, random_start=False)(model, images, labels)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    attack = PGD(steps=3, random_start=False)
    with torch.cuda.stream(stream):
        results = [attack(model, images, labels) for _ in range(3)]
    torch.cuda.synchronize()
    assert all(torch.equal(r, expected) for r in results)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_generators(kind, model):
    images, labels = batch()
    attack = PGD(steps=1, generator=torch.Generator(kind).manual_seed(0))
    if kind == "cpu":
        with pytest.raises(
            ValueError, match="generator: got one on cpu, accepted: one on the images' device"
        ):
            attack(model, images, labels)
    else:
        state = torch.cuda.get_rng_state()
        attack(model, images, labels)
        assert torch.equal(torch.cuda.get_rng_state(), state)
    with pytest.raises(ValueError, match="labels: got device cpu, accepted: images' device cuda"):
        PGD()(model, images, labels.cpu())


def test_manual_seed_repeats_replays(model):
    images, labels = batch()
    attack = PGD(steps=2)
    for _ in range(3):
        attack(model, images, labels)
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        runs.append(attack(model, images, labels))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_in_half_precision(dtype, model):
    images, labels = batch()
    images, model = images.to(dtype), model.to(dtype)
    for norm, (eps, step_size) in SIZES.items():
        adv = PGD(norm, eps, step_size, steps=3)(model, images, labels)
        checked = verify(model, images, adv, labels, norm, eps)
        assert (checked.finite & checked.in_box & checked.in_ball).all()


@pytest.mark.parametrize("precision", ["fp32", "tf32", "torch"])
def test_tf32_is_used_where_it_was_asked_for(precision):
    """Products of numbers that ten bits cannot hold. torch multiplies matrices without it, unless told to."""
    linear = nn.Linear(512, 512, bias=False).to(DEVICE)
    images, labels = torch.rand(64, 512, device=DEVICE), torch.zeros(64, dtype=torch.int64, device=DEVICE)
    before = torch.backends.cuda.matmul.fp32_precision
    attack = PGD("l2", eps=1.0, step_size=1.0, steps=1, random_start=False, precision=precision)
    adv = attack(linear, images, labels).double()
    exact = PGD("l2", eps=1.0, step_size=1.0, steps=1, random_start=False)(
        linear.double(), images.double(), labels
    )
    off = (adv - exact).norm() / (exact - images).norm()
    assert 1e-5 < off < 1e-2 if precision == "tf32" else off < 1e-5
    assert torch.backends.cuda.matmul.fp32_precision == before


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_network_that_tf32_moves_is_copied_all_the_same(precision, randomize_norms):
    """torch's own convolutions use TF32, which moves a deep network with random weights by more than
    rounding."""
    deep = randomize_norms(timm.create_model("resnet50", num_classes=10)).to(DEVICE).eval()
    view = AttackView(deep, precision=precision)
    view.confirm(torch.rand(4, 3, 64, 64, device=DEVICE))
    assert view.is_copy
    assert view.report.note is None
    assert len(view.report.folded) > 50


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_model_on_another_device_than_the_current_one(model, monkeypatch):
    """A graph belongs to its inputs' device: recorded on the current one, it would be empty."""
    other = torch.device("cuda", 1)
    model.to(other)
    attack = PGD(steps=3, random_start=False)
    batches = [[t.to(other) for t in batch()] for _ in range(5)]
    with torch.cuda.device(0):
        results = [attack(model, *b) for b in batches]
    with eagerly(monkeypatch):
        expected = [PGD(steps=3, random_start=False)(model, *b) for b in batches]
    for result, right in zip(results, expected, strict=True):
        torch.testing.assert_close(result, right)
