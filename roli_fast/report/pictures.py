"""The pictures of a report. The colours are Okabe and Ito's, which colour-blind readers can tell apart, and
markers, lines and hatches make the same distinctions without colour. Text is large enough for a phone's
screen."""

import dataclasses
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy

from ..evaluation.accuracy import wilson
from ..training import Cost
from .compare import Comparison, Gap, pairs
from .examples import Shown
from .measure import Measured, Rate
from .runs import Run, Stage, row_cost

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000",
)  # fmt: skip
_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":")
_KINDS = {
    "attack": (VERMILION, "//"),
    "training": (BLUE, ""),
    "data": (BLACK, "xx"),
    "evaluation": (SKY, ".."),
}
_PASSES = {"forwards": (BLUE, ""), "input_gradients": (VERMILION, "//"), "weight_gradients": (GREEN, "..")}
_WIDTH, _DPI = 5.0, 200  # inches: 360 pixels of a phone then show text of 10 points at 10 pixels
_LEGEND = 0.6  # inches of a figure's height that are its legend's
UNITS = {"linf": "Linf", "l2": "L2", "l1": "L1"}  # of eps
_LABEL = 20  # characters of a run's name
_TILE = 224  # pixels a side of an example at least

MISSING = "matplotlib is not installed; install what the report needs: pip install 'roli-fast[demo]'"


@dataclasses.dataclass(frozen=True)
class Picture:
    """name: its file's name, without suffix.
    png: the file's bytes.
    alt: a description for readers who cannot see it.
    """

    name: str
    png: bytes
    alt: str
    caption: str


def check_matplotlib() -> None:
    """Raises ImportError, which names the extra to install, if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(MISSING) from error


def _figure(height: float, **grid: Any) -> tuple["Figure", Any]:
    """A figure made without pyplot, which would keep every figure, and choose a backend for the caller's own
    code."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    return figure, figure.subplots(**grid)


def _tidy(axes: "Axes", **labels: str) -> None:
    axes.set(**labels)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: "Figure", axes: "Axes", columns: int) -> None:
    """Puts the legend above the axes, where it hides nothing. Each label appears once, without its interval.
    columns: how many columns it has at most."""
    handles, labels = axes.get_legend_handles_labels()
    found = {
        label: getattr(handle, "lines", [handle])[0] for label, handle in zip(labels, handles, strict=True)
    }
    for count in range(columns, 0, -1):
        legend = figure.legend(
            [*found.values()], [*found], loc="outside upper center", ncols=count, frameon=False, fontsize=9,
            columnspacing=1.2, handlelength=2.2,
        )  # fmt: skip
        size = legend.get_window_extent()
        if size.width <= figure.bbox.width or count == 1:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + max(0.0, size.height / figure.dpi - _LEGEND))


def _picture(figure: "Figure", name: str, alt: str, caption: str) -> Picture:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return Picture(name, file.getvalue(), alt, caption)


def style(number: int) -> dict[str, Any]:
    """How the run with this number is drawn. Two runs of the same colour have different markers."""
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKERS[(number + number // len(_COLOURS)) % len(_MARKERS)],
        "linestyle": _LINES[number % len(_LINES)],
        "markersize": 5,
    }


def labels(names: Sequence[str]) -> dict[str, str]:
    """Short names for runs in pictures, by their full names, and no two alike. If a name is long, the words
    that all names begin or end with are left out, and then its middle. If two are then alike, all are
    numbered."""
    short = [*names]
    if any(len(name) > _LABEL for name in names):
        words = [re.findall(r"[^\s_/-]*[\s_/-]*", name)[:-1] for name in names]
        first = _alike(words)
        last = _alike([w[first:][::-1] for w in words])
        own = ["".join(w[first : len(w) - last]).rstrip("_/- ") for w in words]
        short = ["…" * (first > 0) + name + "…" * (last > 0) for name in own]
        short = [name if len(name) <= _LABEL else f"{name[:9]}…{name[-10:]}" for name in short]
    if max(Counter(short).values()) > 1:
        short = [f"{number}: {name}" for number, name in enumerate(short, start=1)]
    # matplotlib reads $ as TeX, and leaves out what begins with _.
    shown = [name.replace("$", r"\$") for name in short]
    return {n: f" {s}" if s.startswith("_") else s for n, s in zip(names, shown, strict=True)}


def _alike(names: Sequence[Sequence[str]]) -> int:
    """How many words all names begin with. At least one word of each name is not counted."""
    same = [len(set(column)) == 1 for column in zip(*names, strict=False)]
    return min([*same, False].index(False), *(len(words) - 1 for words in names))


def percent(rate: Rate) -> str:
    return f"{rate.value:.1%} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _bars(rates: Sequence[Rate | Gap]) -> tuple[list[float], list[list[float]]]:
    """Values in percent, and how far their intervals reach below and above."""
    # At least 0: rounding may put an interval's end on the other side of its value.
    below = [max(0.0, 100 * (r.value - r.low)) for r in rates]
    above = [max(0.0, 100 * (r.high - r.value)) if r.high is not None else 0.0 for r in rates]
    return [100 * r.value for r in rates], [below, above]


# --- learning ------------------------------------------------------------------------------------------


def learning(run: Run, validated: int) -> list[Picture]:
    """The accuracies, and the loss, by epoch. validated: how many validation images there were."""
    return [_accuracy_curves(run, validated), _loss_curve(run)]


def _epochs(run: Run) -> list[tuple[Stage, list[int]]]:
    """The stages' epochs, numbered from one stage to the next."""
    first, found = 1, []
    for stage in run.stages.values():
        found.append((stage, list(range(first, first + len(stage.history)))))
        first += len(stage.history)
    return found


def _accuracy_curves(run: Run, validated: int) -> Picture:
    figure, axes = _figure(3.6)
    lines = {
        "val_clean": ("validation, clean", BLUE, "o", "-"),
        "val_robust": ("validation, attacked", VERMILION, "s", "--"),
        "train_accuracy": ("training images", GREEN, "^", ":"),
    }
    said = []
    for column, (label, colour, marker, line) in lines.items():
        for stage, epochs in _epochs(run):
            rows = [(e, row[column]) for e, row in zip(epochs, stage.history, strict=True)]
            rows = [(e, value) for e, value in rows if value is not None]
            if not rows:
                continue
            x, y = [e for e, _ in rows], [100 * (value or 0) for _, value in rows]
            axes.plot(x, y, color=colour, marker=marker, linestyle=line, markersize=4, label=label)
            if column.startswith("val_"):
                low, high = zip(*(_interval(value / 100, validated) for value in y), strict=True)
                axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            said.append(f"{label} in {stage.name} from {y[0]:.0f} to {y[-1]:.0f} %")
    _mark_stages(axes, run)
    _tidy(axes, xlabel="epoch", ylabel="accuracy, %")
    axes.set_ylim(0, 100)
    _legend(figure, axes, 3)
    alt = f"Learning curves of {run.name}, accuracy by epoch: {'; '.join(said)}."
    caption = (
        f"Accuracy by epoch. Bands: 95 % intervals of {validated} validation images. Grey: the epoch whose "
        "weights were kept."
    )
    return _picture(figure, "accuracy", alt, caption)


def _interval(share: float, images: int) -> tuple[float, float]:
    low, high = wilson(round(share * images), images)
    return 100 * low, 100 * high


def _loss_curve(run: Run) -> Picture:
    figure, axes = _figure(3.6)
    said = []
    for number, (stage, epochs) in enumerate(_epochs(run)):
        losses = [row["train_loss"] for row in stage.history]
        axes.plot(epochs, losses, label=stage.name, **style(number))
        said.append(f"{stage.name} from {losses[0]:.3g} to {losses[-1]:.3g}")
    _mark_stages(axes, run)
    _tidy(axes, xlabel="epoch", ylabel="training loss")
    _legend(figure, axes, 2)
    alt = f"Training loss of {run.name} by epoch: {'; '.join(said)}."
    return _picture(figure, "loss", alt, "Mean loss of the training images as they were attacked.")


def _mark_stages(axes: "Axes", run: Run) -> None:
    """Draws a band where weights were kept, and a line where the next stage begins."""
    from matplotlib.ticker import MaxNLocator

    for stage, epochs in _epochs(run):
        axes.axvline(epochs[stage.best], color="0.6", linewidth=6, alpha=0.25, zorder=0)
        if epochs[0] > 1:
            axes.axvline(epochs[0] - 0.5, color="0.3", linewidth=1)
            axes.annotate(
                f"{stage.name} →", (epochs[0] - 0.45, 1), (0, 3), xycoords=("data", "axes fraction"),
                textcoords="offset points", fontsize=8, color="0.3", va="bottom",
            )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


# --- accuracy against eps ------------------------------------------------------------------------------


def against_eps(found: Mapping[str, Measured], name: str = "eps") -> Picture:
    """One curve per run, by name, up to more than twice the eps in question, and beside it the accuracy at
    the whole box."""
    figure, (near, far) = _figure(3.8, ncols=2, sharey=True, width_ratios=(5, 1))
    first = next(iter(found.values()))
    single, called = len(found) == 1, labels([*found])
    said = []
    for number, (run, one) in enumerate(found.items()):
        look = style(number) | {"capsize": 3}
        values, bars = _bars([p.carried for p in one.points[:-1]])
        shift = 0.008 * (number - (len(found) - 1) / 2) * one.points[-2].eps  # or intervals hide each other
        x = [p.eps + shift for p in one.points[:-1]]
        near.errorbar(x, values, yerr=bars, label="PGD" if single else called[run], **look)
        last, bars = _bars([one.points[-1].carried])
        far.errorbar([number], last, yerr=bars, **look)
        said.append(f"{run}: " + ", ".join(f"{p.carried.value:.0%} at {p.eps:.3g}" for p in one.points))
        if single:
            _mark_single(near, far, one)
    near.axvline(first.eps, color="0.4", linewidth=1, linestyle=":")
    _tidy(near, xlabel=f"eps, {UNITS[first.norm]}, pixels in [0, 1]", ylabel="accuracy, %")
    _tidy(far)
    near.set_ylim(-3, 100)
    far.set_xlim(-1, len(found))
    far.set_xticks([(len(found) - 1) / 2], [f"{first.points[-1].eps:.3g}"])
    _legend(figure, near, 3 if len(found) > 2 or single else 2)
    alt = f"Accuracy against eps, {UNITS[first.norm]}. {'. '.join(said)}."
    caption = (
        f"Accuracy of {first.images} test images against eps, with 95 % intervals; successes of smaller eps "
        f"count. Dotted: the eps of the training, {first.eps:.4g}. On the right: the ball that holds every "
        "image."
    )
    if single:
        caption += " Hollow: what PGD at this eps finds alone."
    return _picture(figure, name, alt, caption)


def _mark_single(near: "Axes", far: "Axes", one: Measured) -> None:
    x, y = [p.eps for p in one.points[:-1]], [100 * p.alone.value for p in one.points[:-1]]
    hollow = {"marker": "o", "markersize": 9, "fillstyle": "none", "color": BLACK, "linestyle": "none"}
    near.plot(x, y, label="PGD, alone", **hollow)  # type: ignore[arg-type]
    far.plot([0], [100 * one.points[-1].alone.value], **hollow)  # type: ignore[arg-type]
    value, bars = _bars([one.robust])
    near.errorbar(
        [one.eps], value, yerr=bars, color=VERMILION, marker="s", capsize=4, linestyle="none",
        label="all attacks",
    )  # fmt: skip


# --- cost ----------------------------------------------------------------------------------------------


def cost(run: Run) -> Picture:
    stages = [*run.stages.values()]
    figure, panels = _figure(1.9 + 1.0 * len(stages), nrows=2)
    said = []
    for axes, kinds, unit in ((panels[0], _KINDS, "seconds"), (panels[1], _PASSES, "thousand images")):
        scale = 1 if unit == "seconds" else 1000
        for row, stage in enumerate(stages):
            left = 0.0
            for kind, (colour, hatch) in kinds.items():
                value = getattr(stage.cost, kind) / scale
                axes.barh(
                    row, value, left=left, color=colour, hatch=hatch, edgecolor="white", height=0.6,
                    label=kind.replace("_", " ") if row == 0 else None,
                )  # fmt: skip
                left += value
                said.append(f"{stage.name} {kind.replace('_', ' ')} {value:.3g} {unit}")
        axes.set_yticks(range(len(stages)), [s.name for s in stages])
        axes.set_ylim(len(stages) - 0.5, -0.5)
        _tidy(axes, xlabel=unit)
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=4, frameon=False, fontsize=8.5,
            columnspacing=1.0, handlelength=1.4,
        )  # fmt: skip
    alt = f"Cost of {run.name} by stage and kind: {', '.join(said)}."
    caption = "Seconds by what they went into; images that went through the model, and back."
    return _picture(figure, "cost", alt, caption)


# --- examples ------------------------------------------------------------------------------------------


def example(shown: Shown, number: int, norm: str, eps: float) -> Picture:
    """Three tiles: the image, the change, and the adversarial image."""
    from matplotlib.image import imsave

    one, pixels = shown
    change = pixels[1] - pixels[0]
    # In Linf eps is what a pixel can move by; in other norms the largest change is what fills the range.
    most = eps if norm == "linf" else max(change.abs().max().item(), 1e-12)
    tiles = [_tile(p.numpy()) for p in (pixels[0], 0.5 + change / (2 * most), pixels[1])]
    gap = numpy.ones((tiles[0].shape[0], max(4, tiles[0].shape[1] // 24), 3))
    file = io.BytesIO()
    strip = numpy.concatenate([tiles[0], gap, tiles[1], gap, tiles[2]], axis=1)
    imsave(file, numpy.clip(strip, 0, 1), format="png")
    before = f"{one.clean} ({one.clean_confidence:.0%})"
    after = f"{one.attacked} ({one.attacked_confidence:.0%})"
    verdict = "fooled" if one.fooled else "withstood"
    alt = (
        f"Test image {one.index} of class {one.label}: clean, seen as {before}; the change, grey where there "
        f"is none; attacked, seen as {after}."
    )
    return Picture(f"example-{number}", file.getvalue(), alt, f"{verdict}: {before} → {after}")


def _tile(image: numpy.ndarray) -> numpy.ndarray:
    """(H, W, 3), with each pixel enlarged by a whole number. image: (C, H, W). Unless it has three channels,
    their mean is shown."""
    if len(image) != 3:
        image = numpy.repeat(image.mean(axis=0, keepdims=True), 3, axis=0)
    times = max(1, _TILE // max(image.shape[1:]))
    return image.transpose(1, 2, 0).repeat(times, axis=0).repeat(times, axis=1)


# --- transfer ------------------------------------------------------------------------------------------


def transfer_picture(run: Run, found: Measured) -> Picture | None:
    """How far features move, against how far they may move."""
    t = found.transfer
    if t is None:
        return None
    figure, axes = _figure(4.0)
    groups = {
        "right, and kept": (BLUE, "o", t.kept),
        "right, and fooled": (VERMILION, "x", [r and not k for r, k in zip(t.right, t.kept, strict=True)]),
    }
    counts = []
    for label, (colour, marker, chosen) in groups.items():
        points = [(r, d) for r, d, c in zip(t.radius, t.distance, chosen, strict=True) if c and r is not None]
        counts.append(f"{len(points)} {label}")
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, s=22, color=colour, marker=marker, alpha=0.7, label=label)
    top = max([*t.distance, *(r for r in t.radius if r is not None), 1e-12])
    axes.plot([0, top], [0, top], color="0.3", linewidth=1)
    axes.fill_between([0, top], [0, top], color=GREEN, alpha=0.08, linewidth=0, label="criterion met")
    axes.set_xlim(0, 1.03 * max([r for r, k in zip(t.radius, t.right, strict=True) if k and r] or [1.0]))
    axes.set_ylim(0, 1.05 * max(t.distance or [1.0]))
    _tidy(axes, xlabel="how far they may move: the criterion's radius", ylabel="how far features move")
    _legend(figure, axes, 3)
    met = t.summary["criterion"]["met"]
    alt = (
        f"Features of {run.name}: the distance that an attack moves them by, against the radius within which "
        f"the class provably stays. {', '.join(counts)}; the criterion is met by {met} images."
    )
    caption = (
        "Each right image: below the line the criterion is met, and the class stays, as far as the largest "
        "move was found. Fooled: by any attack of this page. Estimated, never certified."
    )
    return _picture(figure, "transfer", alt, caption)


# --- comparison ----------------------------------------------------------------------------------------


def _in_rows(axes: "Axes", rows: Sequence[str], found: Mapping[str, Sequence[Rate | Gap]]) -> None:
    """Draws a row for each name, with two kinds of values side by side. found: for each kind, its values."""
    looks = ((BLUE, "o", -0.13), (VERMILION, "s", 0.13))
    for (kind, values), (colour, marker, shift) in zip(found.items(), looks, strict=True):
        x, bars = _bars(values)
        y = [row + shift for row in range(len(rows))]
        axes.errorbar(x, y, xerr=bars, color=colour, marker=marker, linestyle="none", capsize=3, label=kind)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)


def accuracies(runs: Sequence[Run], found: Mapping[str, Measured]) -> Picture:
    figure, axes = _figure(1.6 + 0.55 * len(runs))
    measured = [found[run.name] for run in runs]
    rates = {"clean": [m.clean for m in measured], "robust, all attacks": [m.robust for m in measured]}
    _in_rows(axes, [*labels([run.name for run in runs]).values()], rates)
    axes.set_xlim(-3, 103)
    _tidy(axes, xlabel="accuracy, %")
    _legend(figure, axes, 2)
    said = [
        f"{run.name} {kind} {percent(rate)}"
        for kind, of_runs in rates.items()
        for run, rate in zip(runs, of_runs, strict=True)
    ]
    alt = f"Accuracies of all runs: {'; '.join(said)}."
    return _picture(figure, "accuracies", alt, "Accuracy of all runs, with 95 % intervals.")


def against_cost(runs: Sequence[Run], robust: Mapping[str, Rate]) -> Picture:
    """Validation robustness against the cost up to each epoch, and test robustness at the end. robust: that
    of the test images, by the runs' names."""
    figure, axes = _figure(3.8)
    said, called = [], labels([run.name for run in runs])
    for number, run in enumerate(runs):
        look, spent = style(number), Cost()
        x, y = [], []
        for stage in run.stages.values():
            for row in stage.history:
                spent = spent + row_cost(row)
                seen = row["val_clean"] if row["val_robust"] is None else row["val_robust"]
                x.append(spent.passes / 1000)
                y.append(100 * (seen or 0))
        axes.plot(x, y, **look | {"markersize": 3}, alpha=0.7)
        value, bars = _bars([robust[run.name]])
        axes.errorbar(
            x[-1:], value, yerr=bars, **look | {"markersize": 9, "linestyle": "none"}, capsize=4,
            markeredgecolor="white", label=called[run.name],
        )  # fmt: skip
        said.append(f"{run.name}: {percent(robust[run.name])} for {x[-1]:.4g} thousand passes")
    axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])
    axes.set_xlim(left=0)
    _tidy(axes, xlabel="passes through the network, thousands", ylabel="robust accuracy, %")
    _legend(figure, axes, 3 if len(runs) > 2 else 2)
    alt = f"Robust accuracy against cost. {'; '.join(said)}."
    caption = (
        "Robust accuracy against cost. Lines: validation, epoch by epoch, the probing included. Large, with "
        "95 % interval: test images under all attacks. A forward pass is one, a backward pass to the input "
        "another, to input and weights two more."
    )
    return _picture(figure, "against-cost", alt, caption)


def gaps(runs: Sequence[Run], comparison: Comparison) -> Picture:
    called = labels([run.name for run in runs])
    rows = [f"{called[a.name]}\nminus {called[b.name]}" for a, b in pairs(runs)]
    figure, axes = _figure(1.5 + 0.7 * len(rows))
    found = {what: [gap for gap in comparison.gaps if gap.what == what] for what in ("clean", "robust")}
    _in_rows(axes, rows, found)
    axes.axvline(0, color="0.3", linewidth=1)
    _tidy(axes, xlabel="points of accuracy")
    _legend(figure, axes, 2)
    alt = f"Differences in accuracy: {'; '.join(map(points, comparison.gaps))}."
    caption = "Differences on the same images, with 95 % intervals of a paired bootstrap."
    return _picture(figure, "differences", alt, caption)


def points(gap: Gap) -> str:
    high = "infinite" if gap.high is None else f"{100 * gap.high:+.1f}"
    noise = ", within noise" if gap.within_noise else ""
    return f"{gap.name}, {gap.what}: {100 * gap.value:+.1f} points [{100 * gap.low:+.1f}, {high}]{noise}"
