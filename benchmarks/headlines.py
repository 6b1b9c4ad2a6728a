"""What a run has found, in a few lines for the terminal."""

from typing import Any

Cases = list[dict[str, Any]]  # entries of a suite's JSON

# By case: whose time is to be at least so many times ours.
GOALS = {
    "resnet18-128": ("torchattacks-autocast", 2.0),
    "swin-b-64": ("roli", 6.0),
    "swin-b-64-training": ("roli", 6.0),
}
MOST_OVERHEAD = 0.01
OURS = "ours-bf16"


def lines(suite: str, cases: Cases) -> list[str]:
    of = {"test_ops": of_ops, "test_attacks": of_attacks, "test_cross_entropy": of_cross_entropy}
    return of[suite](cases) if cases else []


def of_ops(cases: Cases) -> list[str]:
    """The copy bandwidth, and what ours reaches of it in each form on the largest size, beside its rivals."""
    sizes = list(dict.fromkeys(case["params"]["size"] for case in cases))
    by = {
        (c["params"]["form"], c["params"]["contender"]): c for c in cases if c["params"]["size"] == sizes[-1]
    }
    copies = [case["extra_info"]["effective_gb_per_s"] for (_, who), case in by.items() if who == "copy"]
    found = [f"copy bandwidth {max(copies):.0f} GB/s, at {sizes[-1]}"] if copies else []
    for (form, who), case in by.items():
        if who != "ours":
            continue
        share = 1 / case["extra_info"]["ratio_to_copy"]["median"]
        rivals = (
            f"{rival} {other['extra_info']['ratio_to_ours']['median']:.2f}"
            for (of, rival), other in by.items()
            if of == form and rival not in ("ours", "copy")
        )
        found.append(f"{form}: {share:.0%} of copy bandwidth; times as fast as rivals: {', '.join(rivals)}")
    return found


def of_cross_entropy(cases: Cases) -> list[str]:
    """Ours for each shape, beside its rivals."""
    found = []
    for shape in dict.fromkeys(case["params"]["shape"] for case in cases):
        of = {c["params"]["contender"]: c for c in cases if c["params"]["shape"] == shape}
        rivals = (
            f"{who} {case['extra_info']['ratio_to_ours']['median']:.2f}"
            for who, case in of.items()
            if who != "ours"
        )
        microseconds = 1e6 * of["ours"]["stats"]["median"]
        found.append(f"{shape}: {microseconds:.1f} us; times as fast as rivals: {', '.join(rivals)}")
    return found


def of_attacks(cases: Cases) -> list[str]:
    """Times as multiples of ours in bf16, robust accuracies, and how the goals stand."""
    found = []
    for name, of_case in by_case(cases).items():
        reference = of_case.get(OURS)
        if reference is None:
            found.append(f"{name}: {OURS} was not measured")
            continue
        about = reference["extra_info"]
        found.append(f"{name}: {OURS} {1e3 * reference['stats']['median']:.2f} ms, {described(about)}")
        for who, case in of_case.items():
            if who != OURS:
                ratio = case["extra_info"]["ratio_to"][OURS]
                found.append(f"  {who}: {spread(ratio)} times as long, {described(case['extra_info'])}")
        if name in GOALS and GOALS[name][0] in of_case:
            rival, goal = GOALS[name]
            ratio = of_case[rival]["extra_info"]["ratio_to"][OURS]
            reached = "reached" if ratio["median"] >= goal else "MISSED"
            found.append(f"  goal {reached}: {rival} {spread(ratio)} times as long, at least {goal:g}")
    return found


def by_case(cases: Cases) -> dict[str, dict[str, dict[str, Any]]]:
    """Contenders by case."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for case in cases:
        found.setdefault(case["params"]["case"], {})[case["params"]["contender"]] = case
    return found


def described(about: dict[str, Any]) -> str:
    facts = [f"{about['images_per_s']:.0f} images/s"]
    if about["robust_accuracy"] is not None:
        facts.append(f"robust {about['robust_accuracy']:.1%}")
    if about["peak_bytes"] is not None:
        facts.append(f"peak {about['peak_bytes'] / 2**20:.0f} MiB")
    if about["launches"]:
        facts.append(f"{about['launches']} launches")
    if about["overhead"] is not None:
        reached = "" if about["overhead"]["median"] <= MOST_OVERHEAD else f", MORE THAN {MOST_OVERHEAD:.0%}"
        facts.append(f"overhead {spread(about['overhead'], percent=True)}{reached}")
    return "; ".join([", ".join(facts), *about["notes"]])


def spread(values: dict[str, float], percent: bool = False) -> str:
    median, q1, q3 = (f"{values[n]:.1%}" if percent else f"{values[n]:.2f}" for n in ("median", "q1", "q3"))
    return f"{median} [{q1}, {q3}]"
