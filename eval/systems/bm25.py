"""BM25, the baseline that needs no model, and its words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from eval.systems.ranker import ordered_top_k

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BM25_K1 = 1.2
BM25_B = 0.75


@cache
def _word_pattern() -> Any:
    import regex

    # Letters with their combining marks: the standard library's \w ends a Tamil or Thai word at every vowel sign.
    unspaced = r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Han}\p{Hiragana}\p{Katakana}]"
    spaced = rf"(?!{unspaced})[\p{{L}}\p{{N}}_]"
    return regex.compile(rf"(?P<unspaced>(?:{unspaced}\p{{M}}*)+)|(?P<word>(?:{spaced}\p{{M}}*)+)")


def bm25_tokens(text: str) -> list[str]:
    """Lower-cased words of a text; runs of scripts without spaces (Thai, Chinese …) become character 2- and 3-grams."""
    return list(_tokens(text.lower()))


def _tokens(text: str) -> Iterator[str]:
    for match in _word_pattern().finditer(text):
        piece = match.group()
        if match.lastgroup == "word" or len(piece) == 1:
            yield piece
            continue
        for size in (2, 3):
            yield from (piece[i : i + size] for i in range(len(piece) - size + 1))


class BM25Ranker:
    """BM25 (Robertson and Zaragoza 2009) over the documents it is given, by bm25s; k1 = 1.2, b = 0.75.

    A word counts once however often the query repeats it: a stronger baseline on long, chatty queries.
    """

    def __init__(self, *, k1: float = BM25_K1, b: float = BM25_B) -> None:
        self.k1, self.b = k1, b

    def rank(
        self, documents: Sequence[str], queries: Sequence[str], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `Ranker.rank`. A query that shares no word with any document scores 0 everywhere."""
        import bm25s
        import numpy as np

        tokens = [bm25_tokens(document) for document in documents]
        index = bm25s.BM25(k1=self.k1, b=self.b)
        vocabulary: dict[str, int] = {}
        if any(tokens):  # bm25s cannot index documents without a single word
            index.index(tokens, show_progress=False)
            vocabulary = index.vocab_dict
        rows = []
        for query in queries:
            known = [t for t in dict.fromkeys(bm25_tokens(query)) if t in vocabulary]
            scores = np.zeros(len(documents), dtype=np.float32) if not known else index.get_scores(known)
            rows.append(ordered_top_k(np.asarray(scores, dtype=np.float32), k))
        return np.stack([indices for indices, _ in rows]), np.stack([scores for _, scores in rows])
