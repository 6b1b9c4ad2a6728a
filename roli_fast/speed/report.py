"""A comparison as a table and as a picture."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from .comparison import BEST, OURS, Comparison, Entry, Quartiles

# Colours of Okabe and Ito, told apart by the colour-blind; the markers tell them apart without colour.
_STYLES = (("#0072B2", "s"), ("#E69F00", "v"), ("#009E73", "^"), ("#CC79A7", "P"))
_BEST_STYLE = ("#D55E00", "o")
_LONGEST_NOTE = 160

# How many cores other processes may keep busy before our threads have to wait for one.
MUCH_OTHER_LOAD = 0.1


def title(model: str, comparison: Comparison) -> str:
    settings, shape = comparison.settings, "x".join(map(str, comparison.shape))
    return (
        f"{model} {shape}, {settings.norm}, eps {settings.eps:.4g}, {settings.steps} steps "
        f"of {settings.step_size:.4g}, {comparison.device}"
    )


def columns(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(entry.column for entry in comparison.entries))


def _heading(column: str) -> str:
    return "each at its best" if column == BEST else f"the same for all: {column}, channels-last"


def table(model: str, comparison: Comparison) -> Table:
    """A table with a row per contender. Where there is no ratio, a number refers to a note below the
    table."""
    notes: list[str] = []
    shown = Table(title=title(model, comparison), title_justify="left", show_lines=True)
    shown.add_column("")
    for column in columns(comparison):
        shown.add_column(_heading(column))
    for name in dict.fromkeys(entry.contender for entry in comparison.entries):
        row = [entry for entry in comparison.entries if entry.contender == name]
        shown.add_row(name, *(_cell(entry, notes) for entry in row))
    lines = [f"[{i}] {note}" for i, note in enumerate(notes, start=1)]
    shown.caption = "\n".join([*_remarks(comparison), *lines]).replace("[", r"\[")
    shown.caption_justify = "left"
    return shown


def _cell(entry: Entry, notes: list[str]) -> str:
    numbers = []
    for note in entry.notes:
        note = note if len(note) <= _LONGEST_NOTE else note[: _LONGEST_NOTE - 3] + "..."
        if note not in notes:
            notes.append(note)
        numbers.append(rf"\[{notes.index(note) + 1}]")
    if entry.ms_per_image is None:
        return " ".join(["failed", *numbers])
    ratio = (
        "" if entry.contender == OURS else f"   x {_spread(entry.ratio)}" if entry.ratio else "   no ratio"
    )
    lines = [f"{_spread(entry.ms_per_image)} ms{ratio} {' '.join(numbers)}".rstrip(), _reached(entry)]
    if entry.column == BEST:
        lines.append(str(entry.variant))
    return "\n".join(lines)


def _reached(entry: Entry) -> str:
    assert entry.robust is not None
    low, high = 100 * entry.robust.low, 100 * entry.robust.high
    memory = "" if entry.peak_bytes is None else f", {entry.peak_bytes / 2**20:.0f} MiB"
    return rf"robust {100 * entry.robust.value:.1f} % \[{low:.1f}, {high:.1f}]{memory}"


def _spread(values: Quartiles) -> str:
    return rf"{values['median']:.3g} \[{values['q1']:.3g}, {values['q3']:.3g}]"


def _remarks(comparison: Comparison) -> list[str]:
    images = max((e.robust.images for e in comparison.entries if e.robust), default=0)
    remarks = [
        f"ms: per image, median [quartiles] of {comparison.rounds} interleaved rounds. x: times as long as "
        f"ours. robust: of {images} images, with 95 % interval; no ratio where it differs from ours by more "
        "than the interval of the difference. MiB: peak on top of model and images, of the first calls."
    ]
    if not any(e.robust.value for e in comparison.entries if e.robust):
        remarks.append(
            "All robust accuracies are 0 %: only a smaller --eps tells strong and weak attacks apart."
        )
    for precision, share in comparison.overhead.items():
        median, q1, q3 = (100 * share[name] for name in ("median", "q1", "q3"))
        remarks.append(
            f"Ours in {precision}: {median:.1f} % [{q1:.1f}, {q3:.1f}] of the time is outside the model's "
            "forward and backward."
        )
    if (comparison.other_cores or 0) > MUCH_OTHER_LOAD:
        busy = f"{comparison.other_cores:.1f}"
        remarks.append(f"NOT A QUIET MACHINE: other processes kept {busy} cores busy meanwhile.")
    return remarks


def draw(results: Sequence[tuple[str, Comparison]], conditions: str, picture: Path) -> None:
    """One panel per comparison, titled with its model's name: the time per image, and ratios where there are
    any.

    Raises ImportError if matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # pyplot would choose a backend for the caller's own code

    rows = len({entry.contender for _, comparison in results for entry in comparison.entries})
    figure = Figure((9, 1.6 + len(results) * (0.9 + 0.6 * rows)), dpi=150, layout="constrained")
    panels = figure.subplots(len(results), squeeze=False)[:, 0]
    for axes, (model, comparison) in zip(panels, results, strict=True):
        _draw_panel(axes, model, comparison)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    figure.supxlabel(
        f"time per image, ms (left is faster); beside it: times as long as ours\n{conditions}", fontsize=9
    )
    figure.savefig(picture)


def _draw_panel(axes, model: str, comparison: Comparison) -> None:  # type: ignore[no-untyped-def]
    """Draws a row per contender, and in each row a lane per column, so that equal times do not hide each
    other."""
    names = list(dict.fromkeys(entry.contender for entry in comparison.entries))
    kinds = columns(comparison)
    for lane, column in enumerate(kinds):
        colour, marker = _BEST_STYLE if column == BEST else _STYLES[lane % len(_STYLES)]
        drawn = [e for e in comparison.entries if e.column == column and e.ms_per_image]
        times = [e.ms_per_image for e in drawn if e.ms_per_image]
        x = [t["median"] for t in times]
        spread = [[t["median"] - t["q1"] for t in times], [t["q3"] - t["median"] for t in times]]
        y = [names.index(e.contender) + 0.7 / len(kinds) * (lane - (len(kinds) - 1) / 2) for e in drawn]
        axes.errorbar(x, y, xerr=spread, fmt=marker, color=colour, capsize=2.5, label=_heading(column))
        for entry, time, row in zip(drawn, times, y, strict=True):
            text = f"{entry.ratio['median']:.2f}" if entry.ratio else ""
            text += "" if entry.ratio or entry.contender == OURS else "no ratio"
            style = {"textcoords": "offset points", "va": "center", "color": colour, "fontsize": 8}
            axes.annotate(text, (time["q3"], row), (6, 0), **style)
    axes.set_title(title(model, comparison), fontsize=10)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1.1 * axes.get_xlim()[1])  # room for the ratios
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
