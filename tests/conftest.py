"""What all tests share: seeds, small models, and the real checkpoints where they are there."""

import gc
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

from .forks import forks

if not torch.cuda.is_available():  # before Triton is imported: its kernels then run in Python, on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config):
    """Hypothesis draws the same examples at each run: a few in `make test`, many in `make test-all`."""
    for name, count in (("few", 10), ("many", 100)):
        settings.register_profile(
            name,
            deadline=None,
            derandomize=True,
            max_examples=count,
            # A backend chosen once for all examples is what the tests mean.
            suppress_health_check=[HealthCheck.function_scoped_fixture],
        )
    settings.load_profile("many" if config.getoption("--slow") else "few")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_collection_finish():
    """No collection looks any more at what is there already: torch's million objects, and the tests'."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: make gpu runs it")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """fresh(code, env=..., cwd=...): what the code printed in a process of its own, and its exit status."""
    with forks(tmp_path_factory.mktemp("fresh")) as run:
        yield run


@pytest.fixture
def shared_data():
    """The folder of real images and checkpoints, which is not part of the repository."""
    if not SHARED.exists():
        pytest.skip("../shared/data is not there")
    return SHARED


@pytest.fixture(params=["cuda", "triton"])
def gpu_backend(request):
    """Runs the test once on every GPU backend."""
    import roli_fast

    missing = roli_fast.backends()[request.param].missing
    if missing:
        pytest.skip(missing)
    with roli_fast.backend(request.param):
        yield request.param


def _randomize_norms(model: nn.Module) -> nn.Module:
    """Statistics and affine parameters as training leaves them, not as a constructor does."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.2)
    return model


@pytest.fixture
def randomize_norms():
    return _randomize_norms


@pytest.fixture
def convnet() -> nn.Module:
    """A small network with BatchNorm, dropout and normalisation inside, in train mode."""
    from roli_fast.models import Normalized

    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8 * 3 * 3, 5),
    )
    return Normalized(_randomize_norms(net), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)).train()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(6, 3, 8, 8), torch.randint(0, 5, (6,))
