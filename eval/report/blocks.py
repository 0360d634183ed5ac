"""The few kinds of blocks that a section is made of, so that the page draws all alike and a new one needs no markup.

A section is sentences, charts, matrices (figures shaded by size), tables, and folded samples to read, in this order.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

READ = 50
"""Samples of one fold: what a person reads in half an hour."""
_EXCERPT = 400


def section(title: str, sentences: Iterable[str], *, note: str = "", **blocks: Any) -> dict[str, Any]:
    """A section; blocks without rows or items are left out.

    Args:
        title: the heading; its words are the anchor too.
        sentences: what it says; empty ones are left out.
        note: how to read what follows.
        blocks: `charts`, `matrices`, `more` (matrices that are folded), `tables`, `folds`.
    """
    return {
        "ident": slug(title),
        "apart": False,
        "title": title,
        "sentences": [sentence for sentence in sentences if sentence],
        "note": note,
        "charts": list(blocks.get("charts", [])),
        "matrices": [matrix for matrix in blocks.get("matrices", []) if matrix["rows"]],
        "more": [matrix for matrix in blocks.get("more", []) if matrix["rows"]],
        "tables": [table for table in blocks.get("tables", []) if table["rows"]],
        "folds": [fold for fold in blocks.get("folds", []) if fold["items"]],
    }


def slug(title: str) -> str:
    """The anchor of a heading; never that of a chart, whose ids have a number or capitals."""
    return "at-" + re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> dict[str, Any]:
    """A table; columns that hold words are set as words, others as figures."""
    found = [list(row) for row in rows]
    texts = [any(isinstance(row[n], str) and not _figure(row[n]) for row in found) for n in range(len(head))]
    cells = [[(_cell(value), text) for value, text in zip(row, texts, strict=True)] for row in found]
    return {"title": title, "head": list(zip(head, texts, strict=True)), "rows": cells}


def _figure(text: str) -> bool:
    """Whether a text is a number with its unit or interval rather than words."""
    return not text or (text[0] in "<+−–-0123456789[" and len(text) < 32) or text.endswith(" %")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def cell(text: str, *, small: str = "", shade: float = 0.0, tone: str = "finetuned") -> dict[str, Any]:
    """One figure of a matrix.

    Args:
        text: the figure. small: what stands below it, such as its interval.
        shade: 0 to 1, how strong the colour is.
        tone: a colour of the style sheet.
    """
    return {
        "text": text,
        "small": small,
        "shade": round(50 * min(1.0, max(0.0, shade)), 1),
        "tone": tone,
        "best": False,
    }


def matrix(
    title: str, corner: str, columns: Sequence[str], rows: Iterable[tuple[str, str, bool, Sequence[Any]]]
) -> dict[str, Any]:
    """A table of shaded cells.

    Args:
        title: heading, also what a screen reader calls it.
        corner: what the rows are.
        columns: names over the cells.
        rows: (label, note beside it, whether it is a part of the row above, cells; None where there is no figure).
    """
    nothing = cell("–")
    found = [
        {"label": label, "note": note, "part": part, "cells": [one or nothing for one in cells]}
        for label, note, part, cells in rows
    ]
    return {"title": title, "corner": corner, "columns": list(columns), "rows": found}


def fold(title: str, samples: Iterable[Any]) -> dict[str, Any]:
    """Samples to read: each one a list of (label, text); a bare text has no label."""
    items = []
    for sample in list(samples)[:READ]:
        fields = sample.items() if isinstance(sample, Mapping) else [("", sample)]
        items.append([(words(name), _excerpt(value)) for name, value in fields if value not in ("", [])])
    return {"title": title, "items": items}


def words(name: Any) -> str:
    """A name of a file as words: `too_short` → `too short`."""
    return str(name).replace("_", " ")


def _excerpt(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1].rstrip() + "…"


def percent(share: float) -> str:
    """A share with two decimals: `3.35 %`."""
    return f"{100 * share:.2f} %"


def signed(value: float) -> str:
    """A difference with its sign and a true minus: `+0.012`, `−0.030`; what rounds to nothing has no sign."""
    text = f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
    return "0.000" if text[1:] == "0.000" else text


def spread(low: float, high: float, *, sign: bool = False) -> str:
    """An interval as `0.889–0.933`, or `+0.010 to +0.030` for a difference."""
    return f"{signed(low)} to {signed(high)}" if sign else f"{low:.3f}–{high:.3f}"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a file is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
