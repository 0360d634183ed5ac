"""The one function that makes a pair row, so that an id is always the content hash of its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data_prep.files import content_id


def pair_row(
    query: str,
    positives: Sequence[str],
    negatives: Sequence[str],
    source: str,
    language: str,
    positive_scores: Sequence[float] | None = None,
    negative_scores: Sequence[float] | None = None,
    *,
    query_document: str | None = None,
    positive_documents: Sequence[str] | None = None,
    negative_documents: Sequence[str] | None = None,
) -> dict[str, Any]:
    """One row of a pair shard; ids are content hashes.

    Scores and documents (the corpus ids that the texts come from), where given, align with the texts.
    """
    for texts, more in (
        (positives, positive_scores),
        (negatives, negative_scores),
        (positives, positive_documents),
        (negatives, negative_documents),
    ):
        if more is not None and len(texts) != len(more):
            raise ValueError(f"{len(texts)} texts with {len(more)} scores or documents")
    return {
        "query": query,
        "positives": list(positives),
        "negatives": list(negatives),
        "source": source,
        "language": language,
        "query_id": content_id(query),
        "positive_ids": [content_id(text) for text in positives],
        "negative_ids": [content_id(text) for text in negatives],
        "positive_scores": None if positive_scores is None else list(positive_scores),
        "negative_scores": None if negative_scores is None else list(negative_scores),
        "query_document": query_document,
        "positive_documents": None if positive_documents is None else list(positive_documents),
        "negative_documents": None if negative_documents is None else list(negative_documents),
    }
