"""Puts measured results into the README: ``python benchmarks/readme.py benchmarks/results/linf-*.json``."""

import json
import re
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
RIVALS = {
    "copy": "a copy of as many bytes",
    "compiled": "`torch.compile`, in place",
    "preallocated": "expression, preallocated",
    "expression": "expression",
}


def table(path: Path) -> str:
    """The step's time per form and size, and as a multiple of its rivals'."""
    result = json.loads(path.read_text())
    machine, commit = result["machine_info"], result["commit_info"]
    cases = {
        (case["params"]["form"], case["params"]["size"], case["params"]["contender"]): case
        for case in result["benchmarks"]
    }
    lines = [
        f"| form, size | step | {' | '.join(f'/ {name}' for name in RIVALS.values())} |",
        "|---|---" + "|---" * len(RIVALS) + "|",
    ]
    for (form, size, contender), case in cases.items():
        if contender == "ours":
            cells = [f"{form}, {size}", _duration(case["stats"]["median"])]
            cells += [_multiple(case, cases[form, size, rival]) for rival in RIVALS]
            lines.append(f"| {' | '.join(cells)} |")
    source = path.relative_to(README.parent).as_posix()
    return "\n".join(
        [
            f"The fused step against its rivals, on {machine['cpu']}, {machine['cores']} cores, "
            f"{machine['instruction_set']}, torch {machine['versions']['torch']}, commit "
            f"{commit['id'][:10]}: medians of interleaved rounds; below 1 the step is faster.",
            "",
            *lines,
            "",
            f"![The same as a picture]({source.removesuffix('.json')}.png)",
            "",
            f"Spread, conditions and every number: [{path.name}]({source}).",
        ]
    )


def _multiple(ours: dict[str, Any], rival: dict[str, Any]) -> str:
    """The median over rounds of our time by the rival's."""
    return f"{1 / rival['extra_info']['ratio_to_ours']['median']:.2f}"


def _duration(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-4 else f"{1e6 * seconds:.1f} µs"


def with_tables(readme: str, paths: list[Path]) -> str:
    tables = "\n\n".join(table(path) for path in paths)
    return re.sub(
        r"(<!-- speed:begin -->\n).*?(<!-- speed:end -->)", rf"\g<1>{tables}\n\g<2>", readme, flags=re.S
    )


if __name__ == "__main__":
    README.write_text(
        with_tables(README.read_text(), [Path(argument).resolve() for argument in sys.argv[1:]])
    )
