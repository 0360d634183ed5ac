"""The stored rankings of a system on a set, from which every figure can be computed again.

`ranks/SYSTEM__SET.parquet` has one row for each query: `query_id`, `document_ids` (best first, as deep as the
evaluation went), `scores`, `relevant_rank` (of the first relevant document, from 1; null where none was reached), the
query's groups `language`, `length`, `passage_length` and `source`, and for each subset `judged_SUBSET`: the ids of its
relevant documents with near copies where they count, null where the subset does not judge the query. So the file needs
neither the set nor the model to be scored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.files import disk_errors
from eval import metrics
from eval.breakdown import By

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from eval.relevance import Judged

_JUDGED = "judged_"


def safe_name(name: str) -> str:
    """A name as part of a file name: everything but letters, digits, `_`, `.` and `-` becomes `-`."""
    return re.sub(r"[^\w.-]+", "-", name)


def rank_file(system: str, task: str) -> str:
    """The name of the stored rankings of a system on a set."""
    return f"{safe_name(system)}__{safe_name(task)}.parquet"


def first_relevant(judged: Judged, ranked: NDArray[np.int64]) -> list[int | None]:
    """For each query the rank of its first relevant document, from 1; None where none was reached.

    A query that several subsets judge is judged by `all`.
    """
    found: list[int | None] = [None] * len(judged.task.queries)
    for subset in reversed(list(judged.rows)):  # "all" is first, so it has the last word
        marked = metrics.hits(ranked[judged.rows[subset]], judged.relevant[subset])
        for row, hit in zip(judged.rows[subset], marked, strict=True):
            found[row] = int(hit.argmax()) + 1 if hit.any() else None
    return found


def write_rankings(
    path: Path,
    judged: Judged,
    ranked: NDArray[np.int64],
    scores: NDArray[np.float32],
    labels: Mapping[By, Sequence[str | None]],
) -> int:
    """Store the rankings of one set; returns how many the file then holds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    task = judged.task
    ids = [[task.document_ids[d] for d in row] for row in ranked.tolist()]
    columns: dict[str, Any] = {
        "query_id": pa.array(task.query_ids, pa.string()),
        "document_ids": pa.array(ids, pa.list_(pa.string())),
        "scores": pa.array(scores.tolist(), pa.list_(pa.float32())),
        "relevant_rank": pa.array(first_relevant(judged, ranked), pa.int32()),
    }
    for by, groups in labels.items():
        columns[by] = pa.array(list(groups), pa.string())
    for subset, rows in judged.rows.items():
        answers: list[list[str] | None] = [None] * len(task.queries)
        for row, found in zip(rows, judged.relevant[subset], strict=True):
            answers[row] = [task.document_ids[d] for d in sorted(found)]
        columns[_JUDGED + subset] = pa.array(answers, pa.list_(pa.string()))
    with disk_errors(path):
        pq.write_table(pa.table(columns), path, compression="zstd")
    return int(pq.read_metadata(path).num_rows)


def recompute(path: Path, *, ks: Sequence[int], subset: str = "all") -> tuple[list[str], NDArray[np.float64]]:
    """The metrics of every query of a subset, from a stored ranking alone.

    Args:
        path: a file of `ranks/`.
        ks: ranks at which recall and success are read, none above the stored depth where the corpus is deeper.

    Returns:
        query_ids: of the subset, in the order of the set.
        values: float64 [queries, metrics], columns as `metrics.all_metric_names(ks)`.

    Raises:
        KeyError: the file holds no such subset.
    """
    import numpy as np
    import pyarrow.parquet as pq

    if _JUDGED + subset not in pq.read_schema(path).names:
        raise KeyError(f"{path} holds no subset {subset!r}")
    rows = pq.read_table(path, columns=["query_id", "document_ids", _JUDGED + subset]).to_pylist()
    rows = [row for row in rows if row[_JUDGED + subset] is not None]
    numbers: dict[str, int] = {}
    ranked = np.array(
        [[numbers.setdefault(d, len(numbers)) for d in row["document_ids"]] for row in rows], dtype=np.int64
    )
    relevant = [{numbers.setdefault(d, len(numbers)) for d in row[_JUDGED + subset]} for row in rows]
    return [row["query_id"] for row in rows], metrics.per_query(ranked, relevant, ks=ks)
