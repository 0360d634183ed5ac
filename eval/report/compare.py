"""One page that compares runs: their models on the sets that all of them measured, their recipes, curves and cost.

Invariant: the first run is what the others are compared with. A difference is paired where the stored rankings of the
runs hold the same queries and give the figures of results.json; where not, the page says so. Like the page of a run it
computes no figure of a model anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import write_atomically
from eval import metrics
from eval.report import charts
from eval.report.blocks import signed, spread
from eval.report.compare_parts import costs, curves, differences, on_every_set, recipes
from eval.report.page import render
from eval.report.parts import Chart, lead_metric, make_chart
from eval.report.sides import Gains, Side, paired_gains, per_query, read_sides, shared_sets
from eval.table import best_systems

MOST = 12
"""Runs on one page: more cannot be told apart."""
_NAMED = 3


def write_comparison(runs: Sequence[Path], *, out: Path) -> dict[str, int]:
    """Write the page that compares `runs` to the file `out`.

    Returns:
        Counts: runs, sets (that all measured), paired (sets on which all are paired), charts, bytes.

    Raises:
        UserError: fewer than two runs or more than `MOST`, one that is no run or has no results, or no set that all
            of them measured.
    """
    if not 2 <= len(runs) <= MOST:
        raise UserError(f"{len(runs)} runs", f"a comparison takes 2 to {MOST}", "name so many")
    sides = read_sides(runs)
    sets, left_out = shared_sets(sides)
    if not sets:
        named = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise UserError("the runs", f"share no evaluation set ({named})", "compare runs that measured the same sets")
    context, paired = _context(sides, sets, left_out)
    page = render("compare.html.j2", context).encode()
    write_atomically(out, page)
    counts = {"runs": len(sides), "sets": len(sets), "paired": paired}
    return counts | {"charts": page.count(b"<svg"), "bytes": len(page)}


def _context(sides: Sequence[Side], sets: Sequence[str], left_out: Mapping[str, str]) -> tuple[dict[str, Any], int]:
    results = sides[0].results
    lead, level = lead_metric(results), round(100 * results["bootstrap"]["level"])
    names = [name for name in metrics.metric_names(results["ks"]) if all(_has(side, sets, name) for side in sides)]
    if lead not in names:
        raise UserError("the runs", f"do not all say {lead}", "evaluate them with the same [eval] ks")
    values = {(side.name, task): per_query(side, task, names) for side in sides for task in sets}
    gains = {task: paired_gains(sides, [task], values, names) for task in sets}
    everything = paired_gains(sides, sets, values, names)
    own, others, lacking = _headline_rows(sides, sets, names)
    parts = [
        differences(sides, sets, gains, everything, lead), on_every_set(sides, sets, lead), recipes(sides),
        curves(sides), costs(sides),
    ]  # fmt: skip
    shown = [part for part in parts if part is not None]
    missing = [*left_out.items(), *lacking]
    missing += [(f"{side.name}, {part}", why) for side in sides for part, why in sorted(side.facts.missing.items())]
    title = " and ".join(side.name for side in sides[:_NAMED])
    title += f" and {len(sides) - _NAMED} more" if len(sides) > _NAMED else ""
    context = {
        "title": f"Comparison of {title}",
        "headline": {
            "title": f"Comparison of {title}", "verdict": _verdict(sides, own, everything, lead, len(sets)),
            "beside": "", "tiles": _tiles(sides, own, everything, lead),
        },
        "summary": _summary(sides, sets),
        "contents": [("at-results", "Results"), *((part["ident"], part["title"]) for part in shown)],
        "level": level,
        "metric_names": names,
        "tables": [_block("models of the runs", own, names), _block("measured beside them", others, names)],
        "result_charts": _charts([*own, *others], results["ks"], lead, set(names)),
        "parts": shown,
        "missing": missing,
        "footer": "Every figure on this page comes from the files of the runs.",
    }  # fmt: skip
    context["tables"] = [block for block in context["tables"] if block["rows"]]
    return context, sum(gain is not None for gain in gains.values())


def _has(side: Side, sets: Sequence[str], name: str) -> bool:
    return all(name in (side.row(task) or {"metrics": {}})["metrics"] for task in sets)


def _headline_rows(
    sides: Sequence[Side], sets: Sequence[str], names: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[tuple[str, str]]]:
    """Rows of the runs' models; of every other system, once where runs have the same figures; and what has none."""
    own: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    lacking: list[tuple[str, str]] = []
    for number, side in enumerate(sides):
        for system in side.results["systems"]:
            mine = system["name"] == side.system
            if not mine and system["kind"] in ("finetuned", "checkpoint"):
                continue
            figures = _mean(side, system["name"], sets, names)
            if figures is None:
                name = side.name if mine else f"{side.name}, {system['name']}"
                lacking.append((name, "its mean over the shared sets cannot be had from what it keeps"))
                continue
            row = {"detail": system["detail"], "metrics": figures, "base": system["name"], "of": side.name}
            if mine:
                kind = f"run{number % len(charts.RUN_COLOURS)}"
                own.append({"system": side.name, "kind": kind, **row})
            elif not any(told["base"] == row["base"] and told["metrics"] == figures for told in others):
                others.append({"system": system["name"], "kind": system["kind"], **row})
    for row in others:  # what the runs measured differently is named after its run
        if sum(told["base"] == row["base"] for told in others) > 1:
            row["system"] = f"{row['base']} ({row['of']})"
    return own, others, lacking


def _mean(side: Side, system: str, sets: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, float]] | None:
    """Metric → mean over the shared sets with its interval: as stored where the run has no other set."""
    import numpy as np

    if {task["name"] for task in side.results["sets"]} == set(sets):
        rows = (r for r in side.results["means"] if r["system"] == system and r["subset"] == "all")
        told_of: dict[str, Any] = next(rows, {"metrics": {}})["metrics"]
        return {n: told_of[n] for n in names} if all(n in told_of for n in names) else None
    told = [per_query(side, task, names, system) for task in sets]
    found = [figures for figures in told if not isinstance(figures, str)]
    if len(found) < len(sets):
        return None
    setting = side.results["bootstrap"]
    drawn = [
        metrics.bootstrap_means(
            values, samples=setting["samples"], rng=metrics.generator(setting["seed"], task, "all")
        )
        for task, (_, values) in zip(sets, found, strict=True)
    ]  # fmt: skip
    mean = np.mean([values.mean(axis=0) for _, values in found], axis=0)
    return metrics.summary(names, mean, np.mean(drawn, axis=0))


def _block(title: str, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Rows as the results table wants them, the best of each column marked."""
    best = {name: best_systems(rows, name) for name in names}
    return {
        "title": title,
        "rows": [
            {
                "system": row["system"], "kind": row["kind"], "detail": row["detail"], "colour": _colour(row["kind"]),
                "cells": [{"metric": row["metrics"][n], "best": row["system"] in best[n]} for n in names],
            }
            for row in rows
        ],
    }  # fmt: skip


def _colour(kind: str) -> str:
    return kind if kind in charts.KIND_COLOURS or kind.startswith("run") else "baseline"


def _charts(rows: Sequence[Mapping[str, Any]], ks: Sequence[int], lead: str, names: set[str]) -> list[Chart]:
    """Bars of the headline metric, and recall over k."""
    title = f"{lead}, all queries"
    leads = {row["system"]: row["metrics"][lead] for row in rows}
    found = [make_chart(title, charts.bars(rows_as_systems(rows), leads, title=title, ident="bars"))]
    if len(ks) > 1 and all(f"recall@{k}" in names for k in ks):
        title = "Recall by documents read, all queries"
        told = {row["system"]: row["metrics"] for row in rows}
        found.append(make_chart(title, charts.curves(rows_as_systems(rows), told, ks, title=title, ident="curves")))
    return found


def rows_as_systems(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Name and kind of each row, as the plots take systems."""
    return [{"name": row["system"], "kind": row["kind"]} for row in rows]


def _verdict(
    sides: Sequence[Side], own: Sequence[Mapping[str, Any]], gains: Gains | None, lead: str, sets: int
) -> str:  # fmt: skip
    """The best run, and whether it is ahead of the first by more than chance."""
    over = f"over {sets} shared evaluation set{'s' if sets != 1 else ''}"
    if not own:
        return f"{len(sides)} runs {over}."
    best = max(own, key=lambda row: row["metrics"][lead]["mean"])
    value = best["metrics"][lead]
    text = f"The best of {len(sides)} runs is {best['system']}: {lead} {value['mean']:.3f}"
    text += f" [{value['low']:.3f}, {value['high']:.3f}] {over}"
    first = sides[0].name
    if gains is None:
        return f"{text}."
    if best["system"] == first:
        level = [run for run, told in gains.items() if told[lead]["high"] >= 0]
        return f"{text}; {', '.join(level)} cannot be told from it." if level else f"{text}, ahead of every other."
    gain = gains[best["system"]][lead]
    told = f"{signed(gain['mean'])} [{spread(gain['low'], gain['high'], sign=True)}]"
    return f"{text}, {told} against {first}" + ("." if gain["low"] > 0 else ", which may be chance.")


def _tiles(
    sides: Sequence[Side], own: Sequence[Mapping[str, Any]], gains: Gains | None, lead: str
) -> list[dict[str, str]]:  # fmt: skip
    tiles = []
    for row in own[:6]:
        value, name = row["metrics"][lead], row["system"]
        note = f"[{value['low']:.3f}, {value['high']:.3f}]"
        tone = ""
        if gains is not None and name in gains:
            gain = gains[name][lead]
            tone = "good" if gain["low"] > 0 else "bad" if gain["high"] < 0 else ""
            note = f"{signed(gain['mean'])} against {sides[0].name}"
        tiles.append({"label": f"{lead}, {name}", "value": f"{value['mean']:.3f}", "note": note, "tone": tone})
    return tiles


def _summary(sides: Sequence[Side], sets: Sequence[str]) -> list[tuple[str, str]]:
    told = {task["name"]: task for task in sides[0].results["sets"]}
    queries, documents = (sum(told[name][key] for name in sets) for key in ("queries", "documents"))
    runs = ", ".join(f"{side.name} ({side.system})" if side.system != "finetuned" else side.name for side in sides)
    return [
        ("Runs", f"{runs}. The others are compared with {sides[0].name}, the first that was named."),
        ("Measured on", f"{queries:,} queries against {documents:,} documents of {', '.join(sets)}."),
    ]
