"""The results of price.py as a picture and as Markdown: ``python -m benchmarks.price_pages FILE.json``.

Writes a PNG beside the file, and the tables in docs/price.md and the README between their marks.
"""

import json
import math
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

ROOT = Path(__file__).parents[1]
RANLI, ROUNDS, SGD = "RanLI Full-FT", "RoLI Full-FT, rounds", "RoLI Full-FT, 20 epochs of SGD"
CHEAPEST = "RoLI Full-FT, rounds, N-FGSM"
SHOWN = ("Linear, rounds", RANLI, "RanLI Full-FT, N-FGSM", ROUNDS, CHEAPEST)  # in the README
# Colours of Okabe and Ito; lines differ without colour, too.
CURVES = {
    RANLI: ("#0072B2", "-"),
    "RanLI Full-FT, N-FGSM": ("#56B4E9", ":"),
    "RanLI Full-FT, PGD-2": ("#009E73", "-."),
    SGD: ("#CC79A7", "--"),
    ROUNDS: ("#D55E00", "-"),
    CHEAPEST: ("#E69F00", ":"),
}
PARTS = {"attack": "#0072B2", "training": "#E69F00"}
COLUMNS = 2  # of the picture
Row = dict[str, Any]


def page(result: dict[str, Any]) -> str:
    """The tables, each under its heading."""
    lines = []
    for size, rows in result["sizes"].items():
        lines += [f"### {size} images a class", "", *_trained_on(rows), *_table(rows), ""]
    if "times" in result:
        lines += ["### What an image costs", "", *_times(result["times"]), ""]
    for times in result.get("gpu_times", {}).values():
        lines += [f"### What an image costs: {times['machine']['gpu']['name']}", "", *_times(times, "µs"), ""]
    return "\n".join(lines)


def summary(result: dict[str, Any]) -> str:
    """Of all sizes, what matters most."""
    sizes = {
        size: {name: rows[name] for name in SHOWN if name in rows} for size, rows in result["sizes"].items()
    }
    columns = _columns({f"{size} {name}": row for size, rows in sizes.items() for name, row in rows.items()})
    wanted = [name for name in ("seeds", "clean", "PGD-20", "APGD-CE+T", "AutoAttack") if name in columns]
    wanted += ["passes to it", "to RanLI's best"]
    lines = [f"| images a class | | {' | '.join(wanted)} |", "|---" * (len(wanted) + 2) + "|"]
    for size, rows in sizes.items():
        for number, (name, row) in enumerate(rows.items()):
            cells = [size if number == 0 else "", name, *(columns[column](row) for column in wanted)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _devices(rows: dict[str, Row]) -> set[str]:
    """Where the cells were trained; empty where that was not recorded."""
    return {device for row in rows.values() for device in row.get("devices", [])}


def _trained_on(rows: dict[str, Row]) -> list[str]:
    devices = sorted(_devices(rows))
    if len(devices) > 1:
        return [f"**Trained on different devices**: {', '.join(devices)}.", ""]
    return [f"Trained on {devices[0]}.", ""] if devices else []


Column = Callable[[Row], str]


def _table(rows: dict[str, Row]) -> list[str]:
    columns = _columns(rows)
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {' | '.join([name, *(show(row) for show in columns.values())])} |")
    return lines


def _columns(rows: dict[str, Row]) -> dict[str, Column]:
    """Those that there is something to show in."""
    columns: dict[str, Column] = {
        "seeds": lambda row: str(row["seeds"]),
        "clean": lambda row: _mean(row, "clean"),
        "PGD-20": lambda row: _mean(row, "pgd20"),
        "minus RanLI's": lambda row: _gap(row, "pgd20"),
    }
    if any("apgd" in row for row in rows.values()):
        columns["APGD-CE+T"] = lambda row: _mean(row, "apgd")
        columns["its minus RanLI's"] = lambda row: _gap(row, "apgd")
    if any("autoattack" in row for row in rows.values()):
        columns["AutoAttack"] = lambda row: _mean(row, "autoattack")
    columns |= {
        "best epoch": lambda row: ", ".join(map(str, row["best_epochs"])),
        "passes to it": lambda row: _thousands(row.get("passes_to_best")),
        "to RanLI's best": lambda row: _share(
            row["passes_to_ranlis_best"], row["ranlis_passes_to_it"], "*" * row["looked_at_held_out"]
        ),
    }
    if len(_devices(rows)) > 1:
        columns["trained on"] = lambda row: ", ".join(row.get("devices", []))
    return columns


def _mean(row: Row, what: str) -> str:
    """Over the seeds; how many these are where it is not all of the row's."""
    if what not in row:
        return ""
    by_seed = [100 * value for value in row[what]["by_seed"]]
    spread = f" ± {statistics.stdev(by_seed):.1f}" if len(by_seed) > 1 else ""
    some = f" ({len(by_seed)} of {row['seeds']} seeds)" if len(by_seed) < row["seeds"] else ""
    return f"{100 * row[what]['mean']:.1f}{spread}{some}"


def _gap(row: Row, what: str) -> str:
    """Paired on the test images, averaged over seeds; the widest interval of a seed."""
    gaps = row.get(f"{what}_minus_ranli", [])
    if not gaps:
        return ""
    mean = 100 * statistics.fmean(g["value"] for g in gaps)
    half = 100 * max((g["high"] - g["low"]) / 2 for g in gaps)
    return f"{mean:+.1f} ± {half:.1f}" if half else "0"


def _thousands(passes: list[int] | None) -> str:
    return f"{statistics.fmean(passes) / 1e3:.0f} k" if passes else ""


def _share(reached: list[int | None], goal: list[int], mark: str) -> str:
    """Of RanLI's own passes to its best."""
    shares = [None if r is None else r / g for r, g in zip(reached, goal, strict=False)]
    if all(s is None for s in shares):
        return "never"
    known = [s for s in shares if s is not None]
    never = f", {len(shares) - len(known)} of {len(shares)} seeds never" if len(known) < len(shares) else ""
    return f"{statistics.fmean(known):.0%}{mark}{never}"


def _times(times: dict[str, Any], unit: str = "ms") -> list[str]:
    scale = {"ms": 1e3, "µs": 1e6}[unit]
    lines = [
        f"| | attack, {unit} | training step, {unit} | together | of the public code's |",
        "|---|---|---|---|---|",
    ]
    found = times["seconds_per_image"]
    for kind, parts in found.items():
        attack, training = (scale * parts[part]["median"] for part in PARTS)
        base = found[f"public code, {kind.rpartition(', ')[2]}"]
        whole = scale * sum(base[part]["median"] for part in PARTS)
        both = attack + training
        lines.append(f"| {kind} | {attack:.2f} | {training:.2f} | {both:.2f} | {both / whole:.0%} |")
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    sizes = {size: rows for size, rows in result["sizes"].items() if RANLI in rows}
    count = len(sizes) + ("times" in result)
    columns, lines = min(count, COLUMNS), math.ceil(count / COLUMNS)
    figure, axes = plt.subplots(
        lines, columns, figsize=(6.2 * columns, 4.6 * lines), squeeze=False, layout="constrained"
    )
    panels = iter(axes.flatten())
    for size, rows in sizes.items():
        panel = next(panels)
        _curves(panel, rows)
        panel.set_title(f"{size} images a class", fontsize=11)
    if "times" in result:
        _bars(next(panels), result["times"]["seconds_per_image"])
    for unused in panels:
        unused.set_axis_off()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curves(axes: Axes, rows: dict[str, Row]) -> None:
    """Robustness by cost, means over seeds; the first point is after probing and an epoch."""
    images = "held_out" if "held_out" in rows[RANLI] else "validation"
    for name, (colour, line) in CURVES.items():
        row = rows.get(name, {})
        if images not in row:
            continue
        x = [statistics.fmean(p) / 1e3 for p in zip(*row["passes_by_epoch"], strict=True)]
        y = [100 * statistics.fmean(v) for v in zip(*row[images], strict=True)]
        axes.plot(x, y, color=colour, linestyle=line, marker="o", markersize=3, label=name)
    on = {"held_out": "1,000 images held out", "validation": "200 validation images"}[images]
    axes.set(
        xscale="log", xlabel="thousand passes, probing and validation included", ylabel=f"PGD-10 on {on}, %"
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
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


def written(text: str, tables: str) -> str:
    return re.sub(
        r"(<!-- price:begin -->\n).*?(<!-- price:end -->)",
        lambda marks: f"{marks[1]}{tables}{marks[2]}",
        text,
        flags=re.S,
    )


PAGES = {ROOT / "docs" / "price.md": page, ROOT / "README.md": summary}

if __name__ == "__main__":
    file = Path(sys.argv[1])
    measured = json.loads(file.read_text())
    draw(measured, file.with_suffix(".png"))
    for document, tables in PAGES.items():
        document.write_text(written(document.read_text(), tables(measured)))
