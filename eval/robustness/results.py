"""From measured recall to `robustness.json`: means over the sets, paired intervals, counts that add up.

Every set counts the same; an interval resamples the queries inside each set. The same draws serve all systems and
cells, so that a loss is resampled as the pair that it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.metrics import LEVEL, bootstrap_means, generator, interval
from eval.robustness.config import RobustnessConfig
from eval.robustness.counterfactual import auroc
from eval.robustness.drawn import Asked, Cell, Drawn
from eval.robustness.kinds import KINDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from eval.robustness.measure import Measured
    from eval.systems.listing import System

METRIC = "recall@10"


def results_of(
    config: RobustnessConfig, *, seed: int, systems: Sequence[System], drawn: Sequence[Drawn], asked: Sequence[Asked],
    cells: Sequence[Cell], found: Mapping[tuple[str, str], Measured], changed: Mapping[tuple[str, Cell], int],
    examples: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """Everything that is written down. Raises RuntimeError where the counts do not add up."""
    rows, clean = _recall(config, seed, systems, drawn, cells, found, changed)
    queries = sum(len(one.queries) for one in drawn)
    touched = sum(changed.values())
    same = sum(_unchanged(one, questions, cells, changed) for one, questions in zip(drawn, asked, strict=True))
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    results = {
        "seed": seed,
        "sets": [one.name for one in drawn],
        "kinds": kinds,
        "strengths": list(config.strengths),
        "metric": METRIC,
        "rows": rows,
        "clean": clean,
        "noticed": _noticed(config, seed, systems, drawn, cells, found),
        "out_of_domain": _separation(config, seed, systems, drawn, found),
        "examples": examples,
        "systems": [{"name": s.name, "kind": s.kind, "detail": s.detail} for s in systems],
        "about": {kind: KINDS[kind].about for kind in kinds},
        "families": {kind: KINDS[kind].family for kind in kinds},
        "bootstrap": {"samples": config.bootstrap_samples, "level": LEVEL},
        "drawn": [{"set": one.name, "documents": len(one.documents), "queries": len(one.queries)} for one in drawn],
        "counts": {
            "systems": len(systems),
            "sets": len(drawn),
            "queries": queries,
            "cells": len(cells),
            "asked": queries * len(cells),
            "changed": touched,
            "unchanged": same,
            "rankings": queries * (len(cells) + 1) * len(systems),
        },
    }
    check(results)
    return results


def check(results: Mapping[str, Any]) -> None:
    """Raise RuntimeError where the numbers of a `robustness.json` do not add up."""
    counts, rows = results["counts"], results["rows"]
    if counts["changed"] + counts["unchanged"] != counts["asked"]:
        raise RuntimeError(
            f"{counts['changed']} changed and {counts['unchanged']} unchanged of {counts['asked']} queries"
        )
    if len(rows) != counts["systems"] * counts["cells"] or len(results["clean"]) != counts["systems"]:
        raise RuntimeError(f"{len(rows)} rows for {counts['systems']} systems and {counts['cells']} cells")
    for row in rows:
        if row["queries"] != counts["queries"] or not 0 <= row["changed"] <= row["queries"]:
            raise RuntimeError(
                f"{row['changed']} changed of {row['queries']} queries, {counts['queries']} drawn: {row}"
            )
    if sum(row["changed"] for row in rows) != counts["changed"] * counts["systems"]:
        raise RuntimeError("the changed queries of the rows are not those of all cells")


def _unchanged(drawn: Drawn, asked: Asked, cells: Sequence[Cell], changed: Mapping[tuple[str, Cell], int]) -> int:
    """Queries left as they were over all cells, counted from the texts where the damage was to queries."""
    count = 0
    for cell in cells:
        if cell in asked.damaged:
            count += sum(row == clean for row, clean in zip(asked.damaged[cell], asked.clean, strict=True))
        else:
            count += len(drawn.queries) - changed[drawn.name, cell]
    return count


def _recall(
    config: RobustnessConfig, seed: int, systems: Sequence[System], drawn: Sequence[Drawn], cells: Sequence[Cell],
    found: Mapping[tuple[str, str], Measured], changed: Mapping[tuple[str, Cell], int],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:  # fmt: skip
    import numpy as np

    rows, clean = [], []
    queries = sum(len(one.queries) for one in drawn)
    for system in systems:
        means, draws = [], []
        for one in drawn:
            made = found[system.name, one.name]
            values = np.stack([made.clean, *(made.damaged[cell] for cell in cells)], axis=1)
            values = np.concatenate([values, values[:, :1] - values[:, 1:]], axis=1)
            means.append(values.mean(axis=0))
            rng = generator(seed, "robustness", "bootstrap", one.name)
            draws.append(bootstrap_means(values, samples=config.bootstrap_samples, rng=rng))
        mean, (low, high) = np.mean(means, axis=0), interval(np.mean(draws, axis=0))
        told = [
            {"mean": round(float(m), 6), "low": round(float(lo), 6), "high": round(float(hi), 6)}
            for m, lo, hi in zip(mean, low, high, strict=True)
        ]
        clean.append({"system": system.name, "queries": queries, **told[0]})
        for cell, metric, loss in zip(cells, told[1 : 1 + len(cells)], told[1 + len(cells) :], strict=True):
            counts = {"queries": queries, "changed": sum(changed[one.name, cell] for one in drawn)}
            lost = {"lost": loss["mean"], "lost_low": loss["low"], "lost_high": loss["high"]}
            rows.append({"system": system.name, "kind": cell[0], "strength": cell[1], **counts, **metric, **lost})
    return rows, clean


def _noticed(
    config: RobustnessConfig, seed: int, systems: Sequence[System], drawn: Sequence[Drawn], cells: Sequence[Cell],
    found: Mapping[tuple[str, str], Measured],
) -> list[dict[str, Any]]:  # fmt: skip
    """How often the true passage stays above its copy, over the queries that have one."""
    import numpy as np

    rows = []
    for system in systems:
        for cell in cells:
            if KINDS[cell[0]].target != "distractor":
                continue
            means, draws, all_values = [], [], []
            for one in drawn:
                values = found[system.name, one.name].noticed[cell]
                values = values[~np.isnan(values)]
                if len(values):
                    rng = generator(seed, "robustness", "noticed", cell[0], str(cell[1]), one.name)
                    means.append(values.mean())
                    draws.append(bootstrap_means(values[:, None], samples=config.bootstrap_samples, rng=rng))
                    all_values.append(values)
            values = np.concatenate(all_values) if all_values else np.empty(0)
            row = {
                "system": system.name, "kind": cell[0], "strength": cell[1],
                "queries": sum(len(one.queries) for one in drawn), "pairs": len(values), "sets": len(means),
                "above": int((values > 0.5).sum()), "tied": int((values == 0.5).sum()),
                "below": int((values < 0.5).sum()),
            }  # fmt: skip
            rows.append(row | _told(means, draws))
    return rows


def _separation(
    config: RobustnessConfig, seed: int, systems: Sequence[System], drawn: Sequence[Drawn],
    found: Mapping[tuple[str, str], Measured],
) -> list[dict[str, Any]]:  # fmt: skip
    """AUROC of the best score, questions of the set against questions of others; `set` None is the mean over sets."""
    rows = []
    for system in systems:
        means, draws, inside, outside = [], [], 0, 0
        for one in drawn:
            made = found[system.name, one.name]
            if made.inside is None or made.outside is None or not len(made.outside):
                continue
            rng = generator(seed, "robustness", "outside", "bootstrap", one.name)
            value, samples = auroc(made.inside, made.outside, samples=config.bootstrap_samples, rng=rng)
            counts = {"inside": len(made.inside), "outside": len(made.outside)}
            rows.append({"system": system.name, "set": one.name, **counts, **_told([value], [samples[:, None]])})
            means.append(value)
            draws.append(samples[:, None])
            inside, outside = inside + len(made.inside), outside + len(made.outside)
        if means:
            counts = {"inside": inside, "outside": outside}
            rows.append({"system": system.name, "set": None, **counts, **_told(means, draws)})
    return rows


def _told(means: Sequence[Any], draws: Sequence[NDArray[np.float64]]) -> dict[str, float | None]:
    import numpy as np

    if not means:
        return {"mean": None, "low": None, "high": None}
    low, high = interval(np.mean(draws, axis=0))
    named = zip(("mean", "low", "high"), (np.mean(means), low[0], high[0]), strict=True)
    return {name: round(float(value), 6) for name, value in named}
