"""The results of price.py as a picture and as Markdown: ``python -m benchmarks.price_pages FILE.json``.

Writes a PNG beside the file, and the tables in docs/price.md between their marks.
"""

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

PAGE = Path(__file__).parents[1] / "docs" / "price.md"
RANLI, ROUNDS, SGD = "RanLI Full-FT", "RoLI Full-FT, rounds", "RoLI Full-FT, 20 epochs of SGD"
# Colours of Okabe and Ito; lines differ without colour, too.
CURVES = {
    RANLI: ("#0072B2", "-"),
    "RanLI Full-FT, N-FGSM": ("#56B4E9", ":"),
    "RanLI Full-FT, PGD-2": ("#009E73", "-."),
    SGD: ("#CC79A7", "--"),
    ROUNDS: ("#D55E00", "-"),
}
PARTS = {"attack": "#0072B2", "training": "#E69F00"}


def page(result: dict[str, Any]) -> str:
    """The tables, each under its heading."""
    lines = []
    for size, rows in result["sizes"].items():
        lines += [f"### {size} images a class", "", *_table(rows), ""]
    if "times" in result:
        lines += ["### What an image costs", "", *_times(result["times"]), ""]
    return "\n".join(lines)


def _table(rows: dict[str, dict[str, Any]]) -> list[str]:
    goal = rows.get(RANLI, {}).get("passes_to_best")
    lines = [
        "| | seeds | clean | PGD-20 | minus RanLI's | best epoch | passes to it | to RanLI's best |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        reached = row.get("passes_to_ranlis_best", [None])
        cells = [name, str(row["seeds"]), _mean(row["clean"]), _mean(row["pgd20"]), _gap(row)]
        cells += [", ".join(map(str, row["best_epochs"])), _thousands(row.get("passes_to_best"))]
        cells.append(_share(reached, goal) if goal else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _mean(found: dict[str, Any]) -> str:
    by_seed = [100 * value for value in found["by_seed"]]
    spread = f" ± {statistics.stdev(by_seed):.1f}" if len(by_seed) > 1 else ""
    return f"{100 * found['mean']:.1f}{spread}"


def _gap(row: dict[str, Any]) -> str:
    """Paired on the test images, averaged over seeds; the widest interval of a seed."""
    gaps = row.get("pgd20_minus_ranli", [])
    if not gaps:
        return ""
    mean = 100 * statistics.fmean(g["value"] for g in gaps)
    half = 100 * max((g["high"] - g["low"]) / 2 for g in gaps)
    return f"{mean:+.1f} ± {half:.1f}" if half else "0"


def _thousands(passes: list[int] | None) -> str:
    return f"{statistics.fmean(passes) / 1e3:.0f} k" if passes else ""


def _share(reached: list[int | None], goal: list[int]) -> str:
    """Of RanLI's own passes to its best."""
    shares = [None if r is None else r / g for r, g in zip(reached, goal, strict=False)]
    if all(s is None for s in shares):
        return "never"
    known = [s for s in shares if s is not None]
    never = f", {len(shares) - len(known)} of {len(shares)} seeds never" if len(known) < len(shares) else ""
    return f"{statistics.fmean(known):.0%}{never}"


def _times(times: dict[str, Any]) -> list[str]:
    lines = [
        "| | attack, ms | training step, ms | together | of the public code's |",
        "|---|---|---|---|---|",
    ]
    found = times["seconds_per_image"]
    for kind, parts in found.items():
        attack, training = (1e3 * parts[part]["median"] for part in PARTS)
        base = found[f"public code, {kind.rpartition(', ')[2]}"]
        whole = 1e3 * sum(base[part]["median"] for part in PARTS)
        both = attack + training
        lines.append(f"| {kind} | {attack:.2f} | {training:.2f} | {both:.2f} | {both / whole:.0%} |")
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    sizes = {size: rows for size, rows in result["sizes"].items() if RANLI in rows}
    panels = len(sizes) + ("times" in result)
    figure, axes = plt.subplots(1, panels, figsize=(6.2 * panels, 4.6), squeeze=False, layout="constrained")
    for panel, (size, rows) in zip(axes[0], sizes.items(), strict=False):
        _curves(panel, rows)
        panel.set_title(f"{size} images a class", fontsize=11)
    if "times" in result:
        _bars(axes[0][-1], result["times"]["seconds_per_image"])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curves(axes: Axes, rows: dict[str, dict[str, Any]]) -> None:
    """Validation robustness by cost, means over seeds; the first point is after probing and an epoch."""
    for name, (colour, line) in CURVES.items():
        if name not in rows:
            continue
        row = rows[name]
        x = [statistics.fmean(p) / 1e3 for p in zip(*row["passes_by_epoch"], strict=True)]
        y = [100 * statistics.fmean(v) for v in zip(*row["validation"], strict=True)]
        axes.plot(x, y, color=colour, linestyle=line, marker="o", markersize=3, label=name)
    axes.set(
        xscale="log", xlabel="thousand passes, probing and validation included", ylabel="validation PGD-10, %"
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _bars(axes: Axes, found: dict[str, Any]) -> None:
    begin = [0.0] * len(found)
    for part, colour in PARTS.items():
        width = [1e3 * parts[part]["median"] for parts in found.values()]
        axes.barh(range(len(found)), width, left=begin, color=colour, label=part)
        begin = [a + b for a, b in zip(begin, width, strict=True)]
    axes.set_yticks(range(len(found)), list(found), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per image of a training batch")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def written(text: str, result: dict[str, Any]) -> str:
    return re.sub(
        r"(<!-- price:begin -->\n).*?(<!-- price:end -->)",
        lambda marks: f"{marks[1]}{page(result)}{marks[2]}",
        text,
        flags=re.S,
    )


if __name__ == "__main__":
    file = Path(sys.argv[1])
    measured = json.loads(file.read_text())
    draw(measured, file.with_suffix(".png"))
    PAGE.write_text(written(PAGE.read_text(), measured))
