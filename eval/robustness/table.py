"""The results as text: the worst kind of each system, every kind at its highest strength, and what is noticed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def robustness_lines(results: Mapping[str, Any]) -> list[str]:
    """Plain lines of at most a hundred columns for up to four systems.

    Args:
        results: the content of a `robustness.json`.
    """
    counts, systems = results["counts"], [system["name"] for system in results["systems"]]
    level, samples = round(100 * results["bootstrap"]["level"]), results["bootstrap"]["samples"]
    sets = "1 set" if counts["sets"] == 1 else f"{counts['sets']} sets, each counting the same"
    lines = [
        f"{results['metric']} of {counts['queries']} queries drawn from {sets}; seed {results['seed']}",
        f"[low, high]: paired {level} % bootstrap interval over queries, {samples} samples",
    ]
    if results["rows"]:
        lines += ["", *_columns(_worst(results, systems)), "", *_columns(_kinds(results, systems))]
    for part in (_noticed(results, systems), _separation(results, systems)):
        lines += ["", *_columns(part)] if part else []
    return lines


def worst(results: Mapping[str, Any], system: str) -> Mapping[str, Any]:
    """The row in which a system loses most recall; of equal ones the first."""
    rows: list[Mapping[str, Any]] = [row for row in results["rows"] if row["system"] == system]
    return max(rows, key=lambda row: row["lost"])


def highest(results: Mapping[str, Any], system: str) -> dict[str, Mapping[str, Any]]:
    """Kind → the system's row at the highest strength."""
    rows = [row for row in results["rows"] if row["system"] == system]
    return {row["kind"]: row for row in sorted(rows, key=lambda row: float(row["strength"]))}


def _worst(results: Mapping[str, Any], systems: Sequence[str]) -> list[list[str]]:
    clean = {row["system"]: row["mean"] for row in results["clean"]}
    rows = [["system", "as it is", "worst kind", "strength", "damaged", "lost"]]
    for name in systems:
        row = worst(results, name)
        lost = bracket(row["lost"], row["lost_low"], row["lost_high"])
        rows.append([name, f"{clean[name]:.3f}", row["kind"], f"{row['strength']:g}", f"{row['mean']:.3f}", lost])
    return rows


def _kinds(results: Mapping[str, Any], systems: Sequence[str]) -> list[list[str]]:
    tables = {name: highest(results, name) for name in systems}
    strength = f"{results['strengths'][-1]:g}"
    rows = [[f"lost at strength {strength}", "changed", *systems]]
    for kind in results["kinds"]:
        found = [tables[name][kind] for name in systems]
        cells = [bracket(row["lost"], row["lost_low"], row["lost_high"]) for row in found]
        rows.append([kind, f"{found[0]['changed']}/{found[0]['queries']}", *cells])
    return rows


def _noticed(results: Mapping[str, Any], systems: Sequence[str]) -> list[list[str]]:
    found = {(row["system"], row["kind"], row["strength"]): row for row in results["noticed"]}
    if not found:
        return []
    rows = [["true passage above its copy (0.5: not noticed)", "pairs", *systems]]
    for kind, strength in dict.fromkeys((kind, strength) for _, kind, strength in found):
        cells = [found[name, kind, strength] for name in systems]
        told = ["none" if c["mean"] is None else bracket(c["mean"], c["low"], c["high"], sign="") for c in cells]
        rows.append([f"{kind} at {strength:g}", str(cells[0]["pairs"]), *told])
    return rows


def _separation(results: Mapping[str, Any], systems: Sequence[str]) -> list[list[str]]:
    found = {row["system"]: row for row in results["out_of_domain"] if row["set"] is None}
    if not found:
        return []
    first = found[systems[0]]
    told = [bracket(found[n]["mean"], found[n]["low"], found[n]["high"], sign="") for n in systems]
    return [
        ["AUROC of the best score", "in/out", *systems],
        ["own queries against those of other sets", f"{first['inside']}/{first['outside']}", *told],
    ]


def bracket(mean: float, low: float, high: float, *, sign: str = "+") -> str:
    """A mean with its interval: `+0.120 [+0.100, +0.140]`."""
    return f"{_number(mean, sign)} [{_number(low, sign)}, {_number(high, sign)}]"


def _number(value: float, sign: str) -> str:
    return format(value if abs(value) >= 0.0005 else 0.0, f"{sign}.3f")


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
