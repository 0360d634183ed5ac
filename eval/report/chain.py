"""The section on the chain of jobs: where the time of every link went, and why it ended.

Invariant: figures are those of `chain/timeline.json`, which says itself what its kinds are called and which group each
belongs to; nothing here knows what started the jobs. A run without that file has no such section.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import read_json
from data_prep.progress import format_seconds
from eval.report import charts_chain
from eval.report.parts import make_chart

FILE = Path("chain") / "timeline.json"
_FORMAT = 1
_LABELS = {
    "wait": "waiting", "start-up": "start-up", "train": "training", "save": "saving", "evaluate": "evaluation",
    "stages": "data stages", "lost": "lost work", "idle": "idle",
}  # fmt: skip
_SHOWN_S = 0.05
_OPEN_ROWS = 12
"""Longer tables are folded."""


def read_chain(run: Path, missing: dict[str, str]) -> dict[str, Any] | None:
    """The timeline of a run; None where it has none, with a note where the file is damaged."""
    path = run / FILE
    if not path.is_file():
        return None
    try:
        record = read_json(path)
        _check(record)
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
        missing["chain of jobs"] = f"{FILE} cannot be read ({type(error).__name__})"
        return None
    return dict(record)


def _check(record: Any) -> None:
    """Raise where a figure that the section needs is not there."""
    if record["format"] != _FORMAT:
        raise ValueError("another format")
    for told in record["kinds"].values():
        str(told["label"]), str(told["group"]), int(told["place"])
    for link in record["links"]:
        str(link["job"]), int(link["number"]), str(link["cause"]), len(link["nodes"]), int(link["undone_steps"])
        for part in link["intervals"]:
            if not part["begin"] <= part["end"] or part["kind"] not in record["kinds"]:
                raise ValueError("an interval that is none")
    if record["goodput"] is not None and not math.isfinite(record["goodput"]):
        raise ValueError("not a number")


def chain(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Sentence, chart, table and causes of what was lost; None where the run has no timeline or no link."""
    if record is None or not record["links"]:
        return None
    groups = {kind: told["group"] for kind, told in record["kinds"].items()}
    links = record["links"]
    sums = [_by_group(link, groups) for link in links]
    total = {group: math.fsum(own.get(group, 0.0) for own in sums) for group in _LABELS}
    columns = [group for group in _LABELS if total[group] >= _SHOWN_S]
    rows = [_row(link, own, columns) for link, own in zip(links, sums, strict=True)]
    everything = math.fsum(total.values())
    drawn = [
        {"name": _name(link, links), "cause": link["cause"] or ("still runs" if link["running"] else ""),
         "intervals": link["intervals"]}
        for link in links
    ]  # fmt: skip
    svg = charts_chain.timeline(drawn, groups=groups, labels=_LABELS, title="Every link along the time", ident="chain")
    note = "One bar a link, thin where it waited; beside it why it ended before its work was done."
    return {
        "sentence": _sentence(record, total),
        "chart": make_chart("Every link along the time", svg, note),
        "head": [_LABELS[group] for group in columns],
        "rows": rows,
        "total": [format_seconds(total[group]) for group in columns] + [format_seconds(everything)],
        "shares": [f"{100 * total[group] / everything:.1f} %" if everything > 0 else "" for group in columns],
        "folded": len(rows) > _OPEN_ROWS,
        "start_up": _start_up(record, groups),
        "lost": _lost(record, links),
        "jobs": bool(record.get("jobs", True)),
    }


def _by_group(link: Mapping[str, Any], groups: Mapping[str, str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in link["intervals"]:
        group = groups[part["kind"]]
        found[group] = found.get(group, 0.0) + part["end"] - part["begin"]
    return found


def _name(link: Mapping[str, Any], links: Sequence[Mapping[str, Any]]) -> str:
    """The job, with the number of the link where it has several."""
    several = sum(other["job"] == link["job"] for other in links) > 1
    return f"{link['job']} {link['number']}" if several else str(link["job"])


def _row(link: Mapping[str, Any], own: Mapping[str, float], columns: Sequence[str]) -> dict[str, Any]:
    ended = "runs" if link["running"] else link["cause"] or link["outcome"]
    if again := link["undone_steps"]:
        ended += f"; {again:,} step{'s' if again != 1 else ''} computed again"
    begin = link["intervals"][0]["begin"] if link["intervals"] else link["start"]
    return {
        "job": link["job"],
        "number": link["number"],
        "began": datetime.fromtimestamp(begin, UTC).strftime("%m-%d %H:%M"),
        "nodes": ", ".join(map(str, link["nodes"])),
        "node_count": len(link["nodes"]) or "",
        "cells": [format_seconds(own[c]) if own.get(c, 0.0) >= _SHOWN_S else "" for c in columns],
        "total": format_seconds(math.fsum(own.values())),
        "ended": ended,
    }


def _sentence(record: Mapping[str, Any], total: Mapping[str, float]) -> str:
    links = record["links"]
    jobs = len({link["job"] for link in links})
    text = f"{len(links)} link{'s' if len(links) != 1 else ''} of {jobs} job{'s' if jobs != 1 else ''}"
    ends = [part["end"] for link in links for part in link["intervals"][-1:]]
    begins = [part["begin"] for link in links for part in link["intervals"][:1]]
    text += f" in {format_seconds(max(ends, default=0.0) - min(begins, default=0.0))}"
    if record["goodput"] is not None:
        useful = [_LABELS.get(group, group) for group in record["useful"]]
        listed = ", ".join(useful[:-1]) + " and " + useful[-1] if len(useful) > 1 else "".join(useful)
        text += f"; of the time on nodes, {100 * record['goodput']:.1f} % went into {listed}"
    again = sum(link["undone_steps"] for link in links)
    if total["lost"] >= _SHOWN_S:
        text += f". {format_seconds(total['lost'])} of work was lost"
        text += f" ({again:,} step{'s were' if again != 1 else ' was'} computed again)" if again else ""
    else:
        text += ". No work was lost"
    return text + "."


def _start_up(record: Mapping[str, Any], groups: Mapping[str, str]) -> list[tuple[str, str]]:
    """The parts of a start-up with their means over the links that trained."""
    trained = [link for link in record["links"] if any(groups[p["kind"]] == "train" for p in link["intervals"])]
    found = []
    for kind, told in sorted(record["kinds"].items(), key=lambda item: item[1]["place"]):
        if told["group"] != "start-up" or not trained:
            continue
        parts = [p["end"] - p["begin"] for link in trained for p in link["intervals"] if p["kind"] == kind]
        if math.fsum(parts) / len(trained) >= _SHOWN_S:
            found.append((str(told["label"]), format_seconds(math.fsum(parts) / len(trained))))
    return found


def _lost(record: Mapping[str, Any], links: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(link, how long, why) of every interval that was lost."""
    return [
        (_name(link, links), format_seconds(part["end"] - part["begin"]), str(part.get("note") or "unknown"))
        for link in links
        for part in link["intervals"]
        if part["kind"] == "lost"
    ]
