"""The sample of settings covers every pair, is small, and is the same everywhere."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from invariance.cases import FACTORS, WORLDS, all_cases
from invariance.pairwise import all_pairs, pairs_of, pairwise
from invariance.suite import TOLERANCE


def test_every_pair_is_covered() -> None:
    factors = {"a": ["1", "2", "3"], "b": ["x", "y"], "c": ["p", "q", "r", "s"], "d": ["0", "1"]}
    rows = pairwise(factors)
    for one, two in product(factors, factors):
        if one < two:
            seen = {(row[one], row[two]) for row in rows}
            assert seen == set(product(factors[one], factors[two]))
    assert all_pairs(factors) == set().union(*map(pairs_of, rows))
    assert 12 <= len(rows) <= 15, "3 · 4 is the least; the full product has 48"


def test_the_suite_covers_every_pair_and_stays_the_same() -> None:
    cases = all_cases()
    assert all_pairs(FACTORS) == set().union(*(pairs_of(case.settings) for case in cases))
    assert [case.name for case in cases] == [case.name for case in all_cases()]
    assert len({case.name for case in cases}) == len(cases)
    assert {case.world for case in cases} == set(WORLDS)


def test_the_recorded_table_is_of_this_suite(repo: Path) -> None:
    """Regenerate it with `python tests/train/invariance/table.py`."""
    text = (repo / "benchmarks" / "results" / "invariance.md").read_text(encoding="utf-8")
    recorded = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    rows = {row[0]: row for row in recorded if row[0].isdigit()}
    for case in all_cases():
        s, row = case.settings, rows.pop(str(case.number))
        assert row[1:3] == [s["world"], s["zero"]]
        assert row[4:9] == [s["layout"], s["model"], s["pooling"], s["loss"], s["negatives"]]
        assert max(float(row[10]), float(row[11])) <= TOLERANCE
    assert rows == {}
