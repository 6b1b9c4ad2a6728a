"""The text of the page, section by section."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation import TRANSFERRED, Advice
from ..evaluation.sensitivity import QUANTILES
from ..training import Cost
from . import html
from .advice import advice
from .compare import Comparison, Gap
from .measure import Found, Measured
from .pictures import UNITS, Picture, percent, points
from .runs import Run
from .sanity import TOLERANCE, Check, sanity


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The pictures of a run."""

    learning: list[Picture]
    eps: Picture
    cost: Picture
    examples: list[Picture]
    transfer: Picture | None

    @property
    def all(self) -> list[Picture]:
        return [
            *self.learning,
            self.eps,
            self.cost,
            *self.examples,
            *([self.transfer] if self.transfer else []),
        ]


def body(
    data: str,
    runs: Sequence[Run],
    found: Mapping[str, Found],
    drawn: Mapping[str, Drawn],
    comparison: Comparison | None,
    compared: Sequence[Picture],
) -> list[str]:
    """All elements of the page. data: a description of the images."""
    numbers = {name: one.numbers for name, one in found.items()}
    parts = [_head(data, runs, numbers), _overview(runs, numbers)]
    if comparison is not None:
        parts.append(_comparison(comparison, compared))
    parts += [_run(run, found[run.name], drawn[run.name], number) for number, run in enumerate(runs)]
    return [*parts, _method(next(iter(numbers.values())))]


def _head(data: str, runs: Sequence[Run], found: Mapping[str, Measured]) -> str:
    one = next(iter(found.values()))
    names = [("Overview", "overview")] + [(r.name, f"run-{n}") for n, r in enumerate(runs)]
    names += [("Comparison", "comparison")] if len(runs) > 1 else []
    names += [("How it was measured", "method")]
    links = [html.around("li", [html.element("a", name, href=f"#{there}")]) for name, there in names]
    said = f"{data}; {one.images} of them attacked here. Ball: {UNITS[one.norm]}, eps {one.eps:.4g} "
    return html.around(
        "header",
        [
            html.element("h1", f"Robustness report: {', '.join(run.name for run in runs)}"),
            html.element("p", said + "of pixels in [0, 1]. Brackets are 95 % intervals."),
            html.around("nav", [html.around("ul", links)], title="Sections"),
        ],
    )


def _section(title: str, there: str, content: Sequence[str]) -> str:
    return html.around("section", [html.element("h2", title, id=there), *content])


def _overview(runs: Sequence[Run], found: Mapping[str, Measured]) -> str:
    measured, trained = [], []
    for run in runs:
        one, checks = found[run.name], sanity(found[run.name])
        passed = sum(check.passed for check in checks)
        verdict = f"{passed} of {len(checks)}"
        accuracies = (percent(rate) for rate in (one.clean, one.at_eps.carried, one.robust))
        measured.append((run.name, run.title, *accuracies, verdict))
        spent = (f"{run.cost.passes:,}", f"{run.cost.seconds:.1f}")
        tested = (_summed(run.test[n]) if n in run.test else "not attacked" for n in ("clean", "robust"))
        trained.append((run.name, *tested, *spent))
    columns = ("run", "trained", "clean", "PGD", "all attacks", "checks passed")
    whole = ("run", "clean", "attacked", "passes", "seconds")
    about = f"Accuracy of the {one.images} test images attacked here"
    content = [
        html.table(about, columns, measured),
        html.table("What the training itself reported: the whole test set, and its cost", whole, trained),
    ]
    failed = [run.name for run in runs if not all(c.passed for c in sanity(found[run.name]))]
    if failed:
        warning = f"Robust accuracies of {', '.join(failed)} are too high: a check failed, and says why."
        content.append(
            html.around(
                "ul", [html.around("li", [html.element("strong", warning)], class_="failed")], class_="checks"
            )
        )
    return _section("Overview", "overview", content)


def _comparison(comparison: Comparison, compared: Sequence[Picture]) -> str:
    content = [html.pictures(compared)]
    content.append(html.around("ul", [html.element("li", points(gap)) for gap in comparison.gaps]))
    if comparison.transferred:
        rows = [(gap.name, _relative(gap)) for gap in comparison.transferred]
        content.append(html.table(f"Transferred: {TRANSFERRED}", ("", "value"), rows))
    if comparison.advice is not None:
        content.append(html.element("p", f"Advice: {comparison.advice.text}"))
    return _section("Comparison", "comparison", content)


def _relative(gap: Gap) -> str:
    high = "infinite" if gap.high is None else f"{gap.high:+.3f}"
    return f"{gap.value:+.3f} [{gap.low:+.3f}, {high}]"


# --- a run ---------------------------------------------------------------------------------------------


def _run(run: Run, whole: Found, drawn: Drawn, number: int) -> str:
    found = whole.numbers
    warnings = [f"{s.name}: {w}" for s in run.stages.values() for w in s.warnings]
    parts = [
        html.element("h3", "Arguments"),
        *_arguments(run),
        html.element("h3", "Learning"),
        html.pictures(drawn.learning),
        *(html.element("p", warning) for warning in warnings),
        html.element("h3", "Robustness and cost"),
        html.pictures([drawn.eps, drawn.cost]),
        html.folded("The numbers", [_accuracy_table(found), _cost_table(run)]),
        html.element("h3", "Can these numbers be believed?"),
        *_checks(found),
        html.element("h3", "Adversarial examples"),
        *_examples(found, drawn.examples),
        html.element("h3", "Transfer"),
        *_transfer(found, drawn.transfer, advice(whole)),
    ]
    return _section(f"{run.name}: {run.title}", f"run-{number}", parts)


def _arguments(run: Run) -> list[str]:
    recipe, given = run.recipe, run.about.get("arguments", {})
    eps = f"{UNITS[recipe['norm']]}, eps {recipe['eps']:.4g}"
    best = (f"{s.name}: epoch {s.best + 1} of {len(s.history)} was kept" for s in run.stages.values())
    commit = run.about.get("commit") or {}
    versions = [f"{n} {run.about[n]}" for n in ("roli_fast", "torch", "python") if n in run.about]
    known = [
        ("model", given.get("model")),
        ("checkpoint", given.get("initial_checkpoint")),
        ("data", (given.get("dataset") or "digits") if given else None),
        ("trained", run.title),
        ("attack", f"{recipe['attack']}, {recipe['steps']} steps, {eps}, loss {recipe['loss']}"),
        ("seed", recipe["seed"]),
        ("epochs", "; ".join(best)),
        ("versions", ", ".join(versions)),
        (
            "commit",
            f"{commit['id'][:12]}{' and changes' if commit['dirty'] else ''}" if commit.get("id") else None,
        ),
    ]
    stages = [*run.stages.values()]
    rows = [(name, *(_plain(s.recipe.get(name)) for s in stages)) for name in recipe]
    all_of_them = [html.table("Settings of the stages", ("", *(s.name for s in stages)), rows)]
    if given:
        # A 0 that was given is no False.
        shown = {n: v for n, v in given.items() if v is not None and v is not False and v != []}
        lines = [(f"--{n.replace('_', '-')}", _plain(v)) for n, v in shown.items()]
        all_of_them.append(
            html.table("The command's arguments that were given or have a default", ("", ""), lines)
        )
    return [
        html.facts((n, v) for n, v in known if v not in (None, "")),
        html.folded("All arguments", all_of_them),
    ]


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    return "none" if value is None else str(value)


def _accuracy_table(found: Measured) -> str:
    rows = [(f"{p.eps:.4g}", percent(p.alone), percent(p.carried)) for p in found.points]
    rows += [(f"{found.eps:.4g}, {n} starts", percent(r), "") for n, r in found.restarts.items() if n > 1]
    rows.append((f"{found.eps:.4g}, APGD and Square", percent(found.ensemble.robust), ""))
    rows.append((f"{found.eps:.4g}, all attacks", percent(found.robust), ""))
    return html.table(
        f"Accuracy of {found.images} test images", ("eps", "alone", "with successes of smaller eps"), rows
    )


def _cost_table(run: Run) -> str:
    def row(name: str, cost: Cost) -> tuple[object, ...]:
        seconds = (cost.attack, cost.training, cost.data, cost.evaluation, cost.seconds)
        counts = (cost.forwards, cost.input_gradients, cost.weight_gradients, cost.passes)
        return name, *(f"{c:,}" for c in counts), *(f"{s:.1f}" for s in seconds)

    rows = [row(stage.name, stage.cost) for stage in run.stages.values()]
    if len(rows) > 1:
        rows.append(row("together", run.cost))
    columns = ("stage", "forwards", "input gradients", "weight gradients", "passes", "attack, s",
               "training, s", "data, s", "evaluation, s", "all, s")  # fmt: skip
    return html.table("Cost; counts are images", columns, rows)


def _checks(found: Measured) -> list[str]:
    items = [_check(check) for check in sanity(found)]
    notes = [html.element("p", f"Note: {note}.", class_="quiet") for note in found.ensemble.notes]
    about = (
        f"Each check tolerates {TOLERANCE:.0%} of the images. Passing all of them proves nothing; if one "
        "fails, robust accuracies are too high."
    )
    return [html.element("p", about, class_="quiet"), html.around("ul", items, class_="checks"), *notes]


def _check(check: Check) -> str:
    verdict = "passed" if check.passed else "FAILED"
    said = [html.element("strong", f"{verdict}: {check.name}"), html.element("div", f"{check.measured}.")]
    if check.passed:
        return html.around("li", said)
    return html.around("li", [*said, html.element("div", check.means)], class_="failed")


def _examples(found: Measured, examples: Sequence[Picture]) -> list[str]:
    if not examples:
        return [html.element("p", "No image was right that an attack could have changed.")]
    scale = "Grey is no change, black and white are eps" if found.norm == "linf" else "Grey is no change"
    about = (
        f"The first images that PGD at eps {found.eps:.4g} fooled, and the first that withstood: clean, the "
        f"change, attacked. {scale}. Confidence is the softmax."
    )
    return [html.element("p", about, class_="quiet"), html.pictures(examples, "pictures examples")]


def _transfer(numbers: Measured, picture: Picture | None, advised: Advice | None) -> list[str]:
    found = numbers.transfer
    if found is None or picture is None or advised is None:
        return [html.element("p", f"No analysis of transfer: {numbers.no_transfer}.")]
    s = found.summary
    low, high = s["expected_robust_estimated"]
    measured = s["attacks"]["PGD"]
    lines = [
        ("clean", _summed(s["clean"])),
        ("criterion met", f"{s['criterion']['met']} of {s['criterion']['right']} right images"),
        ("robust, predicted by the criterion", _summed(s["criterion"]["predicted_robust"])),
        ("robust, measured by all attacks", _summed(s["robust"])),
        ("robust, estimated", f"between {low:.1%} and {high:.1%}"),
        ("contradictions", found.explanation),
        ("loss bound under PGD", _bound(measured["loss_bound"])),
    ]
    moved = [
        (
            kind,
            _figure(s["sensitivity"][kind]["mean"]),
            *map(_figure, s["sensitivity"][kind]["quantiles"].values()),
        )
        for kind in ("absolute", "relative")
    ]
    columns = ("distance", "mean", *(f"{q:.0%}" if q != 0.5 else "median" for q in QUANTILES))
    text = [
        html.facts(lines),
        html.table(
            "Sensitivity: how far features move under FeaturePGD (estimated, from below)", columns, moved
        ),
        html.element("p", f"Advice: {advised.text}"),
    ]
    return [html.around("div", [html.around("div", text), html.pictures([picture])], class_="pictures")]


def _summed(rate: Mapping[str, Any]) -> str:
    low, high = rate["interval"]
    return f"{rate['value']:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def _bound(bound: Mapping[str, Any]) -> str:
    rise, limit = _figure(bound["mean_rise"]), _figure(bound["mean_limit"])
    return f"the loss rises by {rise} of at most {limit} (means); it held for each image"


def _figure(value: float | None) -> str:
    return "infinite" if value is None or not math.isfinite(value) else f"{value:.3g}"


def _method(found: Measured) -> str:
    said = (
        f"{found.attack}. Each eps is attacked anew, with a step size of 2.5 eps / steps.",
        f"{found.ensemble.label}: shorter than the official AutoAttack, which roli-fast eval runs.",
        "All attacks: right under PGD at this and every smaller eps, under PGD with several starts, and "
        "under APGD and Square.",
        "Intervals of accuracies are Wilson's; of differences, a paired bootstrap's over images, or Wilson's "
        "where all images agree. They are "
        "about these images, not about other seeds of the training.",
        "Transfer: Nern et al., On Transfer of Adversarial Robustness from Pretraining to Downstream Tasks, "
        "NeurIPS 2023. Estimated, never certified. Checks: Athalye et al., ICML 2018; Carlini et al. 2019; "
        "Croce and Hein, ICML 2020.",
        "The numbers of this page, image by image, are in report.json beside it.",
    )
    return _section(
        "How it was measured", "method", [html.around("ul", [html.element("li", s) for s in said])]
    )
