"""A model's vectors of some texts, asked for the nearest of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from data_prep.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.embedder import Embedder
    from data_prep.progress import Progress


@dataclass
class Index:
    """One model beside the vectors [texts, dimension] that it gave; only one thread at a time asks the model."""

    name: str
    embedder: Embedder
    vectors: NDArray[np.float32]
    _asked: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def ranking(self, query: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(texts, nearest first; the score of every text, in the order of the file); ties keep that order.

        Raises:
            UserError: the model gives this query numbers that are not finite.
        """
        import numpy as np

        with self._asked:
            vector = self.embedder.embed([query], role="query")[0]
        scores: NDArray[np.float32] = self.vectors @ vector
        if not np.isfinite(scores).all():
            raise UserError(f"model {self.name!r}", "gives this query numbers that are not finite", "try another model")
        return np.argsort(-scores, kind="stable"), scores


def make_index(name: str, embedder: Embedder, documents: Sequence[str], progress: Progress) -> Index:
    """Embed the documents. Raises `UserError` where a vector is not finite."""
    import numpy as np

    vectors = embedder.embed(documents, role="passage", progress=progress)
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        text = " ".join(documents[int(bad.argmax())].split())[:60]
        raise UserError(
            f"model {name!r}",
            f"gives {int(bad.sum()):,} of {len(documents):,} texts numbers that are not finite, the first: {text!r}",
            "check the model, for example with another precision",
        )
    return Index(name, embedder, vectors)
