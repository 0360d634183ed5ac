"""What an ablation found: every cell's figures, and how far each is from the base, on the same queries.

Invariant: nothing is measured here. Figures come from the results and the stored rankings of each cell's evaluation,
and rankings that do not give the results beside them are refused.

With several seeds a figure is the mean over them. Where the seeds were measured on the same queries, a query counts
once, with the mean of its values; where each seed has queries of its own (a generated corpus), they are strata of their
own. So an interval says how much depends on which queries were asked, and the spread over seeds, which stands beside
it, how much on the draw of training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import read_json, sha256_file
from eval import metrics
from eval.rankings import rank_file, recompute
from eval.significance import PERMUTATIONS, holm, sign_flip_p_values

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SYSTEM = "finetuned"
SUBSET = "all"
_ROUNDING = 2e-6  # results are rounded to 6 decimals


@dataclass(frozen=True)
class Measured:
    """One evaluation of one model.

    Attributes:
        names: of the metrics. seed, samples: of the bootstrap.
        values: set → [queries, metrics]. queries: set → a digest of its files and of the queries that count.
        means: metric → its mean with the interval, as results.json has it.
    """

    names: tuple[str, ...]
    seed: int
    samples: int
    values: Mapping[str, NDArray[np.float64]]
    queries: Mapping[str, str]
    means: Mapping[str, Mapping[str, float]]


class Measurements:
    """Reads evaluations; a file that several of their sets share is read once."""

    def __init__(self) -> None:
        self._digests: dict[tuple[int, int, int], str] = {}

    def read(self, evaluation: Path, sets: Sequence[Path]) -> Measured:
        """The figures of the finetuned model in the folder of an evaluation.

        Args:
            evaluation: holds results.json and ranks/. sets: the folders of its sets.

        Raises:
            UserError: no such system in it, a set is missing, or the rankings do not give the results.
        """
        import numpy as np

        results = read_json(evaluation / "results.json")
        row = next((r for r in results["means"] if (r["system"], r["subset"]) == (SYSTEM, SUBSET)), None)
        if row is None:
            raise UserError(
                f"{evaluation / 'results.json'}", f"does not hold {SYSTEM!r}", "leave eval.finetuned on and run again"
            )  # fmt: skip
        folders = {path.name: path for path in sets}
        names = metrics.all_metric_names(results["ks"])
        values: dict[str, NDArray[np.float64]] = {}
        digests: dict[str, str] = {}
        for entry in results["sets"]:
            name = entry["name"]
            if name not in folders:
                raise UserError(f"set {name!r}", f"is in {evaluation}, but not in its recipe", "evaluate again")
            ids, values[name] = recompute(evaluation / "ranks" / rank_file(SYSTEM, name), ks=results["ks"])
            digests[name] = hashlib.sha256("\n".join([self._digest(folders[name]), *ids]).encode()).hexdigest()
        found = np.mean([v.mean(axis=0) for v in values.values()], axis=0)
        told = [row["metrics"][name]["mean"] for name in names]
        if np.abs(found - told).max() > _ROUNDING:
            raise UserError(
                str(evaluation), "its rankings do not give its results: one of them was changed",
                f"delete {evaluation} and run the same command again",
            )  # fmt: skip
        bootstrap = results["bootstrap"]
        return Measured(tuple(names), bootstrap["seed"], bootstrap["samples"], values, digests, row["metrics"])

    def _digest(self, folder: Path) -> str:
        """Of the bytes of a set. Runs of a generated corpus have the set each in its own folder, as links."""
        found = []
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            status = path.stat()
            key = (status.st_dev, status.st_ino, status.st_mtime_ns)
            if key not in self._digests:
                self._digests[key] = sha256_file(path)
            found.append(f"{path.name} {self._digests[key]}")
        return "\n".join(found)


@dataclass(frozen=True)
class _Stratum:
    """Queries that are resampled together: per-query `values` [queries, metrics], and how many seeds they stand for."""

    task: str
    seed: int
    values: NDArray[np.float64]
    weight: int


def _strata(measured: Sequence[Measured]) -> list[_Stratum]:
    import numpy as np

    found = []
    for task in measured[0].values:
        alike: dict[str, list[Measured]] = {}
        for one in measured:
            alike.setdefault(one.queries[task], []).append(one)
        for group in alike.values():
            values = np.mean([one.values[task] for one in group], axis=0)
            found.append(_Stratum(task, group[0].seed, values, len(group)))
    return found


def _shares(strata: Sequence[_Stratum]) -> list[float]:
    """What each stratum counts for: every set the same, and in a set every seed."""
    sets = len({s.task for s in strata})
    return [s.weight / sum(o.weight for o in strata if o.task == s.task) / sets for s in strata]


def _summary(names: Sequence[str], strata: Sequence[_Stratum], samples: int) -> dict[str, dict[str, float]]:
    import numpy as np

    shares = _shares(strata)
    observed = np.sum([share * s.values.mean(axis=0) for share, s in zip(shares, strata, strict=True)], axis=0)
    drawn = np.zeros((samples, len(names)))
    for share, stratum in zip(shares, strata, strict=True):
        # drawn as the evaluation draws: of one seed these are its own intervals
        rng = metrics.generator(stratum.seed, stratum.task, SUBSET)
        drawn += share * metrics.bootstrap_means(stratum.values, samples=samples, rng=rng)
    return metrics.summary(names, observed, drawn)


def cell_metrics(measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Metric → mean and 95 % interval, the mean over seeds and sets.

    Raises `UserError` where the seeds have not the same sets.
    """
    if len(measured) == 1:
        return {name: {key: m[key] for key in ("mean", "low", "high")} for name, m in measured[0].means.items()}
    if any(one.values.keys() != measured[0].values.keys() for one in measured):
        raise UserError("seeds of one cell", "were measured on sets of other names", "delete the cell and run again")
    return _summary(measured[0].names, _strata(measured), measured[0].samples)


def paired(cell: Sequence[Measured], base: Sequence[Measured]) -> bool:
    """Whether both, seed by seed, answered the same queries about the same documents."""
    return len(cell) == len(base) > 0 and all(a.queries == b.queries for a, b in zip(cell, base, strict=True))


def difference(cell: Sequence[Measured], base: Sequence[Measured], metric: str) -> dict[str, float]:
    """Cell less base: `mean`, the paired interval `low` and `high`, and `p_value` of a randomisation test.

    Args:
        cell, base: the same seeds in the same order, `paired`.
    """
    from dataclasses import replace

    column = base[0].names.index(metric)
    apart = [
        replace(a, values={task: (a.values[task] - b.values[task])[:, [column]] for task in b.values})
        for a, b in zip(cell, base, strict=True)
    ]
    strata = _strata(apart)
    found = _summary([metric], strata, base[0].samples)[metric]
    # the test weighs all it is given the same: what a stratum counts for goes into its values
    weighed = [len(strata) * share * s.values for share, s in zip(_shares(strata), strata, strict=True)]
    rng = metrics.generator(base[0].seed, "relabelings", SUBSET)
    p_value = sign_flip_p_values(weighed, permutations=PERMUTATIONS, rng=rng)[0]
    return {**found, "p_value": round(float(p_value), 6)}


def correct(cells: Sequence[dict[str, Any]]) -> None:
    """Put `p_holm` into the differences of all cells: p_value corrected for how many were compared with the base."""
    import numpy as np

    differences = [cell["difference"] for cell in cells if cell["difference"]]
    if differences:
        for one, value in zip(differences, holm(np.array([d["p_value"] for d in differences])), strict=True):
            one["p_holm"] = round(float(value), 6)
