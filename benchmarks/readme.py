"""Puts measured results into the README: ``python benchmarks/readme.py benchmarks/results/*.json``."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
RIVALS = {
    "copy": "a copy of as many bytes",
    "triton": "ours on Triton",
    "compiled": "`torch.compile`, in place",
    "compiled-new": "`torch.compile`, new tensor",
    "preallocated": "expression, preallocated",
    "expression": "expression",
    "torchattacks": "torchattacks'",
    "foolbox": "foolbox's",
    "art": "ART's",
    "autoattack": "autoattack's",
}
Cases = dict[tuple[str, str, str], dict[str, Any]]  # by form, size and contender


def table(path: Path) -> str:
    """The step in its forms and sizes, and all ops on the largest, as multiples of their rivals' times."""
    found = _suite(path)
    assert found is not None
    result, picture = found
    machine, commit = result["machine_info"], result["commit_info"]
    cases: Cases = {
        (case["params"]["form"], case["params"]["size"], case["params"]["contender"]): case
        for case in result["benchmarks"]
    }
    steps = {key: case for key, case in cases.items() if case["extra_info"]["op"] == "linf_step_"}
    largest = list(dict.fromkeys(size for _, size, _ in cases))[-1]
    others = {key: case for key, case in cases.items() if key not in steps and key[1] == largest}
    source = path.relative_to(README.parent).as_posix()
    return "\n".join(
        [
            f"The Linf step against its rivals, on {_name(machine)}, torch {machine['versions']['torch']}, "
            f"commit {commit['id'][:10]}: medians of interleaved rounds; below 1 ours is faster.",
            "",
            *_rows(steps, lambda form, size, _: f"{form}, {size}"),
            "",
            f"All other ops, {largest}. Bytes: that an element must move, and that it moves.",
            "",
            *_rows(others, _op_and_bytes),
            "",
            f"![The same as a picture]({picture.relative_to(README.parent).as_posix()})",
            "",
            f"Spread, conditions and every number: [{path.name}]({source}).",
        ]
    )


def _op_and_bytes(form: str, size: str, case: dict[str, Any]) -> str:
    about = case["extra_info"]
    return f"{form} (`{about['op']}`, {about['must_move']:g} and {about['moves']:g} bytes)"


def _rows(cases: Cases, name: Callable[[str, str, dict[str, Any]], str]) -> list[str]:
    rivals = [rival for rival in RIVALS if any(contender == rival for _, _, contender in cases)]
    lines = [
        f"| | ours | {' | '.join(f'/ {RIVALS[rival]}' for rival in rivals)} |",
        "|---|---" + "|---" * len(rivals) + "|",
    ]
    for (form, size, contender), case in cases.items():
        if contender == "ours":
            cells = [name(form, size, case), _duration(case["stats"]["median"])]
            cells += [_multiple(case, cases.get((form, size, rival))) for rival in rivals]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _suite(path: Path) -> tuple[dict[str, Any], Path] | None:
    """The results of the ops in a file of `make bench` or `make gpu`, and their picture; None where a
    run has not got so far."""
    result = json.loads(path.read_text())
    if "parts" not in result:
        return result, path.with_suffix(".png")
    measured = result["parts"].get("ops", {}).get("benchmarks", {}).get("test_ops")
    return measured and (measured, path.with_name(f"{path.stem}-ops.png"))


def _name(machine: dict[str, Any]) -> str:
    if machine["gpu"]:
        return machine["gpu"]["name"]
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['instruction_set']}"


def _multiple(ours: dict[str, Any], rival: dict[str, Any] | None) -> str:
    """The median over rounds of our time by the rival's; nothing where it was not measured."""
    return "" if rival is None else f"{1 / rival['extra_info']['ratio_to_ours']['median']:.2f}"


def _duration(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-4 else f"{1e6 * seconds:.1f} µs"


def with_tables(readme: str, paths: list[Path]) -> str:
    tables = "\n\n".join(table(path) for path in paths if _suite(path) is not None)
    return re.sub(
        r"(<!-- speed:begin -->\n).*?(<!-- speed:end -->)", rf"\g<1>{tables}\n\g<2>", readme, flags=re.S
    )


if __name__ == "__main__":
    README.write_text(
        with_tables(README.read_text(), [Path(argument).resolve() for argument in sys.argv[1:]])
    )
