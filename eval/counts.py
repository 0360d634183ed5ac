"""What was counted on the way to the results, and whether it adds up.

Invariant: every query in a file is scored by every system or listed as unjudged; every document is ranked by every
system; every ranking is stored; every subset of every set has a row of every system. The numbers that are compared are
counted at different places (lines while reading, rows of what came back, rows of the files that were written), so that
a text that falls out between them shows. An evaluation whose counts do not add up fails and leaves no results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from eval.relevance import Judged


class CountError(RuntimeError):
    """A count of an evaluation is not what it must be: texts were lost, which is a defect and no bad score."""


@runtime_checkable
class CountsDocuments(Protocol):
    """A ranker that tells how many documents its last ranking was made from, such as the rows of a vector store."""

    documents_ranked: int


def set_counts(judged: Judged, *, depth: int) -> dict[str, Any]:
    """What a set holds, before any system: lines, texts, judgements.

    Args:
        depth: of the stored rankings; `deeper` counts queries with more relevant documents than that.
    """
    task = judged.task
    return {
        "documents_in_file": task.documents_in_file,
        "documents": len(task.documents),
        "empty_documents": sum(not document.strip() for document in task.documents),
        "queries_in_file": task.queries_in_file,
        "scored": len(task.queries),
        "unjudged": len(task.unjudged),
        "subsets": {subset: len(queries) for subset, queries in task.relevant.items()},
        "judgements": {s: sum(map(len, queries.values())) for s, queries in task.relevant.items()},
        "near_duplicates": dict(judged.added),
        "depth": depth,
        "deeper": sum(len(found) > depth for found in judged.relevant["all"]),
    }


def total_counts(
    by_set: Mapping[str, Mapping[str, Any]],
    by_system: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The `counts` of results.json.

    Args:
        by_set: set → `set_counts`.
        by_system: system → set → `documents` (ranked), `rankings` (stored), `scored` (subset → queries).
        rows: of the results.
    """
    sets = by_set.values()
    return {
        "systems": len(by_system),
        "sets": len(by_set),
        "documents": sum(one["documents"] for one in sets),
        "empty_documents": sum(one["empty_documents"] for one in sets),
        "queries_in_files": sum(one["queries_in_file"] for one in sets),
        "scored": sum(one["scored"] for one in sets),
        "unjudged": sum(one["unjudged"] for one in sets),
        "near_duplicates": sum(one["near_duplicates"]["all"] for one in sets),
        "rankings": sum(there["rankings"] for told in by_system.values() for there in told.values()),
        "rows": len(rows),
        "by_set": {name: dict(one) for name, one in by_set.items()},
        "by_system": {name: dict(told) for name, told in by_system.items()},
    }


def check_counts(counts: Mapping[str, Any]) -> None:
    """Make sure that the `counts` of results.json add up. Raises `CountError` that says which one is wrong."""
    for name, one in counts["by_set"].items():
        _equal(f"set {name}: documents", one["documents"], one["documents_in_file"], "lines of its corpus")
        found = one["scored"] + one["unjudged"]
        _equal(f"set {name}: scored and unjudged queries", found, one["queries_in_file"], "lines of its queries")
    subsets = sum(len(one["subsets"]) for one in counts["by_set"].values())
    for system, told in counts["by_system"].items():
        for name, one in counts["by_set"].items():
            if name not in told:
                raise CountError(f"the counts do not add up: system {system} did not rank set {name}")
            there, where = told[name], f"system {system}, set {name}"
            _equal(f"{where}: ranked documents", there["documents"], one["documents"], "documents of the set")
            _equal(f"{where}: stored rankings", there["rankings"], one["scored"], "queries of the set")
            for subset, queries in one["subsets"].items():
                scored = there["scored"].get(subset, 0)
                _equal(f"{where}, subset {subset}: scored queries", scored, queries, "queries that it judges")
    _equal("systems", len(counts["by_system"]), counts["systems"], "systems of the evaluation")
    _equal("rankings", counts["rankings"], counts["systems"] * counts["scored"], "systems times queries")
    _equal("rows", counts["rows"], counts["systems"] * subsets, "systems times subsets")


def _equal(what: str, found: int, wanted: int, meaning: str) -> None:
    if found != wanted:
        raise CountError(f"the counts do not add up: {what}: {found}, must be {wanted} ({meaning})")
