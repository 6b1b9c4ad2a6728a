"""Runs that all tests of reports look at."""

import pytest

from roli_fast.report import read_run, write_report

from .cases import NAMES, load_images, make_run, save_images, shorten


@pytest.fixture(scope="session")
def options(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def splits(options):
    return load_images(options)


@pytest.fixture(scope="session")
def made(tmp_path_factory, options, splits):
    """A folder with the runs roli, ranli and linear."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "roli", splits, options)
    make_run(folder / "ranli", splits, options, probed=False)
    make_run(folder / "linear", splits, options, probed=False, method="linear")
    return folder


@pytest.fixture(scope="session")
def written(made, splits, tmp_path_factory):
    """The page of all three, with short attacks."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        runs = [read_run(made / f, n) for f, n in zip(("roli", "ranli", "linear"), NAMES, strict=True)]
        return write_report(runs, splits, tmp_path_factory.mktemp("report") / "new" / "out", images=6)


@pytest.fixture
def quick(monkeypatch):
    """Shorter attacks, for what is not about their strength."""
    shorten(monkeypatch)
