"""results.json: rows, means and differences with their intervals, groups, and counts that add up.

Invariant: every figure is a function of the per-query values, which the stored rankings give again
(`eval.rankings.recompute`), and of the seed. All systems are resampled with the same draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eval import metrics
from eval.breakdown import By, group_rows
from eval.significance import compare, sentence

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from eval.relevance import Judged
    from eval.systems.listing import System


@dataclass
class Scores:
    """The metrics of every query.

    Attributes:
        values: (system, set, subset) → [queries, metrics], columns as `metrics.all_metric_names`.
    """

    ks: Sequence[int]
    values: dict[tuple[str, str, str], NDArray[np.float64]] = field(default_factory=dict)

    def add(self, system: str, judged: Judged, ranked: NDArray[np.int64]) -> dict[str, int]:
        """Score a ranking of all queries of a set; returns how many queries of each subset were scored."""
        scored = {}
        for subset, rows in judged.rows.items():
            values = metrics.per_query(ranked[rows], judged.relevant[subset], ks=self.ks)
            self.values[system, judged.task.name, subset] = values
            scored[subset] = len(values)
        return scored


def assemble(
    scores: Scores,
    *,
    systems: Sequence[System],
    sets: Sequence[Judged],
    labels: Mapping[str, Mapping[By, Sequence[str | None]]],
    samples: int,
    permutations: int,
    seed: int,
) -> dict[str, Any]:
    """All of results.json but for counts and what is no ranking.

    Args:
        sets: the judged sets in their order.
        labels: set → by → group of each of its queries.
        samples: of the bootstrap.
        permutations: relabelings of the paired test.

    Raises:
        RuntimeError: a system was not scored on a subset of a set.
    """
    names = metrics.all_metric_names(scores.ks)
    missing = [
        (system.name, one.task.name, subset)
        for system in systems
        for one in sets
        for subset in one.rows
        if (system.name, one.task.name, subset) not in scores.values
    ]
    if missing:
        raise RuntimeError(f"system {missing[0][0]} was not scored on set {missing[0][1]}, subset {missing[0][2]}")
    drawn = _resampled(scores, systems, sets, samples, seed)
    reference = next((s.name for s in reversed(systems) if s.kind == "finetuned"), None)
    rows = [
        {
            "system": system.name,
            "set": one.task.name,
            "subset": subset,
            "queries": len(scores.values[key]),
            "metrics": metrics.summary(names, scores.values[key].mean(axis=0), drawn[key]),
        }
        for system in systems
        for one in sets
        for subset in one.rows
        for key in [(system.name, one.task.name, subset)]
    ]
    everything = {
        (system.name, one.task.name): scores.values[system.name, one.task.name, "all"]
        for system in systems
        for one in sets
    }
    judged_by_all: dict[str, Mapping[By, Sequence[str | None]]] = {
        one.task.name: {by: [found[row] for row in one.rows["all"]] for by, found in labels[one.task.name].items()}
        for one in sets
    }
    return {
        "ks": list(scores.ks),
        "bootstrap": {"samples": samples, "level": metrics.LEVEL, "seed": seed},
        "relabelings": permutations,
        "systems": [{"name": s.name, "kind": s.kind, "detail": s.detail} for s in systems],
        "sets": [_set_entry(one) for one in sets],
        "rows": rows,
        "means": _means(scores, systems, sets, drawn),
        "differences": []
        if reference is None
        else _differences(scores, reference, systems, sets, samples, permutations, seed),
        "groups": group_rows(
            [s.name for s in systems], everything, judged_by_all, names=names, samples=samples, seed=seed
        ),
    }


def _set_entry(one: Judged) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": one.task.name,
        "documents": len(one.task.documents),
        "queries": len(one.task.queries),
        "subsets": {subset: len(rows) for subset, rows in one.rows.items()},
    }
    facts = one.task.facts.model_dump(exclude_defaults=True)
    return {**entry, "facts": facts} if facts else entry


def _resampled(
    scores: Scores, systems: Sequence[System], sets: Sequence[Judged], samples: int, seed: int
) -> dict[tuple[str, str, str], NDArray[np.float64]]:
    """Bootstrap means of every system, set and subset, [samples, metrics]; one draw serves all systems."""
    import numpy as np

    drawn: dict[tuple[str, str, str], NDArray[np.float64]] = {}
    for one in sets:
        for subset in one.rows:
            keys = [(system.name, one.task.name, subset) for system in systems]
            stacked = np.concatenate([scores.values[key] for key in keys], axis=1)
            rng = metrics.generator(seed, one.task.name, subset)
            means = metrics.bootstrap_means(stacked, samples=samples, rng=rng)
            drawn.update(zip(keys, np.split(means, len(keys), axis=1), strict=True))
    return drawn


def _covering(sets: Sequence[Judged]) -> dict[str, list[str]]:
    """Subset → the sets that have it."""
    subsets = dict.fromkeys(subset for one in sets for subset in one.rows)
    return {subset: [one.task.name for one in sets if subset in one.rows] for subset in subsets}


def _means(
    scores: Scores,
    systems: Sequence[System],
    sets: Sequence[Judged],
    drawn: Mapping[tuple[str, str, str], NDArray[np.float64]],
) -> list[dict[str, Any]]:
    """The macro mean of every system over the sets of each subset."""
    import numpy as np

    names = metrics.all_metric_names(scores.ks)
    rows = []
    for subset, tasks in _covering(sets).items():
        for system in systems:
            mean = np.mean([scores.values[system.name, task, subset].mean(axis=0) for task in tasks], axis=0)
            means = np.mean([drawn[system.name, task, subset] for task in tasks], axis=0)
            summary = metrics.summary(names, mean, means)
            rows.append({"system": system.name, "subset": subset, "sets": len(tasks), "metrics": summary})
    return rows


def _differences(
    scores: Scores,
    reference: str,
    systems: Sequence[System],
    sets: Sequence[Judged],
    samples: int,
    permutations: int,
    seed: int,
) -> list[dict[str, Any]]:
    """The finetuned system against every other, with the p-value and the sentence of the headline's metric."""
    names, lead = metrics.all_metric_names(scores.ks), metrics.lead_metric(scores.ks)
    rows = []
    for subset, tasks in _covering(sets).items():

        def of(system: str, subset: str = subset, tasks: list[str] = tasks) -> dict[str, NDArray[np.float64]]:
            return {task: scores.values[system, task, subset] for task in tasks}

        others = {system.name: of(system.name) for system in systems if system.name != reference}
        found = compare(
            of(reference), others, names=names, seed=seed, subset=subset, bootstrap_samples=samples,
            permutations=permutations,
        )  # fmt: skip
        for against, gains in found.items():
            rows.append(
                {
                    "system": reference,
                    "against": against,
                    "subset": subset,
                    "metrics": gains,
                    "metric": lead,
                    "p_value": gains[lead]["p_value"],
                    "p_holm": gains[lead]["p_holm"],
                    "comparisons": len(found),
                    "sentence": sentence(reference, against, lead, gains[lead], comparisons=len(found)),
                }
            )
    return rows
