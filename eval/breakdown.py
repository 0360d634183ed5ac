"""For whom a system works: the metrics by language of the query, by length, and by source.

Groups are taken over all sets together, of the queries that `all` judges, and every query counts once (a mean over sets
would let a set with two Indonesian queries weigh as much as one with three hundred). A query's language is what its
line in queries.jsonl says, else what its set.json says, else what `data_prep.corpus.language` tags it as, and Thai
(which has no tag there) where most letters are; its source is what its line or its set.json says, and no group where
neither does.

Lengths are in words: what stands between white space; a Chinese character or kana is one word, and of the scripts that
are written without spaces and without ideographs (Thai, Lao, Khmer, Burmese) five characters are one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from eval import metrics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from eval.relevance import Judged

By = Literal["language", "length", "passage_length", "source"]
BY: tuple[By, ...] = ("language", "length", "passage_length", "source")
"""`length` is that of the query, `passage_length` that of the relevant document, the first in the corpus of several."""
QUERY_WORDS = (5, 10, 20, 50)
PASSAGE_WORDS = (25, 100, 250)
"""Where the next bucket begins: under 5 words, 5 to 9, …"""
_IDEOGRAPHS = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_THAI = re.compile("[\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46]")  # letters, without marks
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]+")
_UNSPACED_CHARACTERS = 5


def word_count(text: str) -> int:
    """The length of a text in words, as the module counts them."""
    count = len(_IDEOGRAPHS.findall(text))
    text = _IDEOGRAPHS.sub(" ", text)
    for run in _UNSPACED.findall(text):
        count += -(-len(run) // _UNSPACED_CHARACTERS)
    return count + len(_UNSPACED.sub(" ", text).split())


def bucket(words: int, bounds: Sequence[int]) -> str:
    """The bucket of a length in words, such as `5-9 words`; bounds are where buckets after the first begin."""
    low = max((bound for bound in bounds if bound <= words), default=0)
    high = min((bound for bound in bounds if bound > words), default=None)
    return f"{low}+ words" if high is None else f"{low}-{high - 1} words"


def buckets(bounds: Sequence[int]) -> list[str]:
    """All buckets, shortest first."""
    return [bucket(words, bounds) for words in (0, *bounds)]


def language_of(text: str, given: str | None) -> str:
    """The language of a text: the one given, in the project's short form where it has one (`zsm_Latn` is `ms`), or the
    one that is detected; `und` where none is."""
    from data_prep.corpus.language import normal_label, tag

    if given is not None:
        named = normal_label(given)
        return given.strip() if named == "und" else named
    found = tag(text)
    letters = sum(character.isalpha() for character in text)
    return "th" if found == "und" and 2 * len(_THAI.findall(text)) > letters > 0 else found


def labels(judged: Judged) -> dict[By, list[str | None]]:
    """The groups of every query of a set, aligned with `judged.task.queries`; None for no group.

    A query that only a subset judges has no relevant document of its own here, and so no `passage_length`.
    """
    task = judged.task
    told = task.languages or [None] * len(task.queries)
    answers: dict[int, str | None] = {
        row: bucket(word_count(task.documents[min(found)]), PASSAGE_WORDS)
        for row, found in zip(judged.rows["all"], judged.relevant["all"], strict=True)
    }
    return {
        "language": [language_of(query, given) for given, query in zip(told, task.queries, strict=True)],
        "length": [bucket(word_count(query), QUERY_WORDS) for query in task.queries],
        "passage_length": [answers.get(row) for row in range(len(task.queries))],
        "source": list(task.sources or [None] * len(task.queries)),
    }


def group_rows(
    systems: Sequence[str],
    values: Mapping[tuple[str, str], NDArray[np.float64]],
    groups: Mapping[str, Mapping[By, Sequence[str | None]]],
    *,
    names: Sequence[str],
    samples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """One row for every system and group: `system`, `by`, `group`, `queries`, `metrics` with intervals.

    Args:
        values: (system, set) → metrics of each scored query, [queries, metrics].
        groups: set → by → the group of each of the same queries.
        names: of the metrics.
        samples, seed: of the bootstrap; all systems are resampled alike.
    """
    import numpy as np

    rows: list[dict[str, Any]] = []
    for by in BY:
        label = np.array([group or "" for told in groups.values() for group in told[by]])
        for group in _ordered(by, label):
            chosen = label == group
            stacked = np.concatenate(
                [np.concatenate([values[system, task] for task in groups])[chosen] for system in systems], axis=1
            )
            drawn = metrics.bootstrap_means(stacked, samples=samples, rng=metrics.generator(seed, "group", by, group))
            for number, system in enumerate(systems):
                columns = slice(number * len(names), (number + 1) * len(names))
                summary = metrics.summary(names, stacked[:, columns].mean(axis=0), drawn[:, columns])
                rows.append(
                    {"system": system, "by": by, "group": group, "queries": int(chosen.sum()), "metrics": summary}
                )
    return rows


def _ordered(by: By, label: NDArray[np.str_]) -> list[str]:
    """The groups that occur: lengths by length, others by how many queries they have."""
    import numpy as np

    found, times = np.unique(label[label != ""], return_counts=True)
    known = {"length": buckets(QUERY_WORDS), "passage_length": buckets(PASSAGE_WORDS)}
    if by in known:
        return [name for name in known[by] if name in found]
    return [str(name) for name in found[np.lexsort((found, -times))]]
