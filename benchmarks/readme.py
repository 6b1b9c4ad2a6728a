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
# Of attacks, in words.
CONTENDERS = {
    "ours-bf16-compiled": "ours in bf16, torch.compile",
    **{f"ours-{p}": f"ours in {p}" for p in ("bf16", "tf32", "fp32")},
    **{f"ours-{p}-eager": f"ours in {p}, no CUDA graph" for p in ("bf16", "tf32", "fp32")},
    **{f"alone-{p}": f"the model alone, {p}" for p in ("bf16", "tf32", "fp32")},
    "torchattacks": "torchattacks'",
    "torchattacks-autocast": "torchattacks', autocast",
    "foolbox": "foolbox's",
    "foolbox-autocast": "foolbox's, autocast",
    "roli": "RoLI's public code",
}
HIGHLIGHTED_CONTENDERS = (
    *("ours-bf16", "ours-tf32", "ours-fp32"),
    *("torchattacks-autocast", "torchattacks", "roli"),
)
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
            _more(result, path),
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
            *(line for note in result.get("notes", ()) for line in ("", note)),
        ]
    )


def _conditions(result: dict[str, Any]) -> str:
    machine, commit = result["machine_info"], result["commit_info"]
    return f"{_name(machine)}, torch {machine['versions']['torch']}, commit {commit['id'][:10]}"


def _more(result: dict[str, Any], path: Path) -> str:
    return " ".join(
        [*result.get("notes", ()), f"Spread, conditions and every number: [{path.name}]({path.name})."]
    )


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
    found = _measured(path, "ops")
    assert found is not None
    result, picture = found
    cases = {
        (case["params"]["form"], case["params"]["size"], case["params"]["contender"]): case
        for case in result["benchmarks"]
    }
    return result, picture, cases


def _measured(path: Path, part: str) -> tuple[dict[str, Any], Path] | None:
    """The results of a part's suite and their picture; None where a run has not got so far."""
    result, picture = json.loads(path.read_text()), path.with_suffix(".png")
    if "parts" in result:
        result = result["parts"].get(part, {}).get("benchmarks", {}).get(f"test_{part}")
        picture = path.with_name(f"{path.stem}-{part}.png")
    if not result or "benchmarks" not in result:  # or another tool's results
        return None
    is_of_attacks = "case" in result["benchmarks"][0]["params"]
    return (result, picture) if is_of_attacks == (part == "attacks") else None


def _attack_summary(path: Path) -> str:
    """A line per case, with the time of a call of each contender."""
    found = _measured(path, "attacks")
    assert found is not None
    cases: dict[str, dict[str, float]] = {}
    for case in found[0]["benchmarks"]:
        times = cases.setdefault(_attack_case(case["extra_info"]), {})
        times.setdefault(case["params"]["contender"], 1e3 * case["stats"]["median"])
    lines = [
        f"{_conditions(found[0])}, ms of a call:",
        "",
        f"| | {' | '.join(CONTENDERS[who] for who in HIGHLIGHTED_CONTENDERS)} |",
        "|---" * (1 + len(HIGHLIGHTED_CONTENDERS)) + "|",
    ]
    for name, times in cases.items():
        cells = [f"{times[who]:.0f}" if who in times else "" for who in HIGHLIGHTED_CONTENDERS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _attack_case(about: dict[str, Any]) -> str:
    batch, trained = "x".join(map(str, about["shape"])), " and weights" if about["trains"] else ""
    return f"{about['model']}, {batch}, PGD-{about['steps']}{trained}"


def _attack_table(path: Path) -> str:
    """A line per case and contender."""
    found = _measured(path, "attacks")
    assert found is not None
    result, picture = found
    lines = [
        f"{_conditions(result)}:",
        "",
        "| | | ms | images/s | / ours in bf16 | outside the model | robust | peak MiB | launches |",
        "|---" * 9 + "|",
    ]
    for case in result["benchmarks"]:
        about, who = case["extra_info"], case["params"]["contender"]
        ratio, overhead = about["ratio_to"].get("ours-bf16"), about["overhead"]
        cells = (
            _attack_case(about),
            CONTENDERS.get(who, who),
            f"{1e3 * case['stats']['median']:.2f}",
            f"{about['images_per_s']:.0f}",
            "" if ratio is None else f"{ratio['median']:.2f}",
            "" if overhead is None else f"{overhead['median']:.1%}",
            "" if about["robust_accuracy"] is None else f"{about['robust_accuracy']:.1%}",
            "" if about["peak_bytes"] is None else f"{about['peak_bytes'] / 2**20:.0f}",
            f"{about['launches'] or ''}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"![The same as a picture]({picture.name})", "", _more(result, path)]
    return "\n".join(lines)


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
ABOUT_SIZES = """The smallest batch is stepped over and over in the cache: its time is what a call costs. The
others are stepped once at a time, in memory that the cache does not hold."""
ABOUT_ATTACKS = """PGD on whole models with random weights, whose own predictions are the labels; medians of
interleaved rounds. Peers' loops are in our own words, under torch's defaults (TF32 in convolutions alone), or
under bf16 autocast and channels-last. Ours in fp32 is without TF32: like for like is tf32 for a convolutional
network; a transformer has next to none of the products in which torch's defaults use it, so for one it is
fp32."""
ABOUT_COLUMNS = """*Outside the model*: what is not its own passes, forward or back. *Launches*: kernels and
copies of a call."""


def with_highlights(readme: str, paths: list[Path]) -> str:
    ops, attacks = _with(paths, "ops"), _with(paths, "attacks")
    tables = "\n\n".join([INTRODUCTION, *map(highlights, ops)])
    if attacks:
        tables = "\n\n".join([tables, ABOUT_ATTACKS, *map(_attack_summary, attacks)])
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
    ops, attacks = _with(paths, "ops"), _with(paths, "attacks")
    sections = ["# Measured speed of the ops", INTRODUCTION, ABOUT_SIZES, *map(all_tables, ops)]
    if attacks:
        sections += ["# Measured speed of the attacks", ABOUT_ATTACKS, ABOUT_COLUMNS]
        sections += map(_attack_table, attacks)
    return "\n\n".join(sections) + "\n"


def _with(paths: list[Path], part: str) -> list[Path]:
    return [path for path in paths if _measured(path, part)]


if __name__ == "__main__":
    files = [Path(argument).resolve() for argument in sys.argv[1:]]
    README.write_text(with_highlights(README.read_text(), files))
    ALL_RESULTS.write_text(results(files))
