"""Counts that add up pass; each that is broken is named."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest

from eval.counts import CountError, check_counts, set_counts, total_counts
from eval.relevance import judge
from tests.eval.test_relevance import TASK


def good() -> dict[str, Any]:
    one = {
        "documents_in_file": 5, "documents": 5, "empty_documents": 1, "queries_in_file": 4, "scored": 3, "unjudged": 1,
        "subsets": {"all": 3, "hard": 2}, "near_duplicates": {"all": 0, "hard": 0},
    }  # fmt: skip
    there = {"documents": 5, "rankings": 3, "scored": {"all": 3, "hard": 2}}
    by_system = {name: {"news": copy.deepcopy(there), "law": copy.deepcopy(there)} for name in ("bm25", "own")}
    return total_counts({"news": one, "law": copy.deepcopy(one)}, by_system, rows=[{}] * 8)


def test_good_counts_pass_and_are_summed() -> None:
    counts = good()
    check_counts(counts)
    assert {k: v for k, v in counts.items() if not k.startswith("by_")} == {
        "systems": 2, "sets": 2, "documents": 10, "empty_documents": 2, "queries_in_files": 8, "scored": 6,
        "unjudged": 2, "near_duplicates": 0, "rankings": 12, "rows": 8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("by_set", "law", "documents"), 4, "set law: documents: 4, must be 5"),
        (("by_set", "law", "unjudged"), 0, "set law: scored and unjudged queries: 3, must be 4"),
        (("by_set", "news", "queries_in_file"), 5, "set news: scored and unjudged queries: 4, must be 5"),
        (("by_system", "own", "law", "documents"), 4, "system own, set law: ranked documents: 4, must be 5"),
        (("by_system", "own", "news", "rankings"), 2, "system own, set news: stored rankings: 2, must be 3"),
        (("by_system", "bm25", "news", "scored"), {"all": 3}, "set news, subset hard: scored queries: 0, must be 2"),
        (("by_system", "own"), {"news": good()["by_system"]["own"]["news"]}, "system own did not rank set law"),
        (("systems",), 3, "systems: 2, must be 3"),
        (("rankings",), 11, "rankings: 11, must be 12"),
        (("rows",), 7, "rows: 7, must be 8"),
    ],
)
def test_a_broken_count_is_named(path: tuple[str, ...], value: Any, says: str) -> None:
    counts = good()
    place = counts
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(CountError, match=says):
        check_counts(counts)


def test_what_a_set_holds() -> None:
    """A document without text stays among the documents, and is counted."""
    task = dataclasses.replace(TASK, documents=[*TASK.documents[:-1], " \n"])
    assert set_counts(judge(task), depth=1)["empty_documents"] == 1
    found = set_counts(judge(TASK), depth=1)
    assert found["empty_documents"] == 0
    assert (found["documents"], found["scored"], found["deeper"], found["depth"]) == (5, 3, 1, 1)
    assert found["judgements"] == {"all": 4, "hard": 2} and found["subsets"] == {"all": 3, "hard": 2}
