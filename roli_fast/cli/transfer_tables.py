"""What ``roli-fast transfer`` shows on the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..evaluation import TRANSFERRED, Difference, LossBound, Sensitivity, Transfer
from ..evaluation.sensitivity import QUANTILES, figures


def print_sensitivity(console: Console, found: dict[str, Sensitivity]) -> None:
    table = Table(
        title="Sensitivity: how far features move under FeaturePGD (estimated, from below)",
        caption="absolute: ||f(x') - f(x)||; relative: divided by ||f(x)||",
    )
    quantiles = (f"{q:.0%}" if q != 0.5 else "median" for q in QUANTILES)
    _columns(table, ("model", "distance"), ("mean", *quantiles))
    for name, one in found.items():
        for kind, values in (("absolute", one.distance), ("relative", one.relative)):
            shown = figures(values)
            cells = (shown["mean"], *shown["quantiles"].values())
            numbers = ("infinite" if cell is None else f"{cell:.4g}" for cell in cells)
            table.add_row(Text(name), kind, *numbers, end_section=kind == "relative")
    console.print(table)


def print_robustness(console: Console, found: dict[str, Transfer], methods: dict[str, str | None]) -> None:
    table = Table(
        title="Robust accuracy, % of the images: what the criterion predicts, and what attacks measure",
        caption="In brackets: 95 % intervals. The criterion is sufficient only, and estimated; attacks bound "
        "from above. Contradictions: it is met, and the attack succeeds.",
    )
    _columns(table, ("model", "trained"), ("clean", "criterion met, of right", "predicted"))
    attacks = list(dict.fromkeys(outcome.name for run in found.values() for outcome in run.outcomes))
    _columns(table, (), [column for name in attacks for column in (name, "contradictions")])
    for name, run in found.items():
        right, met = int(run.criterion.right.sum()), int(run.criterion.met.sum())
        measured = [
            cell
            for outcome in run.outcomes
            for cell in (str(outcome.robust), f"{int(outcome.contradictions.found.sum())}")
        ]
        predicted = str(run.criterion.predicted)
        method = methods[name] or "unknown"
        table.add_row(Text(name), method, str(run.clean), f"{met} of {right}", predicted, *measured)
    console.print(table)
    for name, run in found.items():
        for outcome in run.outcomes:
            if outcome.contradictions.found.any():
                say(console, f"{name}, {outcome.name}: contradictions: {outcome.contradictions.explanation}.")
            for note in outcome.notes:
                say(console, f"{name}, {outcome.name}: {note}")


def print_bounds(console: Console, found: dict[str, Transfer]) -> None:
    table = Table(
        title="Loss bound at the points reached: means over the images; it held for each",
        caption="bound: max_j ||W_j - W_y|| ||f(x') - f(x)||; spectral bound: sqrt(2) ||f(x') - f(x)||",
    )
    sides = ("rise of the loss", "bound", "spectral: rise / ||W||", "spectral: bound")
    _columns(table, ("model", "attack"), sides)
    for name, run in found.items():
        bounds: dict[str, LossBound] = {"FeaturePGD": run.feature_bound}
        bounds |= {outcome.name: outcome.bound for outcome in run.outcomes}
        for attack, b in bounds.items():
            means = (side.mean() for side in (b.rise, b.limit, b.spectral_rise, b.spectral_limit))
            table.add_row(Text(name), attack, *(f"{mean:.4g}" for mean in means))
    console.print(table)


def print_transferred(console: Console, gaps: dict[str, Difference | None]) -> None:
    say(console, f"Transferred: {TRANSFERRED}. In brackets: 95 % intervals.")
    table = Table()
    _columns(table, ("of",), ("value",))
    for name, gap in gaps.items():
        undefined = "undefined: finetuning has nothing right"
        shown = undefined if gap is None else f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
        table.add_row(name, shown)
    console.print(table)


def _columns(table: Table, names: tuple[str, ...], numbers: tuple[str, ...] | list[str]) -> None:
    for name in names:
        table.add_column(name)
    for number in numbers:
        table.add_column(number, justify="right")


def say(console: Console, text: str) -> None:
    """As it is: names are no markup."""
    console.print(text, soft_wrap=True, markup=False, emoji=False, highlight=False)
