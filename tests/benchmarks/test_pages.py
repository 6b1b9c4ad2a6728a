"""What documents show of the price is what was measured."""

import json

from benchmarks.price import pages, pictures
from benchmarks.price.phases import PHASES
from benchmarks.price.removals import FOOLED, OPS, PUBLIC, WEIGHTS
from benchmarks.price.seconds import to_best
from benchmarks.price.times import PARTS


def test_the_pages_are_generated_from_the_results(tmp_path):
    result = json.loads(pages.RESULT.read_text())
    for document, tables in pages.PAGES.items():
        text = document.read_text()
        assert pages.written(text, tables(result)) == text
        assert tables(result) in text
    pictures.draw_curves(result["sizes"], tmp_path / "price.png")
    assert (tmp_path / "price.png").stat().st_size > 10_000


def test_what_else_the_page_shows():
    """Several sizes, stronger attacks where a row has them, where cells were trained, and times on a GPU."""

    def row(gap, **more):
        accuracy = {"mean": 0.5, "by_seed": [0.5, 0.5]}
        gaps = [{"value": gap, "low": gap - 0.01, "high": gap + 0.01}]
        shown = {"seeds": 2, "clean": accuracy, "pgd20": accuracy, "best_epochs": [1, 2]}
        shown |= {"passes_to_ranlis_best": [500, None], "ranlis_passes_to_it": [1000, 1000]}
        shown |= {"looked_at_held_out": True}
        return shown | {"pgd20_minus_ranli": gaps, "devices": ["nvidia-h200"]} | more

    judged = {
        "apgd": {"mean": 0.4, "by_seed": [0.4]},
        "apgd_minus_ranli": [{"value": 0.02, "low": 0, "high": 0.04}],
    }
    spent = {"attack": {"median": 2e-5}, "training": {"median": 1e-5}}
    half = {"attack": {"median": 1e-5}, "training": {"median": 5e-6}}
    result = {
        "sizes": {
            "50": {"RanLI Full-FT": row(0), "Linear, rounds": row(0.1, **judged)},
            "200": {"A": row(0)},
        },
        "times": {
            "nvidia-h200": {
                "seconds_per_image": {
                    f"{kind}, {method}": cost
                    for kind, cost in (("public code", spent), ("ours", half))
                    for method in ("full", "linear")
                },
                "machine": {"gpu": {"name": "NVIDIA H200"}},
            }
        },
    }
    page = pages.page(result)
    small, large = page.split("### 200 images a class")
    assert "Trained on nvidia-h200." in small
    assert (
        "| Linear, rounds | 2 | 50.0 ± 0.0 | 50.0 ± 0.0 | +10.0 ± 1.0 | 40.0 (1 of 2 seeds) | +2.0 ± 2.0 |"
        in small
    )
    assert "| 50%*, 1 of 2 seeds never |" in small
    assert "APGD" not in large
    assert "AutoAttack" not in page
    assert "### What an image costs: NVIDIA H200" in large
    assert "| ours, full | 10.00 | 5.00 | 15.00 | 50% |" in large
    assert "| 200 |" not in pages.summary(result)  # none of the arms that are shown
    assert "| 50 | Linear, rounds | 2 | 50.0 ± 0.0 |" in pages.summary(result)
    result["sizes"]["200"]["B"] = row(0, devices=["cpu"])
    assert "**Trained on different devices**: cpu, nvidia-h200." in pages.page(result)


def test_seconds_to_the_best_epoch():
    """Of each seed: all of probing, and finetuning to the end of the best epoch."""
    clock = {
        "heads": {"sgd": [[2.0, 4.0], [3.0, 6.0]], "rounds": [[5.0], [7.0]]},
        "arms": {
            "RanLI Full-FT": [[10.0, 20.0], [11.0, 22.0]],
            "RoLI Full-FT, rounds": [[10.0, 30.0], [11.0, 33.0]],
            "RoLI Full-FT, public code": [[1.0, 2.0], [1.0, 2.0]],
        },
    }
    expected = {
        "Linear, 20 epochs of SGD": [2, 6],
        "Linear, rounds": [5, 7],
        "Linear, public code": None,
        "RanLI Full-FT": [10, 22],
        "RoLI Full-FT, rounds": [5 + 10, 7 + 33],
        "RoLI Full-FT, rounds, N-FGSM": None,
        "RoLI Full-FT, public code": None,
    }
    assert {name: to_best(name, [1, 2], clock) for name in expected} == expected
    machine = {"gpu": None, "cpu": "A CPU", "cores": 2, "instruction_set": "avx2"}
    measured = {"a-cpu": {"machine": machine, "seconds": {"50": clock}}}
    assert pages._clocks({"seconds": measured}, "50") == {"A CPU, 2 cores, avx2": clock}
    assert pages._clocks({"seconds": measured}, "200") == {}
    assert pages._to_best("RanLI Full-FT", {"best_epochs": [1, 2]}, clock) == "16 (10, 22)"


def test_what_stopping_early_saves():
    """Means over seeds, of the passes of all epochs."""
    ended = {"passes": [500, 250], "held_out": [0.41, 0.43]}
    row = {"patience": {"3": ended}, "passes": [1000, 1000], "held_out": [[0.4, 0.44], [0.42, 0.1]]}
    sizes = {"50": {"RanLI Full-FT": row | {"best_epochs": [2, 1]}, "Linear, rounds": {}}, "200": {}}
    heads, _, line = pages._patience(sizes)
    assert heads == "| images a class | | 3 epochs, passes | held out | all epochs, passes | held out |"
    assert line == "| 50 | RanLI Full-FT | 38% | 42.0 | 1 k | 43.0 |"


def test_what_each_removal_gave():
    """Less what the last rung took that was measured in that column."""
    cpu = {"gpu": None, "cpu": "A CPU", "cores": 2, "instruction_set": "avx2"}
    took = {
        "full": {PUBLIC: 20, WEIGHTS: 14.5, OPS: 10},
        "validation": {PUBLIC: 30, OPS: 12, FOOLED: 8},
    }
    seconds = {
        column: {rung: {"median": milliseconds / 1e3} for rung, milliseconds in rungs.items()}
        for column, rungs in took.items()
    }
    page = pages.page({"sizes": {}, "removals": {"a-cpu": {"seconds_per_image": seconds, "machine": cpu}}})
    assert "### What each removal gave: A CPU, 2 cores, avx2" in page
    assert "| | full finetuning, ms | saves | validation, ms | saves |" in page
    assert f"| {PUBLIC} | 20.00 |  | 30.00 |  |" in page
    assert f"| {WEIGHTS} | 14.50 | 5.50 |  |  |" in page
    assert f"| {OPS} | 10.00 | 4.50 | 12.00 | 18.00 |" in page
    assert f"| {FOOLED} |  |  | 8.00 | 4.00 |" in page


def test_where_the_price_went(tmp_path):
    """By steps, each with its factor over the one before it that was measured there."""

    def both(milliseconds):
        return {part: {"median": milliseconds / 2e3} for part in PARTS}

    cpu = {"gpu": None, "cpu": "A CPU", "cores": 2, "instruction_set": "avx2"}
    seconds = {"public code, full": both(20), "public code, linear": both(15)}
    seconds |= {"ours, full": both(10), "ours, linear": both(9), "ours, one step, linear": both(3)}
    seconds |= {"ours, bf16, full": both(8), "ours, one step, bf16, linear": both(2)}
    stage = dict.fromkeys(PHASES, 0.001) | {"fits": 0}
    result = {
        "sizes": {},
        "times": {"a-cpu": {"seconds_per_image": seconds, "machine": cpu}},
        "phases": {"a-cpu": {"seconds_per_image": {"finetuning": stage}, "machine": cpu}},
    }
    page = pages.page(result)
    assert "| public code | 600 |  |" in page  # 20 epochs of 15, 15 of 20
    assert "| channels-last | 330 | 1.82 |" in page
    assert "| bfloat16 |  |  |" in page  # probing by SGD was not measured in it
    assert "| rounds of one step instead of SGD | 124 | 2.66 |" in page  # 2 attacks of 2, 15 epochs of 8
    assert "| all that was measured |  | 4.84 |" in page
    assert "### Where the time goes: A CPU, 2 cores, avx2" in page
    assert "| finetuning | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 |  | 1.00 | 1.00 | 8.00 |" in page
    pictures.draw_phases(result["phases"]["a-cpu"]["seconds_per_image"], tmp_path / "phases.png")
    assert (tmp_path / "phases.png").stat().st_size > 5_000
