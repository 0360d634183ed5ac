"""Queries that lost most by a damage: the text before and after, and where the right document stood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eval.metrics import hits
from eval.robustness.drawn import Cell, Drawn
from eval.robustness.kinds import KINDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EACH = 2
"""Examples for a system and a kind."""
_CHARACTERS = 240


class Examples:
    """Collects, for each system and kind at its highest strength, the queries whose right document fell furthest."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._highest = {kind: max(s for k, s in cells if k == kind) for kind, _ in cells}
        self._found: dict[tuple[str, str], list[tuple[float, dict[str, Any]]]] = {}

    def see(
        self, system: str, drawn: Drawn, cell: Cell, *, before: NDArray[np.int64], after: NDArray[np.int64],
        touched: NDArray[np.bool_], texts: Sequence[tuple[str, str]],
    ) -> None:  # fmt: skip
        """Remember the worst of one set.

        Args:
            before, after: [queries, depth] rankings.
            touched: which queries the damage changed.
            texts: for each query what was changed (the query, or its relevant document) before and after.
        """
        kind, strength = cell
        if strength != self._highest[kind]:
            return
        first, then = _ranks(before, drawn), _ranks(after, drawn)
        kept = self._found.setdefault((system, kind), [])
        for row in range(len(drawn.queries)):
            fell = (then[row] or after.shape[1] + 1) / (first[row] or before.shape[1] + 1)
            if not touched[row] or fell <= 1:
                continue
            was, now = _shown(*texts[row])
            told = {
                "system": system, "kind": kind, "strength": strength, "set": drawn.name,
                "query_id": drawn.query_ids[row], "query": _clip(drawn.queries[row], 0), "changed": KINDS[kind].target,
                "original": was, "perturbed": now, "before": first[row], "after": then[row],
            }  # fmt: skip
            kept.append((fell, told))
        kept.sort(key=lambda one: (-one[0], one[1]["set"], one[1]["query_id"]))
        del kept[EACH:]

    def chosen(self) -> list[dict[str, Any]]:
        """All examples, by system and kind; `before` and `after` are ranks from 1, None below the depth."""
        return [told for kept in self._found.values() for _, told in kept]


def _ranks(ranked: NDArray[np.int64], drawn: Drawn) -> list[int | None]:
    marked = hits(ranked, drawn.relevant)
    places = marked.argmax(axis=1)
    return [int(places[row]) + 1 if marked[row, places[row]] else None for row in range(len(marked))]


def _shown(original: str, perturbed: str) -> tuple[str, str]:
    """Both texts around the first place where they differ, cut to some length."""
    same = 0
    for a, b in zip(original, perturbed, strict=False):
        if a != b:
            break
        same += 1
    start = max(0, min(same - _CHARACTERS // 3, max(len(original), len(perturbed)) - _CHARACTERS))
    return _clip(original, start), _clip(perturbed, start)


def _clip(text: str, start: int) -> str:
    part = text[start : start + _CHARACTERS]
    return ("…" if start else "") + part + ("…" if start + _CHARACTERS < len(text) else "")
