"""The results as a table for a terminal or a text file.

Invariant: every figure carries its interval, and the best of each column is marked, all of them where they tie. The
columns are those of `metric_names` unless others are named: results.json holds more than a line can.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.metrics import metric_names

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

BEST = "*"


def shown(metric: Mapping[str, float]) -> str:
    """A metric with its interval, such as `0.912 [0.889, 0.933]`."""
    return f"{metric['mean']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def best_systems(rows: Iterable[Mapping[str, Any]], name: str) -> set[str]:
    """The systems whose mean of metric `name` is highest among the rows, compared as printed (three decimals)."""
    means = {row["system"]: round(row["metrics"][name]["mean"], 3) for row in rows}
    top = max(means.values(), default=0.0)
    return {system for system, mean in means.items() if mean == top}


def subsets_of(results: Mapping[str, Any]) -> list[str]:
    """The subsets that the results hold, `all` first."""
    return list(dict.fromkeys(row["subset"] for row in results["means"]))


def _sections(results: Mapping[str, Any]) -> Iterable[tuple[str, str, list[Mapping[str, Any]]]]:
    """Groups of rows with a title and a short one: the macro means of each subset, then every set."""
    sets = len(results["sets"])
    for subset in subsets_of(results):
        rows = [row for row in results["means"] if row["subset"] == subset]
        covered = rows[0].get("sets", sets)
        title = f"mean over {covered} set{'s' if covered != 1 else ''}"
        whole = title if subset == "all" else f"{title}, {subset} queries"
        yield whole, f"{subset}: {covered} set{'s' if covered != 1 else ''}", rows
    for task in results["sets"]:
        for subset, queries in task["subsets"].items():
            rows = [row for row in results["rows"] if row["set"] == task["name"] and row["subset"] == subset]
            title = f"{task['name']} / {subset} ({queries} queries, {task['documents']} documents)"
            yield title, f"{task['name']}/{subset}", rows


def results_table(
    results: Mapping[str, Any], *, per_set: bool = False, stacked: bool = False, metrics: Sequence[str] | None = None
) -> Table:
    """The means over sets as a rich table, the best of each column bold.

    Args:
        results: results.json.
        per_set: also every set and subset.
        stacked: put each interval under its mean; a third narrower.
        metrics: these columns, any of the results' (default: `metric_names`).
    """
    from rich.table import Table
    from rich.text import Text

    names = metric_names(results["ks"]) if metrics is None else list(metrics)
    level = round(100 * results["bootstrap"]["level"])
    caption = Text(f"[low, high]: {level} % bootstrap interval; bold: best of its column", style="dim")
    table = Table(caption=caption)
    table.add_column("system", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for _, title, rows in _chosen(results, per_set):
        table.add_section()
        table.add_row(Text(title, style="dim"), *("" for _ in names))
        for row in rows:
            cells = []
            for name in names:
                text = shown(row["metrics"][name])
                style = "bold" if row["system"] in best_systems(rows, name) else ""
                cells.append(Text(text.replace(" [", "\n[", 1) if stacked else text, style=style))
            table.add_row(Text(row["system"]), *cells)
    return table


def results_lines(
    results: Mapping[str, Any], *, per_set: bool = True, metrics: Sequence[str] | None = None
) -> list[str]:
    """The same as plain aligned lines, the best of each column marked with `*`, and what the differences mean."""
    names = metric_names(results["ks"]) if metrics is None else list(metrics)
    samples, level = results["bootstrap"]["samples"], round(100 * results["bootstrap"]["level"])
    system_width = max(len("system"), *(len(s["name"]) for s in results["systems"]))
    width = len("0.000 [0.000, 0.000]") + 1
    lines = [f"{BEST} best of its column; [low, high]: {level} % bootstrap interval over queries, {samples} samples"]
    for title, _, rows in _chosen(results, per_set):
        lines += ["", title]
        lines.append("  ".join(["system".ljust(system_width), *(n.rjust(width - 1) + " " for n in names)]).rstrip())
        for row in rows:
            cells = [
                (shown(row["metrics"][n]) + (BEST if row["system"] in best_systems(rows, n) else " ")).rjust(width)
                for n in names
            ]
            lines.append("  ".join([row["system"].ljust(system_width), *cells]).rstrip())
    meant = difference_lines(results)
    return [*lines, "", *meant] if meant else lines


def difference_lines(results: Mapping[str, Any], *, subset: str = "all") -> list[str]:
    """What each difference of a subset's means amounts to, a sentence a line; none where results hold none."""
    found = [d for d in results.get("differences", []) if d["subset"] == subset and "sentence" in d]
    return [f"- {difference['sentence']}" for difference in found]


def _chosen(results: Mapping[str, Any], per_set: bool) -> Sequence[tuple[str, str, list[Mapping[str, Any]]]]:
    sections = list(_sections(results))
    return sections if per_set else sections[: len(subsets_of(results))]


def print_results(results: Mapping[str, Any], console: Console, *, per_set: bool = False) -> None:
    """Print the widest form that fits a terminal: one line a row, two, fewer recalls; elsewhere plain lines."""
    names = metric_names(results["ks"])
    fewer = [n for n in names if n in (names[0], *names[-3:])]
    if console.is_terminal:
        for stacked, columns in ((False, names), (True, names), (True, fewer)):
            table = results_table(results, per_set=per_set, stacked=stacked, metrics=columns)
            needed = console.measure(table, options=console.options.update(max_width=1000)).maximum
            if needed <= console.width:
                console.print(table)
                for line in difference_lines(results):
                    console.print(line, markup=False, highlight=False)
                return
    lines = results_lines(results, per_set=per_set)
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
