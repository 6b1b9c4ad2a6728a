"""The results as pictures: robustness against cost, and where the time goes."""

import math
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from .arms import CHEAPEST, RANLI, ROUNDS
from .phases import PHASES

Row = dict[str, Any]
# Colours of Okabe and Ito; lines differ without colour, too.
CURVES = {
    RANLI: ("#0072B2", "-"),
    "RanLI Full-FT, N-FGSM": ("#56B4E9", ":"),
    "RanLI Full-FT, PGD-2": ("#009E73", "-."),
    "RoLI Full-FT, 20 epochs of SGD": ("#CC79A7", "--"),
    ROUNDS: ("#D55E00", "-"),
    CHEAPEST: ("#E69F00", ":"),
}
# Of the phases, in their order.
COLOURS = (
    *("#56B4E9", "#0072B2", "#F0C75E", "#E69F00", "#D55E00"),
    *("#009E73", "#8FD1B8", "#CC79A7", "#999999"),
)
COLUMNS = 2  # of the curves


def draw_curves(sizes: dict[str, dict[str, Row]], path: Path) -> None:
    sizes = {size: rows for size, rows in sizes.items() if RANLI in rows}
    columns, lines = min(len(sizes), COLUMNS), math.ceil(len(sizes) / COLUMNS)
    figure, axes = plt.subplots(
        lines, columns, figsize=(6.2 * columns, 4.6 * lines), squeeze=False, layout="constrained"
    )
    panels = iter(axes.flatten())
    for size, rows in sizes.items():
        panel = next(panels)
        _curves(panel, rows)
        panel.set_title(f"{size} images a class", fontsize=11)
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


def draw_phases(found: dict[str, dict[str, float]], path: Path) -> None:
    """found: seconds per training image, by stage and phase."""
    figure, axes = plt.subplots(figsize=(9.5, 0.55 * len(found) + 1.6), layout="constrained")
    begin = [0.0] * len(found)
    for phase, colour in zip(PHASES, COLOURS, strict=True):
        width = [1e3 * parts[phase] for parts in found.values()]
        axes.barh(range(len(found)), width, left=begin, color=colour, label=phase)
        begin = [a + b for a, b in zip(begin, width, strict=True)]
    axes.set_yticks(range(len(found)), list(found), fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per training image")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
