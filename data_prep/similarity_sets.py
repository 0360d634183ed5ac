"""Sentence pairs that people scored by how close their meanings are: semantic textual similarity (STS).

A set is a file `NAME.jsonl[.gz]` with `sentence1`, `sentence2` and `score` on each line; any scale, higher is closer.
"""

from __future__ import annotations

import glob
import math
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import UserError
from data_prep.files import read_jsonl

_FEWEST_PAIRS = 3


@dataclass(frozen=True)
class SimilaritySet:
    """Sentence pairs and how close people found them.

    Attributes:
        name: the file's name without its endings.
        first, second: the sentences, aligned.
        scores: any scale, higher is closer.
    """

    name: str
    first: list[str]
    second: list[str]
    scores: list[float]


def find_similarity_sets(patterns: list[str]) -> list[Path]:
    """Files of sentence pairs that the patterns name, sorted. Raises `UserError` where a pattern finds none."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = [
            Path(p) for p in sorted(glob.glob(pattern)) if p.endswith((".jsonl", ".jsonl.gz")) and Path(p).is_file()
        ]
        if not matches:
            raise UserError(
                f"eval.sts = {pattern!r}",
                "matches no file *.jsonl or *.jsonl.gz",
                "give files of sentence pairs (sentence1, sentence2, score on each line)",
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def load_similarity_set(path: Path) -> SimilaritySet:
    """Read a file of sentence pairs.

    Raises:
        UserError: naming file and line: an empty sentence, a score that is no number; fewer than three pairs; the same
            score on all.
    """
    loaded = SimilaritySet(path.name.removesuffix(".gz").removesuffix(".jsonl"), [], [], [])
    for number, row in read_jsonl(path, required=("sentence1", "sentence2")):
        for key in ("sentence1", "sentence2"):
            if not row[key].strip():
                raise UserError(f"{path}, line {number}", f"{key} is empty", "write the sentence, or remove the line")
        score = row.get("score")
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            found = "missing" if "score" not in row else f"{score!r}, which is no number"
            raise UserError(f"{path}, line {number}", f"its score is {found}", "write how close the two are, as 0.8")
        loaded.first.append(row["sentence1"])
        loaded.second.append(row["sentence2"])
        loaded.scores.append(float(score))
    if len(loaded.scores) < _FEWEST_PAIRS or len(set(loaded.scores)) == 1:
        found = f"{len(loaded.scores)} pairs" if len(loaded.scores) < _FEWEST_PAIRS else "one score on all its pairs"
        raise UserError(
            str(path),
            f"has {found}: no correlation can be taken",
            f"give at least {_FEWEST_PAIRS} pairs whose scores differ, or leave the file out of eval.sts",
        )
    return loaded
