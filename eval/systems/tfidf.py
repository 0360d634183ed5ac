"""TF-IDF, the second lexical baseline: sparse vectors of words, of character n-grams, or of both, by scikit-learn.

The teacher's TF-IDF (data_prep/embed/tfidf.py) is reduced to short vectors so that millions can be searched. A baseline
has one set at a time, so its vectors stay whole: nothing is lost to a projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from eval.systems.bm25 import bm25_tokens
from eval.systems.ranker import ordered_top_k

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TfidfTerms = Literal["word", "char", "both"]
CHAR_GRAMS = (3, 5)
_BLOCK = 64
"""Queries scored at once: 64 rows of a million documents are 256 MB."""


class TfidfRanker:
    """Cosine of sublinear TF-IDF vectors: (1 + ln count) times the smoothed idf of scikit-learn; no text is cut.

    Args:
        terms: `word` takes BM25's words (scripts without spaces as character grams); `char` takes character 3- to
            5-grams inside words, which forgive spelling; `both` is the mean of the two cosines.
    """

    def __init__(self, terms: TfidfTerms = "both") -> None:
        self.terms = terms

    def _vectorizers(self) -> list[Any]:
        import numpy as np
        from sklearn.feature_extraction.text import TfidfVectorizer

        common: dict[str, Any] = {"sublinear_tf": True, "dtype": np.float64}
        made = []
        if self.terms != "char":
            made.append(TfidfVectorizer(tokenizer=bm25_tokens, token_pattern=None, lowercase=False, **common))
        if self.terms != "word":
            made.append(TfidfVectorizer(analyzer="char_wb", ngram_range=CHAR_GRAMS, **common))
        return made

    def rank(
        self, documents: Sequence[str], queries: Sequence[str], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `Ranker.rank`. The idf is of the documents alone; a query that shares no term with them scores 0."""
        import numpy as np
        from scipy.sparse import csr_array

        parts: list[tuple[Any, Any]] = []
        for vectorizer in self._vectorizers():
            try:
                indexed = vectorizer.fit_transform(documents)
            except ValueError as error:
                if "empty vocabulary" not in str(error):
                    raise
                continue  # documents without a single term: the score stays 0
            parts.append((csr_array(vectorizer.transform(queries)), csr_array(indexed).T.tocsr()))
        rows = []
        for start in range(0, len(queries), _BLOCK):
            scores = np.zeros((len(queries[start : start + _BLOCK]), len(documents)))
            for asked, indexed in parts:
                scores += (asked[start : start + _BLOCK] @ indexed).toarray() / len(parts)
            rows += [ordered_top_k(row, k) for row in scores.astype(np.float32)]
        return np.stack([indices for indices, _ in rows]), np.stack([found for _, found in rows])
