"""A reranker as the last judge of negatives, through sentence-transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from data_prep.embed.teacher import model_path
from data_prep.errors import UserError
from data_prep.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.mine.config import CrossEncoderConfig
    from data_prep.mine.select import Judge

Texts = Callable[["NDArray[np.int64]"], "list[str]"]
_STEP = 512
"""Pairs between two looks at the progress (and at ^C)."""
_CHARACTERS = 32
"""Characters of a text for each token that is read: no word of a language is longer on average."""


def judge_of(config: CrossEncoderConfig, queries: Texts, corpus: Texts, positives: Texts, progress: Progress) -> Judge:
    """The judge: (queries [s], corpus rows [s], rows of the best positive [s]) → which texts it finds relevant [s].

    Args:
        queries, corpus, positives: the texts of some rows of each.

    Raises:
        UserError: the model cannot be loaded, or gives more than one number a pair.
    """
    import numpy as np

    model = _load(config)
    most = _CHARACTERS * config.max_tokens

    def score(pairs: list[tuple[str, str]]) -> NDArray[np.float64]:
        # a tokenizer makes all tokens of a long text before it cuts them: a book takes gigabytes
        cut = [(query[:most], text[:most]) for query, text in pairs]
        found = np.asarray(model.predict(cut, batch_size=config.batch_size, show_progress_bar=False))
        if found.ndim != 1 and found.shape[1:] != (1,):
            raise UserError(
                f"mine.cross_encoder.model = {config.model!r}",
                f"gives {found.shape[1]} numbers a pair, one is needed",
                "name a cross-encoder that was trained to rank",
            )
        return found.reshape(-1).astype(np.float64)

    def judge(asked: NDArray[np.int64], rows: NDArray[np.int64], best: NDArray[np.int64]) -> NDArray[np.bool_]:
        relevant = np.zeros(len(asked), dtype=np.bool_)
        progress.begin("cross-encoder", len(asked), "pairs")
        for start in range(0, len(asked), _STEP):
            part = slice(start, start + _STEP)
            texts = queries(asked[part])
            found = score(list(zip(texts, corpus(rows[part]), strict=True)))
            relevant[part] = found >= config.max_score
            if config.margin > 0:
                _, first, back = np.unique(asked[part], return_index=True, return_inverse=True)
                known = score(list(zip([texts[n] for n in first], positives(best[part][first]), strict=True)))
                relevant[part] |= found > known[back] - config.margin
            progress.advance(len(texts))
        return relevant

    return judge


def _load(config: CrossEncoderConfig) -> Any:
    from sentence_transformers import CrossEncoder

    path = model_path(config.model)
    try:
        return CrossEncoder(path, max_length=config.max_tokens, trust_remote_code=False)
    except Exception as error:  # the hub client, transformers and torch each raise their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"mine.cross_encoder.model = {config.model!r}",
            f"cannot be loaded ({reason})",
            "give a model folder or a Hugging Face id",
        ) from error
