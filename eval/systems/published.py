"""Figures that others published, as reference rows: never measured here, never in one table with what was.

The values are those of the public benchmark notebooks and the leaderboard of the authors of arXiv 2402.03053 ("Multi-
Lingual Malaysian Embedding"), recall@1/3/5/10, as told in them between October 2023 and February 2024. They stand for
other test sets than any that this project measures: what they allow is a rough idea of the size of a difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_prep.evaluation_sets import SET_FILE
from data_prep.files import read_json

PaperSet = Literal["b.cari.com.my", "c.cari.com.my", "malay-news", "twitter", "crossref-melayu", "lom.agc.gov.my"]
SetKind = Literal["forum", "chinese-forum", "news", "twitter", "research", "law"]

KINDS: dict[SetKind, PaperSet] = {
    "forum": "b.cari.com.my",
    "chinese-forum": "c.cari.com.my",
    "news": "malay-news",
    "twitter": "twitter",
    "research": "crossref-melayu",
    "law": "lom.agc.gov.my",
}
"""The six kinds of test set of the paper."""

SOURCE = "arXiv 2402.03053: the authors' benchmark notebooks and leaderboard"
KS = (1, 3, 5, 10)
NOT_RERUN = "published, not rerun; on another test set than ours"
_SAME_TEXTS = "test rows were split off at random after mining, so that training holds most test texts in another form"
_TRAINED_ON_TEST = "by its file list and row counts, its training data held the test questions with their passages"
_LARGER_POOL = "searched among 9,959 passages; the contrastive models among 9,673"
_TEACHER = "measured by the same authors, 15 February 2024; the set's labels come from a model of its family"


@dataclass(frozen=True)
class PublishedRow:
    """One model on one of the paper's sets.

    Attributes:
        system: the model. set: the paper's name of the set.
        recall: at 1, 3, 5 and 10, each in [0, 1].
        note: what one must know before comparing, besides `NOT_RERUN`.
    """

    system: str
    set: PaperSet
    recall: tuple[float, float, float, float]
    note: str = ""

    def record(self) -> dict[str, Any]:
        """As `published` of results.json holds it: system, set, metrics, source, note."""
        return {
            "system": self.system,
            "set": self.set,
            "metrics": {f"recall@{k}": value for k, value in zip(KS, self.recall, strict=True)},
            "source": SOURCE,
            "note": f"{NOT_RERUN}; {self.note}" if self.note else NOT_RERUN,
        }


_ADA, _600M, _1B = "text-embedding-ada-002", "Malaysian Llama2 600M", "Malaysian Llama2 1B"
_600M_C, _1B_C, _2B_C = f"{_600M} contrastive", f"{_1B} contrastive", "Malaysian Llama2 2B contrastive"
_BGE = "BGE-M3 dense"
_NOT_FINAL = "of {}, not its last checkpoint; " + _TRAINED_ON_TEST

PUBLISHED: tuple[PublishedRow, ...] = (
    PublishedRow(_ADA, "b.cari.com.my", (0.3162, 0.6243, 0.6944, 0.7624)),
    PublishedRow(_600M, "b.cari.com.my", (0.3168, 0.6882, 0.7790, 0.8453), _SAME_TEXTS),
    PublishedRow(_1B, "b.cari.com.my", (0.3262, 0.6947, 0.7902, 0.8604), _SAME_TEXTS),
    PublishedRow(_600M_C, "b.cari.com.my", (0.2545, 0.4815, 0.5498, 0.6281), _SAME_TEXTS),
    PublishedRow(_1B_C, "b.cari.com.my", (0.2981, 0.5795, 0.6581, 0.7367), _SAME_TEXTS),
    PublishedRow(_2B_C, "b.cari.com.my", (0.3071, 0.6362, 0.7214, 0.8015), _SAME_TEXTS),
    PublishedRow(_BGE, "b.cari.com.my", (0.3306, 0.7026, 0.7930, 0.8647), _TEACHER),
    PublishedRow(_ADA, "c.cari.com.my", (0.0838, 0.2139, 0.2786, 0.3590)),
    PublishedRow(_600M, "c.cari.com.my", (0.0833, 0.1873, 0.2398, 0.3140), _SAME_TEXTS),
    PublishedRow(_1B, "c.cari.com.my", (0.0869, 0.1997, 0.2609, 0.3431), _SAME_TEXTS),
    PublishedRow(_600M_C, "c.cari.com.my", (0.0518, 0.0977, 0.1240, 0.1657), _SAME_TEXTS),
    PublishedRow(_1B_C, "c.cari.com.my", (0.0672, 0.1368, 0.1750, 0.2282), _SAME_TEXTS),
    PublishedRow(_BGE, "c.cari.com.my", (0.0880, 0.2375, 0.3357, 0.4558), _TEACHER),
    PublishedRow(_ADA, "malay-news", (0.1387, 0.2953, 0.3745, 0.4755)),
    PublishedRow(_600M, "malay-news", (0.1427, 0.2758, 0.3641, 0.4711), _SAME_TEXTS),
    PublishedRow(_1B, "malay-news", (0.1461, 0.2853, 0.3641, 0.4776), _SAME_TEXTS),
    PublishedRow(_600M_C, "malay-news", (0.1166, 0.1899, 0.2234, 0.2813), _SAME_TEXTS),
    PublishedRow(_1B_C, "malay-news", (0.1289, 0.2079, 0.2481, 0.3247), _SAME_TEXTS),
    PublishedRow(_2B_C, "malay-news", (0.1363, 0.2306, 0.2873, 0.3717), _SAME_TEXTS),
    PublishedRow(_BGE, "malay-news", (0.1460, 0.3186, 0.4232, 0.5473), _TEACHER),
    PublishedRow(_ADA, "twitter", (0.2294, 0.4919, 0.5931, 0.7249)),
    PublishedRow(_600M, "twitter", (0.2350, 0.5201, 0.6417, 0.7859), _SAME_TEXTS),
    PublishedRow(_1B, "twitter", (0.2305, 0.5343, 0.6499, 0.7925), _SAME_TEXTS),
    PublishedRow(_600M_C, "twitter", (0.1961, 0.3938, 0.4808, 0.5977), _SAME_TEXTS),
    PublishedRow(_1B_C, "twitter", (0.2168, 0.4453, 0.5387, 0.6685), _SAME_TEXTS),
    PublishedRow(_2B_C, "twitter", (0.2250, 0.4868, 0.5851, 0.7333), _SAME_TEXTS),
    PublishedRow(_BGE, "twitter", (0.2292, 0.5225, 0.6443, 0.7837), _TEACHER),
    PublishedRow(_ADA, "crossref-melayu", (0.3156, 0.5121, 0.5878, 0.6722), _LARGER_POOL),
    PublishedRow(_600M, "crossref-melayu", (0.0955, 0.1835, 0.2338, 0.3099), _LARGER_POOL),
    PublishedRow(_1B, "crossref-melayu", (0.0678, 0.1426, 0.1882, 0.2572), _LARGER_POOL),
    PublishedRow(_600M_C, "crossref-melayu", (0.1165, 0.2524, 0.3402, 0.4563), _NOT_FINAL.format("9 December 2023")),
    PublishedRow(_1B_C, "crossref-melayu", (0.2119, 0.4143, 0.5202, 0.6611), _NOT_FINAL.format("14 December 2023")),
    PublishedRow(_2B_C, "crossref-melayu", (0.2671, 0.4912, 0.6091, 0.7398), _TRAINED_ON_TEST),
    PublishedRow(_BGE, "crossref-melayu", (0.4133, 0.6698, 0.7699, 0.8632), "measured by the same authors"),
    PublishedRow(_ADA, "lom.agc.gov.my", (0.1917, 0.2828, 0.3225, 0.3686)),
    PublishedRow(_600M, "lom.agc.gov.my", (0.0522, 0.0993, 0.1297, 0.1797)),
    PublishedRow(_1B, "lom.agc.gov.my", (0.0687, 0.1343, 0.1718, 0.2309)),
    PublishedRow(_600M_C, "lom.agc.gov.my", (0.0599, 0.1268, 0.1697, 0.2534), _NOT_FINAL.format("9 December 2023")),
    PublishedRow(_1B_C, "lom.agc.gov.my", (0.1140, 0.2303, 0.3017, 0.4074), _NOT_FINAL.format("14 December 2023")),
    PublishedRow(_2B_C, "lom.agc.gov.my", (0.1550, 0.2911, 0.3725, 0.4887), _TRAINED_ON_TEST),
    PublishedRow(_BGE, "lom.agc.gov.my", (0.3500, 0.5311, 0.6012, 0.6928), "measured by the same authors"),
)
"""Every figure that is known. The 2B model has none on c.cari.com.my: its notebook stopped half-way."""

_BEGINS: tuple[tuple[str, SetKind], ...] = (
    ("bcari", "forum"),
    ("ccari", "chinese-forum"),
    ("news", "news"),
    ("twitter", "twitter"),
    ("research", "research"),
    ("crossref", "research"),
    ("legal", "law"),
    ("lom", "law"),
)


def kind_of(name: str, told: str | None = None) -> SetKind | None:
    """The kind of an evaluation set, None where it is none of the paper's.

    Args:
        name: of the set; `bcari_ms_en` is of a forum by how it begins.
        told: what its set.json says, which has the last word.
    """
    if told is not None:
        return next((kind for kind in KINDS if kind == told), None)
    return next((kind for begin, kind in _BEGINS if name.lower().startswith(begin)), None)


def rows_for(kinds: Mapping[str, SetKind]) -> list[PublishedRow]:
    """The rows of the paper's sets whose kinds are asked for, in the order of the paper's sets.

    Args:
        kinds: our set's name → its kind. Several sets of one kind give its rows once.
    """
    wanted = {KINDS[kind] for kind in kinds.values()}
    return [row for row in PUBLISHED if row.set in wanted]


def published(sets: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """`published` of results.json.

    Args:
        sets: name of each measured set → the kind that its set.json tells, None without one. Sets of none of the
            paper's kinds have no rows.
    """
    kinds = {name: kind for name, told in sets.items() if (kind := kind_of(name, told)) is not None}
    return [row.record() for row in rows_for(kinds)]


def published_beside(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """`published` of results.json for evaluation sets on the disk, by their names and what their set.json says."""
    told: dict[str, str | None] = {}
    for folder in folders:
        facts = read_json(folder / SET_FILE) if (folder / SET_FILE).is_file() else {}
        kind = facts.get("kind") if isinstance(facts, dict) else None  # what is wrong in it is told by load_set
        told[folder.name] = kind if isinstance(kind, str) else None
    return published(told)


def published_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The records of `published` as plain text, a block for each set, with every note under it once."""
    blocks: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        blocks.setdefault(row["set"], []).append(row)
    lines = []
    for name, block in blocks.items():
        columns = list(block[0]["metrics"])
        width = max(len(row["system"]) for row in block) + 4
        lines += [f"{name} ({SOURCE}; {NOT_RERUN})", " " * width + "".join(f"{c:>11}" for c in columns)]
        notes: dict[str, int] = {}
        for row in block:
            note = row["note"].removeprefix(NOT_RERUN).removeprefix("; ")
            mark = f" [{notes.setdefault(note, len(notes) + 1)}]" if note else ""
            figures = "".join(f"{row['metrics'][column]:>11.4f}" for column in columns)
            lines.append(f"{row['system'] + mark:<{width}}{figures}")
        lines += [f"[{number}] {note}" for note, number in notes.items()] + [""]
    return "\n".join(lines).rstrip() + "\n" if lines else ""
