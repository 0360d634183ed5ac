"""The runs of a comparison: what each says of itself, and its figures on every query, for pairing.

Invariant: figures on queries are taken from the stored rankings, and only where their mean is the one in results.json;
otherwise the runs are compared by their means, and the page says that they are not paired.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from eval.metrics import CUTOFF
from eval.report.facts import RunFacts, read_run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Gains = dict[str, dict[str, dict[str, float]]]
"""Run → metric → its difference to the first run: mean, low, high, p_value, p_holm."""
_SAME = 2e-6
"""Figures in results.json are rounded to six decimals."""


@dataclass(frozen=True)
class Side:
    """One run of a comparison: its name on the page, its folder, its facts with results, and the model that counts."""

    name: str
    folder: Path
    facts: RunFacts
    system: str

    @property
    def results(self) -> dict[str, Any]:
        """The results.json, which every side has."""
        return self.facts.results or {}

    def row(self, task: str, system: str | None = None) -> dict[str, Any] | None:
        """The figures of a system (this side's own if None) on all queries of a set; None where there are none."""
        wanted = (self.system if system is None else system, task, "all")
        return next((r for r in self.results["rows"] if (r["system"], r["set"], r["subset"]) == wanted), None)


def read_sides(runs: Sequence[Path]) -> list[Side]:
    """Read the runs. Raises `UserError` where one is named twice, is no run, or has no results."""
    folders = [run.resolve() for run in runs]
    twice = next((run for number, run in enumerate(runs) if folders[number] in folders[:number]), None)
    if twice is not None:
        raise UserError(f"run {twice}", "is named twice", "name every run once")
    names = [folder.name for folder in folders]
    sides = []
    for run, folder in zip(runs, folders, strict=True):
        facts = read_run(run)
        if facts.results is None:
            raise UserError(
                f"run {run}", f"has no results to compare ({facts.missing['results']})", "run its evaluation first"
            )
        systems = facts.results["systems"]
        own = [system["name"] for system in systems if system["kind"] == "finetuned"]
        name = folder.name if names.count(folder.name) == 1 else str(run)
        sides.append(Side(name, folder, facts, own[-1] if own else systems[-1]["name"]))
    return sides


def shared_sets(sides: Sequence[Side]) -> tuple[list[str], dict[str, str]]:
    """(names of the sets that all runs measured, set → why it is not among them)."""
    told = [{task["name"]: (task["queries"], task["documents"]) for task in side.results["sets"]} for side in sides]
    shared, left_out = [], {}
    for name in dict.fromkeys(name for sets in told for name in sets):
        lacking = [side.name for side, sets in zip(sides, told, strict=True) if name not in sets]
        if lacking:
            left_out[name] = f"not measured by {', '.join(lacking)}"
        elif len({sets[name] for sets in told}) > 1:
            left_out[name] = "has other queries or documents in one of the runs"
        else:
            shared.append(name)
    return shared, left_out


def per_query(
    side: Side, task: str, names: Sequence[str], system: str | None = None
) -> tuple[list[str], NDArray[np.float64]] | str:
    """(query ids, float64 [queries, metrics]) of a system (the run's model if None) on a set, or why there are none."""
    import numpy as np
    import pyarrow as pa

    from eval.rankings import rank_file

    row = side.row(task, system)
    path = side.folder / "eval" / "ranks" / rank_file(system or side.system, task)
    if row is None or not path.is_file():
        return f"{side.name} keeps no rankings"
    try:
        ids, values = _from_rankings(path, names, side.results["ks"])
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return f"the rankings of {side.name} cannot be read"
    stored = np.array([row["metrics"][name]["mean"] for name in names])
    if len(ids) != row["queries"] or np.abs(values.mean(axis=0) - stored).max(initial=0.0) > _SAME:
        return f"the rankings of {side.name} alone do not give its figures"
    return ids, values


def paired_gains(
    sides: Sequence[Side],
    sets: Sequence[str],
    values: Mapping[tuple[str, str], tuple[list[str], NDArray[np.float64]] | str],
    names: Sequence[str],
) -> Gains | None:
    """How much every other run is above the first over the sets, paired; None where not all of them are.

    Args:
        values: (run, set) → what `per_query` gave for these metrics.
    """
    import numpy as np

    from eval.significance import compare

    columns: dict[str, dict[str, NDArray[np.float64]]] = {side.name: {} for side in sides}
    for task in sets:
        asked: list[str] | None = None
        for side in sides:
            told = values[side.name, task]
            if isinstance(told, str):
                return None
            order = np.argsort(np.array(told[0]), kind="stable")
            ids = [told[0][row] for row in order]
            if asked is not None and ids != asked:
                return None
            asked = ids
            columns[side.name][task] = told[1][order]
    first, setting = sides[0].name, sides[0].results["bootstrap"]
    others = {side.name: columns[side.name] for side in sides[1:]}
    found = compare(
        columns[first], others, names=names, seed=setting["seed"], bootstrap_samples=setting["samples"]
    )  # fmt: skip
    return {
        run: {n: {**g, "mean": -g["mean"], "low": -g["high"], "high": -g["low"]} for n, g in told.items()}
        for run, told in found.items()
    }


def _from_rankings(path: Path, names: Sequence[str], ks: Sequence[int]) -> tuple[list[str], NDArray[np.float64]]:
    import numpy as np
    import pyarrow.parquet as pq

    from eval.metrics import all_metric_names
    from eval.rankings import recompute

    if "judged_all" in pq.read_schema(path).names:
        ids, values = recompute(path, ks=ks)
        columns = all_metric_names(ks)
        return ids, values[:, [columns.index(name) for name in names]]
    # Older files know the first relevant document alone: all that counts where a query has one. Where it has several,
    # the mean comes out too high, and the caller refuses it.
    table = pq.read_table(path, columns=["query_id", "relevant_rank"]).to_pydict()
    rank = np.array([np.inf if r is None else r for r in table["relevant_rank"]], dtype=np.float64)
    found = [_of_first(name, rank) for name in names]
    return list(table["query_id"]), np.stack(found, axis=1)


def _of_first(name: str, rank: NDArray[np.float64]) -> NDArray[np.float64]:
    """A metric of queries with one relevant document, from its rank (infinite where it was not reached)."""
    import numpy as np

    kind, _, k = name.partition("@")
    if kind in ("recall", "success"):
        return (rank <= int(k)).astype(np.float64)
    if name not in (f"ndcg@{CUTOFF}", f"mrr@{CUTOFF}"):
        raise ValueError(f"{name} cannot be had from a rank")
    gain = 1 / np.log2(rank + 1) if kind == "ndcg" else 1 / rank
    return np.where(rank <= CUTOFF, gain, 0.0)


def recipe_differences(sides: Sequence[Side]) -> tuple[list[tuple[str, ...]], list[str]]:
    """(key and its value in each run, for the keys that differ; runs without a readable recipe)."""
    recipes: list[Any] = []
    without = []
    for side in sides:
        recipe = None
        if side.facts.recipe is not None and side.facts.recipe[0].endswith(".toml"):
            try:
                recipe = tomllib.loads(side.facts.recipe[1])
            except tomllib.TOMLDecodeError:
                recipe = None
        if recipe is None:
            without.append(side.name)
        recipes.append({k: v for k, v in (recipe or {}).items() if k not in ("name", "about")})
    return ([] if without else _differing("", recipes)), without


def _differing(at: str, values: Sequence[Any]) -> list[tuple[str, ...]]:
    if all(isinstance(value, Mapping) for value in values):
        found = []
        for key in dict.fromkeys(key for value in values for key in value):
            found += _differing(f"{at}.{key}" if at else key, [value.get(key) for value in values])
        return found
    if all(value == values[0] for value in values):
        return []
    if any(isinstance(value, Mapping) for value in values):  # a table that one has and another has not
        return [(f"[{at}]", *("on" if isinstance(value, Mapping) else "off" for value in values))]
    return [(at, *(_value(value) for value in values))]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _value(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) and value else _json(value)
    return text if len(text) <= 160 else text[:159] + "…"
