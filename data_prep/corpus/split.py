"""Documents that training never sees, chosen by the name of the document alone.

Whether a document is held out depends on its key, the fraction and the seed, on nothing else: all passages and
renderings of a document fall on one side, in every part of the corpus, and a growing corpus moves no document.
"""

from __future__ import annotations

import hashlib


def is_held_out(document: str, fraction: float, seed: int) -> bool:
    """Whether a document is held out of training.

    Args:
        document: what its passages share: the `document` column of a document shard, or its `id` where that is null.
        fraction: expected share of documents held out, 0 to 1.
        seed: another seed holds out other documents.
    """
    digest = hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=8, key=f"split {seed}".encode())
    return int.from_bytes(digest.digest()) < fraction * 2**64
