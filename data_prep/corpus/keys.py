"""When two texts are the same text, and which texts training may never see.

Two texts are the same where their keys are equal: NFKC, lower case, white space collapsed, hashed. The key ignores what
copying changes (case, line breaks, full-width forms) and nothing that carries meaning.
"""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path


def text_key(text: str) -> str:
    """32 hex digits (BLAKE2b-128) of the text in NFKC, lower-cased, with runs of white space made one space."""
    normal = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    return hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def evaluation_keys(sets: list[Path]) -> set[str]:
    """Keys of every text in the evaluation sets: queries, documents, and documents without their title line.

    The last is needed because corpora often hold the body of an article alone, or its title apart.

    Raises:
        UserError: a folder is not an evaluation set (see `evaluation_sets.load_set`).
    """
    from data_prep.evaluation_sets import load_set

    keys: set[str] = set()
    for folder in sets:
        loaded = load_set(folder)
        keys.update(text_key(query) for query in loaded.queries)
        for document in loaded.documents:
            keys.add(text_key(document))
            body = document.partition("\n")[2]
            if body.strip():
                keys.add(text_key(body))
    return keys
