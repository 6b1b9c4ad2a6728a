"""Draws results: ``python benchmarks/plot.py benchmarks/results/*.json`` writes a PNG beside each, and of a
GPU's one for each suite."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Colours of Okabe and Ito, told apart by the colour-blind; the markers tell them apart without colour.
STYLES = {
    "ours": ("roli_fast", "#D55E00", "o"),
    "triton": ("roli_fast on Triton", "#E69F00", "v"),
    "compiled": ("torch.compile, writing in place", "#0072B2", "s"),
    "compiled-new": ("torch.compile, new tensor", "#56B4E9", "P"),
    "preallocated": ("torch expression, preallocated buffers", "#009E73", "^"),
    "expression": ("torch expression", "#CC79A7", "D"),
}

# The contenders of attacks, in the same colours.
FAMILIES = {
    "ours": "#D55E00",
    "alone": "#999999",
    "torchattacks": "#0072B2",
    "foolbox": "#56B4E9",
    "roli": "#009E73",
}

# Cores; more, and a thread of ours has waited for one.
MUCH_OTHER_LOAD = 0.1

Case = dict[str, Any]  # a benchmark's entry in the JSON


def _distinct(cases: list[Case], parameter: str) -> list[str]:
    return list(dict.fromkeys(case["params"][parameter] for case in cases))


def _duration(seconds: float) -> str:
    scale, unit = next((s, u) for s, u in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")) if seconds >= s or u == "µs")
    return f"{seconds / scale:.3g} {unit}"


def _draw_size(axes: Axes, cases: list[Case], forms: list[str]) -> None:
    """A row per form, and in it a lane per contender: equal times must not hide each other."""
    axes.axvline(1, color="black", linewidth=1, linestyle="--", label="copy")
    present = {case["params"]["contender"] for case in cases}
    lanes = [contender for contender in STYLES if contender in present]
    for lane, contender in enumerate(lanes):
        label, colour, marker = STYLES[contender]
        drawn = [case for case in cases if case["params"]["contender"] == contender]
        ratios = [case["extra_info"]["ratio_to_copy"] for case in drawn]
        x = [r["median"] for r in ratios]
        spread = [[r["median"] - r["q1"] for r in ratios], [r["q3"] - r["median"] for r in ratios]]
        y = [
            forms.index(case["params"]["form"]) + 0.72 / len(lanes) * (lane - (len(lanes) - 1) / 2)
            for case in drawn
        ]
        axes.errorbar(x, y, xerr=spread, fmt=marker, color=colour, markersize=6, capsize=2.5, label=label)
        if contender == "ours":
            _label(axes, drawn, y, colour)


def _label(axes: Axes, cases: list[Case], y: list[float], colour: str) -> None:
    for case, row in zip(cases, y, strict=True):
        ratio = case["extra_info"]["ratio_to_copy"]
        text = f"{ratio['median']:.2f}   {_duration(case['stats']['median'])}"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        style = {"textcoords": "offset points", "va": "center", "color": colour, "fontsize": 9, "bbox": box}
        axes.annotate(text, (ratio["q3"], row), (8, 0), **style)


def _dress_size(axes: Axes, size: str, cases: list[Case], rows: int) -> None:
    info = cases[0]["extra_info"]
    where = "data in the caches" if info["in_cache"] else "data in memory"
    axes.set_title(f"{size}\n{where}", fontsize=10.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.1)
    axes.grid(axis="x", color="0.9")
    for boundary in range(1, rows):
        axes.axhline(boundary - 0.5, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def _conditions(result: dict[str, Any]) -> str:
    machine, commit = result["machine_info"], result["commit_info"]
    versions, build = machine["versions"], machine["build"]
    changes = " with changes" if commit["dirty"] else ""
    gpu = machine.get("gpu")
    facts = (
        gpu["name"] if gpu else f"{machine['cpu']}, {machine['cores']} cores, {machine['instruction_set']}",
        f"Triton {versions['triton']}, CUDA {gpu['cuda']}" if gpu else f"{machine['threads']} threads",
        f"torch {versions['torch']}, Python {versions['python']}, {build['compiler']}",
        f"roli_fast {versions['roli_fast']}, commit {(commit['id'] or 'unknown')[:10]}{changes}",
        result["datetime"][:10],
    )
    method = "Medians and quartiles over rounds in which every contender is timed once, in random order."
    busy = max(case["extra_info"]["other_cores_busy"] or 0 for case in result["benchmarks"])
    if busy > MUCH_OTHER_LOAD:
        method += f"\nNOT A QUIET MACHINE: other processes kept up to {busy:.1f} cores busy."
    return " · ".join(facts) + "\n" + method


def draw(result: dict[str, Any], picture: Path) -> Path:
    """Of one suite."""
    whole = _draw_attacks if "case" in result["benchmarks"][0]["params"] else _draw_ops
    figure = whole(result)
    figure.savefig(picture, dpi=150)
    plt.close(figure)
    return picture


def _draw_attacks(result: dict[str, Any]) -> Figure:
    """A panel per case, and in it a row per contender."""
    names = _distinct(result["benchmarks"], "case")
    grouped = [[c for c in result["benchmarks"] if c["params"]["case"] == name] for name in names]
    figure, panels = plt.subplots(
        len(names),
        1,
        figsize=(10, 2 + sum(0.6 + 0.27 * len(cases) for cases in grouped)),
        squeeze=False,
        layout="constrained",
        height_ratios=[1.5 + len(cases) for cases in grouped],
    )
    for axes, cases in zip(panels[:, 0], grouped, strict=True):
        _draw_case(axes, cases)
    figure.suptitle("PGD on whole models: time of an attack, left is faster", fontsize=13)
    figure.supxlabel(f"milliseconds\n\n{_conditions(result)}", fontsize=9)
    return figure


def _draw_case(axes: Axes, cases: list[Case]) -> None:
    about = cases[0]["extra_info"]
    shape = "x".join(map(str, about["shape"]))
    trained = ", and a backward pass to the weights" if about["trains"] else ""
    axes.set_title(f"{about['model']}, {shape}, PGD-{about['steps']}{trained}", fontsize=10, loc="left")
    whose = [case["params"]["contender"].partition("-")[0] for case in cases]
    ms = [1e3 * case["stats"]["median"] for case in cases]
    axes.barh(range(len(cases)), ms, color=[FAMILIES[who] for who in whose], height=0.7)
    ends = [[1e3 * case["stats"][end] for case in cases] for end in ("q1", "q3")]
    spread = [
        [m - q1 for m, q1 in zip(ms, ends[0], strict=True)],
        [q3 - m for m, q3 in zip(ms, ends[1], strict=True)],
    ]
    axes.errorbar(ms, range(len(cases)), xerr=spread, fmt="none", ecolor="black", capsize=2)
    for row, (case, end) in enumerate(zip(cases, ends[1], strict=True)):
        ratio = case["extra_info"]["ratio_to"].get("ours-bf16")
        robust = case["extra_info"]["robust_accuracy"]
        facts = (f"{ms[row]:.3g} ms", ratio and f"x {ratio['median']:.2f}")
        text = "   ".join(filter(None, (*facts, None if robust is None else f"robust {robust:.0%}")))
        axes.annotate(text, (end, row), (6, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(cases)), [case["params"]["contender"] for case in cases], fontsize=9)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_xlim(0, 1.35 * max(ends[1]))  # room for the text
    axes.spines[["top", "right"]].set_visible(False)


def _draw_ops(result: dict[str, Any]) -> Figure:
    cases = result["benchmarks"]
    forms, sizes = _distinct(cases, "form"), _distinct(cases, "size")
    bytes_of = {case["params"]["form"]: case["extra_info"]["moves"] for case in cases}

    figure, panels = plt.subplots(
        1,
        len(sizes),
        figsize=(2.5 + 3.8 * len(sizes), 2 + 0.8 * len(forms)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, size in zip(panels[0], sizes, strict=True):
        of_size = [case for case in cases if case["params"]["size"] == size]
        _draw_size(axes, of_size, forms)
        _dress_size(axes, size, of_size, len(forms))
    first = panels[0][0]
    first.set_yticks(
        range(len(forms)), [f"{form}\nmoves {bytes_of[form]:g} bytes per element" for form in forms]
    )
    first.set_ylim(len(forms) - 0.5, -0.5)

    figure.supxlabel(
        f"time / time of the copy (logarithmic, left is faster)\n\n{_conditions(result)}", fontsize=9.5
    )
    figure.legend(
        *first.get_legend_handles_labels(),
        loc="outside upper center",
        ncols=5,
        frameon=False,
        title="The Linf ops: time relative to copying as many bytes as they move",
        title_fontsize=14,
    )
    return figure


def suites(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By what the picture's name ends in: those of a file of `make gpu` that were measured, or the one."""
    if "parts" not in result:
        return {"": result}
    return {
        f"-{suite.removeprefix('test_')}": measured
        for part in result["parts"].values()
        for suite, measured in part["benchmarks"].items()
        if measured
    }


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        path = Path(argument)
        for suite, result in suites(json.loads(path.read_text())).items():
            print(draw(result, path.with_name(f"{path.stem}{suite}.png")))
