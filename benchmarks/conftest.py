"""Results as JSON that can be published as it is, and the table at the end of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roli_fast.speed import machine
from roli_fast.speed.timing import Measurement

from .shared import QUICK

RESULTS = Path(__file__).parent / "results"
PEERS = ("torchattacks", "foolbox", "art", "autoattack")
RIVALS = ("copy", "triton", "compiled", "compiled-new", "preallocated", "expression", *PEERS, "reference")
CASES = pytest.StashKey[list[tuple[str, str, Measurement]]]()

# Beyond this many cores taken by others, a thread of ours has waited for one and the times say so.
MUCH_OTHER_LOAD = 0.1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CASES] = []
    if config.option.benchmark_json is None and _runs_a_whole_suite(config):
        suite = Path(config.args[0]).stem.removeprefix("test_")
        RESULTS.mkdir(exist_ok=True)
        config.option.benchmark_json = RESULTS / f"{suite}-{machine.slug(config.option.device)}.json"


def _runs_a_whole_suite(config: pytest.Config) -> bool:
    """One benchmark file, all of it, at full length: what a kept result must come from."""
    return (
        [Path(argument).suffix for argument in config.args] == [".py"]
        and not (config.option.keyword or config.option.collectonly)
        and not QUICK
    )


@pytest.fixture
def record_case(request: pytest.FixtureRequest) -> Callable[[str, str, Measurement], None]:
    """Notes a measured case, such as a form and a size, for the end of the run."""
    return lambda form, size, measured: request.config.stash[CASES].append((form, size, measured))


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    return machine.describe(config.option.device)


def pytest_benchmark_generate_commit_info() -> dict[str, Any]:
    return machine.commit()


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    for benchmark in output_json["benchmarks"]:
        del benchmark["stats"]["data"]  # the quartiles say it
        del benchmark["options"]  # of a calibration that does not take place


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    cases = config.stash[CASES]
    with_copies = [case for case in cases if "copy" in case[2].seconds]
    if with_copies:
        _write_table(terminalreporter, with_copies)
    _warn_of_other_load(terminalreporter, cases)


def _write_table(terminalreporter: Any, cases: list[tuple[str, str, Measurement]]) -> None:
    """Ours against its rivals."""
    rivals = [rival for rival in RIVALS if any(rival in measured.seconds for _, _, measured in cases)]
    terminalreporter.section("ours, and its time as a multiple of its rivals' (medians)")
    line = ("{:<28}{:<15}{:>10}{:>9}" + "{:>13}" * len(rivals) + "{:>13}").format
    titles = (f"/ {rival}" for rival in rivals)
    terminalreporter.write_line(line("form", "size", "ours us", "iqr us", *titles, "other cores"))
    for form, size, measured in cases:
        ours = measured.seconds_of("ours")
        times = (f"{1e6 * seconds:.2f}" for seconds in (ours["median"], ours["q3"] - ours["q1"]))
        ratios = (
            f"{measured.ratio('ours', rival)['median']:.3f}" if rival in measured.seconds else ""
            for rival in rivals
        )
        others = "?" if measured.other_cores is None else f"{measured.other_cores:.2f}"
        terminalreporter.write_line(line(form, size, *times, *ratios, others))


def _warn_of_other_load(terminalreporter: Any, cases: list[tuple[str, str, Measurement]]) -> None:
    worst = max((measured.other_cores or 0.0 for _, _, measured in cases), default=0.0)
    if worst > MUCH_OTHER_LOAD:
        terminalreporter.write_line(
            f"Other processes kept up to {worst:.2f} cores busy meanwhile: repeat this on a quiet machine.",
            red=True,
        )
