"""Puts measured results into Markdown: ``python benchmarks/readme.py benchmarks/results/*.json``.

The README shows a few rows of each machine, the README of the results all of them.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
ALL_RESULTS = Path(__file__).parent / "results" / "README.md"
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


HIGHLIGHTS = ("float32", "bf16-out", "apgd", "l2", "l2-channels-last", "l1", "start")
HIGHLIGHTED_RIVALS = ("copy", "compiled", "expression", "torchattacks", "autoattack")


def all_tables(path: Path) -> str:
    """The step in its forms and sizes, and all ops on the largest, as multiples of their rivals' times."""
    result, picture, cases = _suite(path)
    steps = {key: case for key, case in cases.items() if case["extra_info"]["op"] == "linf_step_"}
    others = {key: case for key, case in cases.items() if key not in steps and key[1] == _largest(cases)}
    return "\n".join(
        [
            f"## {_conditions(result)}",
            "",
            "The Linf step:",
            "",
            *_rows(steps, RIVALS, lambda form, size, _: f"{form}, {size}"),
            "",
            f"All other ops, {_largest(cases)}. Bytes: that an element must move, and that it moves.",
            "",
            *_rows(others, RIVALS, _op_and_bytes),
            "",
            f"![The same as a picture]({picture.name})",
            "",
            f"Spread, conditions and every number: [{path.name}]({path.name}).",
        ]
    )


def highlights(path: Path) -> str:
    """A few ops, on the largest batch."""
    result, _, cases = _suite(path)
    shown = {key: case for key, case in cases.items() if key[0] in HIGHLIGHTS and key[1] == _largest(cases)}
    return "\n".join(
        [
            f"{_conditions(result)}, {_largest(cases)}:",
            "",
            *_rows(shown, HIGHLIGHTED_RIVALS, lambda form, _, case: f"`{case['extra_info']['op']}`, {form}"),
        ]
    )


def _conditions(result: dict[str, Any]) -> str:
    machine, commit = result["machine_info"], result["commit_info"]
    return f"{_name(machine)}, torch {machine['versions']['torch']}, commit {commit['id'][:10]}"


def _largest(cases: Cases) -> str:
    return list(dict.fromkeys(size for _, size, _ in cases))[-1]


def _op_and_bytes(form: str, size: str, case: dict[str, Any]) -> str:
    about = case["extra_info"]
    return f"{form} (`{about['op']}`, {about['must_move']:g} and {about['moves']:g} bytes)"


def _rows(cases: Cases, rivals: Iterable[str], name: Callable[[str, str, dict[str, Any]], str]) -> list[str]:
    rivals = [rival for rival in rivals if any(contender == rival for _, _, contender in cases)]
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


def _suite(path: Path) -> tuple[dict[str, Any], Path, Cases]:
    """The results of the ops in a file of `make bench` or `make gpu`, their picture, and their cases."""
    result, picture = json.loads(path.read_text()), path.with_suffix(".png")
    if "parts" in result:
        result, picture = (
            result["parts"]["ops"]["benchmarks"]["test_ops"],
            path.with_name(f"{path.stem}-ops.png"),
        )
    cases = {
        (case["params"]["form"], case["params"]["size"], case["params"]["contender"]): case
        for case in result["benchmarks"]
    }
    return result, picture, cases


def _has_ops(path: Path) -> bool:
    """Whether a run got so far."""
    result = json.loads(path.read_text())
    parts = result.get("parts", {"ops": {"benchmarks": {"test_ops": True}}})
    return bool(parts.get("ops", {}).get("benchmarks", {}).get("test_ops"))


def _name(machine: dict[str, Any]) -> str:
    if machine["gpu"]:
        return machine["gpu"]["name"]
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['instruction_set']}"


def _multiple(ours: dict[str, Any], rival: dict[str, Any] | None) -> str:
    """The median over rounds of our time by the rival's; nothing where it was not measured."""
    return "" if rival is None else f"{1 / rival['extra_info']['ratio_to_ours']['median']:.2f}"


def _duration(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-4 else f"{1e6 * seconds:.1f} µs"


INTRODUCTION = """Times of one call, medians of interleaved rounds, and as multiples of its rivals' times in
the same run: below 1 ours is faster."""


def with_highlights(readme: str, paths: list[Path]) -> str:
    tables = "\n\n".join([INTRODUCTION, *map(highlights, paths)])
    link = (
        f"All forms, sizes and rivals: [{ALL_RESULTS.parent.name}]({ALL_RESULTS.relative_to(README.parent)})."
    )
    return re.sub(
        r"(<!-- speed:begin -->\n).*?(<!-- speed:end -->)",
        lambda marks: f"{marks[1]}{tables}\n\n{link}\n{marks[2]}",
        readme,
        flags=re.S,
    )


def results(paths: list[Path]) -> str:
    return "\n\n".join(["# Measured speed of the ops", INTRODUCTION, *map(all_tables, paths)]) + "\n"


if __name__ == "__main__":
    files = [path for path in (Path(argument).resolve() for argument in sys.argv[1:]) if _has_ops(path)]
    README.write_text(with_highlights(README.read_text(), files))
    ALL_RESULTS.write_text(results(files))
