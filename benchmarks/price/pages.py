"""The results as Markdown, in docs/price.md and the README between their marks; pictures beside the file."""

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .arms import CHEAPEST, EPOCHS, PROBING_EPOCHS, RANLI, ROUNDS
from .judges import JUDGED
from .removals import COLUMNS, RUNGS
from .seconds import Ends, to_best
from .times import PARTS

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "price.json"
SHOWN = ("Linear, rounds", RANLI, "RanLI Full-FT, N-FGSM", ROUNDS, CHEAPEST)  # in the README
ATTACKS = 2  # of rounds, mostly
AUTOATTACK = f"AutoAttack, {10 * JUDGED['autoattack']} images"  # the other attacks have all
# Both stages, made cheaper step by step: what probes, how often an image goes through it, and what finetunes.
STEPS = {
    "public code": ("public code", PROBING_EPOCHS, "public code"),
    "work that is skipped, fused ops; on the GPU also CUDA graphs": (
        "ours, torch's layout",
        PROBING_EPOCHS,
        "ours, torch's layout",
    ),
    "channels-last": ("ours", PROBING_EPOCHS, "ours"),
    "bfloat16": ("ours, bf16", PROBING_EPOCHS, "ours, bf16"),
    "rounds of one step instead of SGD": ("ours, one step, bf16", ATTACKS, "ours, bf16"),
    "N-FGSM instead of PGD-7": ("ours, one step, bf16", ATTACKS, "ours, N-FGSM, bf16"),
}
OF_BOTH_STAGES = (
    f"Of both stages for a training image, {PROBING_EPOCHS} epochs of probing and {EPOCHS} of finetuning; "
    "validation and the fits of the head are not in it. Empty where it was not measured."
)
OF_PATIENCE = (
    "Trained until so many epochs have not validated better (`--patience`): passes, probing included, as "
    "a share of those of all epochs; robustness of the weights chosen so, in %, on images held out, of "
    "which validation's are some. Taken from the runs above: stopping does not change the epochs before it."
)
Row = dict[str, Any]


def page(result: dict[str, Any]) -> str:
    """The tables, each under its heading."""
    lines = []
    for size, rows in result["sizes"].items():
        lines += [
            f"### {size} images a class",
            "",
            *_trained_on(rows),
            *_table(rows, _clocks(result, size)),
            "",
        ]
    for times in result.get("times", {}).values():
        lines += [f"### What an image costs: {_machine(times)}", "", *_times(times), ""]
    for phases in result.get("phases", {}).values():
        lines += [f"### Where the time goes: {_machine(phases)}", "", *_phases(phases), ""]
    for found in result.get("removals", {}).values():
        lines += [f"### What each removal gave: {_machine(found)}", "", *_removals(found), ""]
    stopped = _patience(result["sizes"])
    if stopped:
        lines += ["### What stopping early saves", "", OF_PATIENCE, "", *stopped, ""]
    if "times" in result:
        lines += ["### Where the price went", "", OF_BOTH_STAGES, "", *_price(result["times"]), ""]
    return "\n".join(lines)


def summary(result: dict[str, Any]) -> str:
    """Of all sizes, what matters most."""
    sizes = {
        size: {name: rows[name] for name in SHOWN if name in rows} for size, rows in result["sizes"].items()
    }
    columns = _columns({f"{size} {name}": row for size, rows in sizes.items() for name, row in rows.items()})
    wanted = [name for name in ("seeds", "clean", "PGD-20", "APGD-CE+T", AUTOATTACK) if name in columns]
    wanted += ["passes to it", "to RanLI's best"]
    machines = list(dict.fromkeys(machine for size in sizes for machine in _clocks(result, size)))
    heads = [*wanted, *map(_seconds_on, machines)]
    lines = [f"| images a class | | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for size, rows in sizes.items():
        clocks = _clocks(result, size)
        for number, (name, row) in enumerate(rows.items()):
            cells = [size if number == 0 else "", name, *(columns[column](row) for column in wanted)]
            cells += [_to_best(name, row, clocks[m]) if m in clocks else "" for m in machines]
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


Clocks = dict[str, dict[str, dict[str, list[Ends]]]]  # of heads and arms, by machine


def _clocks(result: dict[str, Any], size: str) -> Clocks:
    """Of those machines on which that size was measured."""
    return {
        _machine(measured): measured["seconds"][size]
        for measured in result.get("seconds", {}).values()
        if size in measured["seconds"]
    }


def _table(rows: dict[str, Row], clocks: Clocks) -> list[str]:
    columns = _columns(rows)
    heads = [*columns, *(_seconds_on(machine) for machine in clocks)]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, row in rows.items():
        cells = [show(row) for show in columns.values()] + [_to_best(name, row, c) for c in clocks.values()]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def _seconds_on(machine: str) -> str:
    return f"s to it, {machine}"


def _to_best(name: str, row: Row, clock: dict[str, dict[str, list[Ends]]]) -> str:
    found = to_best(name, row["best_epochs"], clock)
    if found is None:
        return ""
    by_seed = f" ({', '.join(f'{seconds:.3g}' for seconds in found)})" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.3g}{by_seed}"


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
        columns[AUTOATTACK] = lambda row: _mean(row, "autoattack")
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


def _machine(measured: dict[str, Any]) -> str:
    machine = measured["machine"]
    if machine["gpu"]:
        return machine["gpu"]["name"]
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['instruction_set']}"


def _unit(measured: dict[str, Any]) -> tuple[str, float]:
    """Of seconds per image."""
    return ("µs", 1e6) if measured["machine"]["gpu"] else ("ms", 1e3)


def _times(times: dict[str, Any]) -> list[str]:
    unit, scale = _unit(times)
    lines = [
        f"| | attack, {unit} | training step, {unit} | together | of the public code's |",
        "|---|---|---|---|---|",
    ]
    found = times["seconds_per_image"]
    for kind, parts in found.items():
        attack, training = (scale * parts[part]["median"] for part in PARTS)
        whole = scale * _both(times, f"public code, {kind.rpartition(', ')[2]}")
        both = attack + training
        lines.append(f"| {kind} | {attack:.2f} | {training:.2f} | {both:.2f} | {both / whole:.0%} |")
    return lines


def _both(times: dict[str, Any], kind: str) -> float:
    """Seconds of an image, attack and training step."""
    return sum(times["seconds_per_image"][kind][part]["median"] for part in PARTS)


def _phases(phases: dict[str, Any]) -> list[str]:
    unit, scale = _unit(phases)
    found = phases["seconds_per_image"]
    names = list(next(iter(found.values())))
    lines = [
        f"| {unit} per training image | {' | '.join(names)} | together |",
        "|---" * (len(names) + 2) + "|",
    ]
    for stage, parts in found.items():
        shown = [f"{scale * parts[name]:.2f}" if parts[name] else "" for name in names]
        lines.append(f"| {stage} | {' | '.join(shown)} | {scale * sum(parts.values()):.2f} |")
    return lines


def _patience(sizes: dict[str, dict[str, Row]]) -> list[str]:
    """By patience: of the passes of all epochs, and how robust; means over seeds."""
    arms = [
        (size, name, rows[name])
        for size, rows in sizes.items()
        for name in (RANLI, CHEAPEST)
        if "patience" in rows.get(name, {})
    ]
    if not arms:
        return []
    waits = list(arms[0][2]["patience"])
    heads = [f"{wait} epochs, passes | held out" for wait in waits]
    lines = [f"| images a class | | {' | '.join(heads)} | all epochs, passes | held out |"]
    lines.append("|---" * (2 * len(heads) + 4) + "|")
    for size, name, row in arms:
        cells = [size, name]
        for wait in waits:
            ended = row["patience"][wait]
            shares = [part / whole for part, whole in zip(ended["passes"], row["passes"], strict=True)]
            cells += [f"{statistics.fmean(shares):.0%}", f"{100 * statistics.fmean(ended['held_out']):.1f}"]
        best = [held[epoch - 1] for held, epoch in zip(row["held_out"], row["best_epochs"], strict=True)]
        cells += [_thousands(row["passes"]), f"{100 * statistics.fmean(best):.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _removals(found: dict[str, Any]) -> list[str]:
    """What an image takes on each rung, and how much less than on the last one that its column has."""
    unit, scale = _unit(found)
    heads = [f"{COLUMNS[column]}, {unit} | saves" for column in found["seconds_per_image"]]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (2 * len(heads) + 1) + "|"]
    last: dict[str, float] = {}
    measured = {rung for rungs in found["seconds_per_image"].values() for rung in rungs}
    for rung in filter(measured.__contains__, RUNGS):
        cells = []
        for column, rungs in found["seconds_per_image"].items():
            if rung not in rungs:
                cells += ["", ""]
                continue
            took = scale * rungs[rung]["median"]
            cells += [f"{took:.2f}", f"{last[column] - took:.2f}" if column in last else ""]
            last[column] = took
        lines.append(f"| {rung} | {' | '.join(cells)} |")
    return lines


def _price(machines: dict[str, dict[str, Any]]) -> list[str]:
    """Of both stages for a training image, by machine: a step is empty where it was not measured."""
    columns = [f"{_machine(times)}, ms | factor" for times in machines.values()]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (2 * len(columns) + 1) + "|"]
    last: dict[str, float] = {}
    first: dict[str, float] = {}
    for step, (probes, epochs, finetunes) in STEPS.items():
        cells = []
        for name, times in machines.items():
            needed = f"{probes}, linear", f"{finetunes}, full"
            if not set(needed) <= set(times["seconds_per_image"]):
                cells += ["", ""]
                continue
            seconds = epochs * _both(times, needed[0]) + EPOCHS * _both(times, needed[1])
            cells += [f"{1e3 * seconds:.3g}", f"{last[name] / seconds:.2f}" if name in last else ""]
            first.setdefault(name, seconds)
            last[name] = seconds
        lines.append(f"| {step} | {' | '.join(cells)} |")
    whole = " | ".join(f" | {first[name] / last[name]:.2f}" for name in machines)
    return [*lines, f"| all that was measured | {whole} |"]


def written(text: str, tables: str) -> str:
    return re.sub(
        r"(<!-- price:begin -->\n).*?(<!-- price:end -->)",
        lambda marks: f"{marks[1]}{tables}{marks[2]}",
        text,
        flags=re.S,
    )


PAGES = {ROOT / "docs" / "price.md": page, ROOT / "README.md": summary}


def show(file: Path) -> None:
    from .pictures import draw_curves, draw_phases  # matplotlib, which measuring does not need

    result = json.loads(file.read_text())
    draw_curves(result["sizes"], file.with_suffix(".png"))
    for machine, phases in result.get("phases", {}).items():
        draw_phases(phases["seconds_per_image"], file.with_name(f"{file.stem}-phases-{machine}.png"))
    for document, tables in PAGES.items():
        document.write_text(written(document.read_text(), tables(result)))
