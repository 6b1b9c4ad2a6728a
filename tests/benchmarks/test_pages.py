"""What docs/price.md shows is what was measured."""

import json
from pathlib import Path

from benchmarks import price_pages

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_generated_from_the_results(tmp_path):
    result = json.loads((ROOT / "benchmarks" / "results" / "price.json").read_text())
    page = price_pages.PAGE.read_text()
    assert price_pages.written(page, result) == page
    price_pages.draw(result, tmp_path / "price.png")
    assert (tmp_path / "price.png").stat().st_size > 10_000
