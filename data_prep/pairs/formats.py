"""From a row of whatever format to a query with its positives and negatives.

| format | columns |
|---|---|
| `pairs` | `query`; `pos`, `positive` or `positives`; `neg`, `negative` or `negatives` (the paper, FlagEmbedding) |
| `triplets` | `anchor`, `positive`, `negative`, `negative_1` … `negative_n`; or a list of texts (s.-transformers) |
| `sentences` | `sentence1`, `sentence2`, `score` (sentence-transformers, similarity data) |
| `questions` | `question`, `answer` |
| `renderings` | `left`, `ms`, `en` (the paper), or a `set` of texts: the same thing said in other words |

Each may also have `negative…` columns, `score`, `scores`, or `pos_scores` and `neg_scores`; `label` (1 a pair, 0 none)
or `labels` (of the texts in a list); `source`, `lang` or `language`; and the ids of the documents that the texts come
from, as rumpun's own shards do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, get_args

from data_prep.files import content_id

Format = Literal["pairs", "triplets", "sentences", "questions", "renderings"]
FORMATS: tuple[Format, ...] = get_args(Format)
_QUERY: dict[Format, str] = {
    "pairs": "query", "triplets": "anchor", "sentences": "sentence1", "questions": "question",
}  # fmt: skip
_ANSWER: dict[Format, tuple[str, ...]] = {"sentences": ("sentence2",), "questions": ("answer", "answers")}
_POSITIVE = ("positive", "positives", "pos")
_NEGATIVE = ("negative", "negatives", "neg")
_PYTHON_LISTS = ("['", '["')
_RENDERINGS = ("left", "ms", "en")


class Refused(Exception):
    """A row that is no pair. `reason` is its count's name, the text says what is wrong with it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(slots=True)
class Candidate:
    """What a row says, before it is cleaned; scores and documents align with their texts or are None."""

    query: str
    positives: list[str]
    negatives: list[str]
    positive_scores: list[float] | None = None
    negative_scores: list[float] | None = None
    source: str | None = None
    language: str | None = None
    query_document: str | None = None
    positive_documents: list[str] | None = None
    negative_documents: list[str] | None = None


def detect(row: Any) -> Format | None:
    """The format of a row by its columns; None where it is none of them."""
    if isinstance(row, list):
        return "triplets"
    if ("left" in row and ("ms" in row or "en" in row)) or "set" in row:
        return "renderings"
    return next((name for name, query in _QUERY.items() if query in row), None)


def parse(row: Any, wanted: Format | None, *, typed: bool) -> tuple[Format, Iterator[Candidate]]:
    """The format of a row and the pairs in it.

    Args:
        wanted: what it must be; None: what its columns say.
        typed: whether cells can hold lists; else the text of a cell may be a JSON list.

    Raises:
        Refused: unknown_columns, no_query, not_text or bad_score; also while the pairs are taken.
    """
    if not isinstance(row, (dict, list)):
        raise Refused("unreadable", f"is a JSON {type(row).__name__}, not an object")
    found = wanted or detect(row)
    if isinstance(row, list):
        if found != "triplets":
            raise Refused("unknown_columns", f"is a list, which is no row of format {found!r}")
        row = dict(zip(("anchor", "positive"), row, strict=False)) | {"negatives": row[2:]}
    if found is None:
        raise Refused("unknown_columns", f"'query' is missing; its columns are {', '.join(map(str, row)) or 'none'}")
    if found == "renderings":
        return found, _renderings(row)
    return found, iter([_listed(row, found, typed=typed)])


def _listed(row: Mapping[str, Any], found: Format, *, typed: bool) -> Candidate:
    """The pair of every format that names its query."""
    name = _QUERY[found]
    query = row.get(name)
    if not isinstance(query, str):
        raise Refused("no_query", f"{name!r} is {_found(row, name)}, must be text")
    names = _numbered(row, "positive", (*_POSITIVE, *_ANSWER.get(found, ())))
    if found == "pairs" and not names:  # as public sets of questions name their columns
        names = [n for n in _ANSWER["questions"] if n in row]
    positives = _texts(row, names, typed=typed)
    negatives = _texts(row, _numbered(row, "negative", _NEGATIVE), typed=typed)
    _check_label(row, typed=typed)
    labels = row.get("labels") if typed else _opened(row.get("labels"))
    if isinstance(labels, list):
        if len(labels) != len(positives) or negatives:
            raise Refused("bad_score", f"'labels' holds {len(labels)} labels for {len(positives)} texts")
        marked = [_number(int(n) if isinstance(n, bool) else n, "labels", typed=typed) > 0 for n in labels]
        negatives = [text for text, good in zip(positives, marked, strict=True) if not good]
        positives = [text for text, good in zip(positives, marked, strict=True) if good]
    positive_scores, negative_scores = _joined_scores(row, positives, negatives, typed=typed)
    return Candidate(
        query,
        positives,
        negatives,
        _scores(row, ("positive_scores", "pos_scores"), positives, typed=typed) or positive_scores,
        _scores(row, ("negative_scores", "neg_scores"), negatives, typed=typed) or negative_scores,
        *_label(row),
        query_document=_text_or_none(row.get("query_document")),
        positive_documents=_documents(row.get("positive_documents"), positives),
        negative_documents=_documents(row.get("negative_documents"), negatives),
    )


def _check_label(row: Mapping[str, Any], *, typed: bool) -> None:
    """`label` 1 marks a pair, 0 two texts that are none; another number names a class, not whether it is a pair."""
    label = row.get("label")
    if not typed and isinstance(label, str):
        with suppress(ValueError):
            label = float(label)
    if isinstance(label, (int, float)) and label != 1:
        reason = "labelled_no_pair" if label == 0 else "class_label"
        rule = "" if label == 0 else ", must be 1 for a pair or 0 for none"
        raise Refused(reason, f"'label' is {_shown(label)}{rule}")


def _joined_scores(
    row: Mapping[str, Any], positives: list[str], negatives: list[str], *, typed: bool
) -> tuple[list[float] | None, list[float] | None]:
    """Scores from `score`, or from `scores`, which names the positive's first and then those of the negatives."""
    scores = row.get("scores") if typed else _opened(row.get("scores"))
    if not isinstance(scores, list) or not scores:
        return _one_score(row, positives, typed=typed), None
    if len(positives) != 1 or len(scores) != 1 + len(negatives):
        raise Refused(
            "bad_score", f"'scores' holds {len(scores)} for {len(positives)} positives and {len(negatives)} negatives"
        )
    numbers = [_number(score, "scores", typed=typed) for score in scores]
    return numbers[:1], numbers[1:]


def _renderings(row: Mapping[str, Any]) -> Iterator[Candidate]:
    """Each two renderings of a thing are a pair; all come from one document, so that none is a negative of another."""
    texts: dict[str, str | None] = {}
    named = [(name, row[name]) for name in _RENDERINGS if row.get(name) is not None]
    given = row.get("set")
    for name, text in named or [("", text) for text in (given if isinstance(given, list) else ())]:
        if not isinstance(text, str):
            raise Refused("not_text", f"{name or 'set'!r} holds a {type(text).__name__}, must be text")
        texts.setdefault(text, name if name in ("ms", "en") else None)
    if len(texts) < 2:
        raise Refused("no_positive", "has fewer than two different renderings")
    document = content_id("\x1f".join(texts))
    source, language = _label(row)
    for (query, spoken), (positive, _) in combinations(texts.items(), 2):
        yield Candidate(
            query, [positive], [], source=source, language=language or spoken, query_document=document,
            positive_documents=[document],
        )  # fmt: skip


def _numbered(row: Mapping[str, Any], stem: str, names: tuple[str, ...]) -> list[str]:
    """The named columns that a row has, and `stem_1`, `stem_2` … in the order of their numbers."""
    more = [n for n in row if isinstance(n, str) and n.startswith(stem + "_") and n[len(stem) + 1 :].isdecimal()]
    return [n for n in names if n in row] + sorted(more, key=lambda n: (len(n), n))


def _texts(row: Mapping[str, Any], names: list[str], *, typed: bool) -> list[str]:
    """All texts of the named columns; a column may hold one text, a list of texts, or null."""
    texts: list[str] = []
    for name in names:
        value = row[name] if typed else _opened(row[name], str)
        if not typed and isinstance(value, str) and value[:2] in _PYTHON_LISTS and value[-2:] in ("']", '"]'):
            raise Refused("not_text", f"{name!r} holds a list as Python shows it, must be JSON")
        for item in value if isinstance(value, list) else [] if value is None else [value]:
            if not isinstance(item, str):
                raise Refused("not_text", f"{name!r} holds a {type(item).__name__}, must be text")
            texts.append(item)
    return texts


def _opened(value: Any, *of: type) -> Any:
    """The list of texts or numbers in a cell that holds it as JSON; the cell itself where it holds none."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError, RecursionError):
            opened = json.loads(value)
            if all(isinstance(item, of or (str, int, float)) for item in opened):
                return opened
    return value


def _number(value: Any, name: str, *, typed: bool) -> float:
    if not typed and isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    number = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(OverflowError):  # JSON knows integers of any length
            number = float(value)
    if not math.isfinite(number):
        raise Refused("bad_score", f"{name!r} is {_shown(value)}, must be a finite number")
    return number


def _shown(value: Any) -> str:
    try:
        return repr(value)[:60]
    except ValueError:  # an integer that is too long to print
        return "a very long integer"


def _scores(row: Mapping[str, Any], names: tuple[str, ...], texts: list[str], *, typed: bool) -> list[float] | None:
    """One score for each text, None where the row gives none."""
    for name in names:
        value = row.get(name) if typed else _opened(row.get(name))
        if value is None or value in ([], ""):
            continue
        if not isinstance(value, list) or len(value) != len(texts):
            count = len(value) if isinstance(value, list) else 1
            raise Refused("bad_score", f"{name!r} gives {count} scores to {len(texts)} texts")
        return [_number(item, name, typed=typed) for item in value]
    return None


def _one_score(row: Mapping[str, Any], positives: list[str], *, typed: bool) -> list[float] | None:
    """`score`, which a row gives its one positive."""
    value = row.get("score")
    if value is None or (value == "" and not typed):
        return None
    score = _number(value, "score", typed=typed)
    if len(positives) > 1:
        raise Refused("bad_score", f"gives one score to {len(positives)} positives; write a line for each scored pair")
    return [score] * len(positives)


def _documents(value: Any, texts: list[str]) -> list[str] | None:
    aligned = isinstance(value, list) and len(value) == len(texts) and all(isinstance(v, str) for v in value)
    return [encodable(name) for name in value] if aligned else None


def _label(row: Mapping[str, Any]) -> tuple[str | None, str | None]:
    return _text_or_none(row.get("source")), _text_or_none(row.get("lang")) or _text_or_none(row.get("language"))


def _text_or_none(value: Any) -> str | None:
    return encodable(value) if isinstance(value, str) and value else None


def encodable(text: str) -> str:
    """The text without halves of surrogate pairs, which JSON can hold and no file can."""
    return text.encode("utf-8", "replace").decode()


def _found(row: Mapping[str, Any], name: str) -> str:
    return "missing" if name not in row else f"a {type(row[name]).__name__}"
