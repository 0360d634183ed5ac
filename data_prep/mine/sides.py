"""What the rules need to know of many texts at once: arrays instead of strings.

A side is a set of texts (the queries, the corpus, known positives) as aligned arrays, so that rules compare whole
blocks. Texts, documents and languages stand as numbers made from their content alone: equal on every side and in every
process. It can lie in a folder, where the processes that share the work open it memory-mapped.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.corpus.keys import text_key
from data_prep.embed.embedder import unit_rows
from data_prep.embed.vectors import ArrayVectors, Vectors, check_same_kind
from data_prep.files import read_json, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNKNOWN_LANGUAGES = frozenset({"", "und", "xx", "mixed"})
_HASHES = 128
_CELLS = 1 << 22
"""Numbers of vectors that are compared at once: 16 MB a side."""
_ARRAYS = ("keys", "documents", "languages", "sketches")


def language_number(language: str | None) -> int:
    """The number of a language; 0 where it is unknown or mixed."""
    return 0 if not language or language in UNKNOWN_LANGUAGES else zlib.crc32(language.encode()) or 1


def sketch_of(text: str) -> bytes:
    """16 bytes from which `shared_words` estimates the Jaccard similarity of the words of two texts.

    One bit of each of 128 MinHash values (b-bit minwise hashing, arXiv 0910.3349): a standard error of 0.05 at 0.8.
    """
    import numpy as np
    from rensa import RMinHash

    hashes = RMinHash(num_perm=_HASHES, seed=1)
    hashes.update(text.lower().split())
    return np.packbits(np.asarray(hashes.digest(), dtype=np.uint64).astype(np.uint8) & 1).tobytes()


def shared_words(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Estimated Jaccard similarity [...] of sketches [..., 2]: 0 for nothing in common (below it by chance)."""
    import numpy as np

    differing = np.bitwise_count(one ^ other).sum(axis=-1, dtype=np.int64)
    share: NDArray[np.float32] = (1 - 2 * differing / _HASHES).astype(np.float32)
    return share


class RowsOf:
    """Some rows of other vectors, in the given order; `Vectors`."""

    def __init__(self, vectors: Vectors, rows: NDArray[np.int64]) -> None:
        self.inner, self.numbers = vectors, rows
        self.rows, self.dimension, self.normalised = len(rows), vectors.dimension, vectors.normalised

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) as float32."""
        return self.inner.take(self.numbers[start:stop])

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """The given rows, in the given order."""
        import numpy as np

        return self.inner.take(self.numbers[np.asarray(rows, dtype=np.int64)])


class Joined:
    """The rows of one set of vectors, then those of another; `Vectors`."""

    def __init__(self, first: Vectors, second: Vectors) -> None:
        check_same_kind(first, second)
        self.first, self.second = first, second
        self.rows, self.dimension, self.normalised = first.rows + second.rows, first.dimension, first.normalised

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) as float32."""
        import numpy as np

        border = self.first.rows
        head = self.first.read(min(start, border), min(stop, border))
        return np.concatenate([head, self.second.read(max(start - border, 0), max(stop - border, 0))])

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """The given rows, in the given order."""
        import numpy as np

        wanted = np.asarray(rows, dtype=np.int64)
        found = np.empty((len(wanted), self.dimension), dtype=np.float32)
        early = wanted < self.first.rows
        found[early] = self.first.take(wanted[early])
        found[~early] = self.second.take(wanted[~early] - self.first.rows)
        return found


@dataclass
class Side:
    """Aligned facts of n texts.

    Attributes:
        vectors: by the teacher. second: by the second teacher, where there is one.
        keys: [n] uint64, equal for equal texts. documents: [n] uint64 (`document_hash`), 0 unknown.
        languages: [n] int64, 0 unknown.
        sketches: [n, 2] uint64 for `shared_words`; None where no rule asks.
    """

    vectors: Vectors
    keys: NDArray[np.uint64]
    documents: NDArray[np.uint64]
    languages: NDArray[np.int64]
    sketches: NDArray[np.uint64] | None = None
    second: Vectors | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self, chosen: NDArray[np.int64]) -> Side:
        """The side of some rows; vectors are not copied."""
        return Side(
            vectors=RowsOf(self.vectors, chosen),
            keys=self.keys[chosen],
            documents=self.documents[chosen],
            languages=self.languages[chosen],
            sketches=None if self.sketches is None else self.sketches[chosen],
            second=None if self.second is None else RowsOf(self.second, chosen),
        )

    def save(self, folder: Path) -> None:
        """Write the side to a folder; vectors that lie in files already are named, not copied."""
        import numpy as np

        folder.mkdir(parents=True, exist_ok=True)
        for name in _ARRAYS:
            if (array := getattr(self, name)) is not None:
                np.save(folder / f"{name}.npy", array)
        told = {"vectors": _place(self.vectors, folder, "vectors"), "second": None}
        if self.second is not None:
            told["second"] = _place(self.second, folder, "second")
        write_json(folder / "side.json", told)

    def digest(self, known: dict[int, bytes]) -> bytes:
        """Of all that the rules read: equal for equal sides.

        Args:
            known: digests of vectors by their `id()`; what several sides share is read once.
        """
        import numpy as np

        told = hashlib.blake2b(digest_size=16)
        for name in _ARRAYS:
            array = getattr(self, name)
            told.update(f"{name} {'none' if array is None else array.shape} ".encode())
            if array is not None:
                told.update(np.ascontiguousarray(array).data)
        for vectors in (self.vectors, self.second):
            told.update(b"none" if vectors is None else _digest(vectors, known))
        return told.digest()

    @classmethod
    def load(cls, folder: Path) -> Side:
        """Open a saved side, memory-mapped."""
        import numpy as np

        told = read_json(folder / "side.json")
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r")
            for name in _ARRAYS
            if (folder / f"{name}.npy").exists()
        }
        return cls(
            vectors=_open(told["vectors"]), second=None if told["second"] is None else _open(told["second"]), **arrays
        )


def _digest(vectors: Vectors, known: dict[int, bytes]) -> bytes:
    """Of the content of vectors; those in files know theirs."""
    import numpy as np

    if id(vectors) not in known:
        told = hashlib.blake2b(f"{vectors.rows} {vectors.dimension} {vectors.normalised} ".encode(), digest_size=16)
        if isinstance(vectors, RowsOf):
            told.update(b"rows" + _digest(vectors.inner, known))
            told.update(np.ascontiguousarray(vectors.numbers).data)
        elif isinstance(vectors, Joined):
            told.update(b"joined" + _digest(vectors.first, known) + _digest(vectors.second, known))
        elif named := getattr(vectors, "fingerprint", None):
            told.update(str(named).encode())
        else:
            step = max(1, _CELLS // max(1, vectors.dimension))
            for start in range(0, vectors.rows, step):
                told.update(np.ascontiguousarray(vectors.read(start, min(start + step, vectors.rows))).data)
        known[id(vectors)] = told.digest()
    return known[id(vectors)]


def _place(vectors: Vectors, folder: Path, name: str) -> dict[str, Any]:
    """Where vectors lie, as JSON; those in memory are written."""
    import numpy as np

    if isinstance(vectors, RowsOf):
        path = folder / f"{name}-rows.npy"
        np.save(path, vectors.numbers)
        return {"rows": str(path), "of": _place(vectors.inner, folder, f"{name}-of")}
    if isinstance(vectors, Joined):
        halves = ((vectors.first, f"{name}-first"), (vectors.second, f"{name}-second"))
        return {"joined": [_place(half, folder, label) for half, label in halves]}
    if stored := getattr(vectors, "folder", None):
        return {"stored": str(stored)}
    path = folder / f"{name}.npy"
    np.save(path, vectors.read(0, vectors.rows))
    return {"array": str(path), "normalised": vectors.normalised}


def _open(place: dict[str, Any]) -> Vectors:
    import numpy as np

    if "rows" in place:
        return RowsOf(_open(place["of"]), np.load(place["rows"], mmap_mode="r"))
    if "joined" in place:
        return Joined(*map(_open, place["joined"]))
    if "stored" in place:
        from data_prep.embed.store import StoredVectors

        return StoredVectors(Path(place["stored"]), verify=False)
    return ArrayVectors(np.load(place["array"], mmap_mode="r"), normalised=place["normalised"])


def side_of(
    texts: Iterable[str],
    vectors: Vectors,
    *,
    documents: NDArray[np.uint64],
    languages: Sequence[str | None] | NDArray[np.int64],
    sketches: bool,
    second: Vectors | None = None,
) -> Side:
    """The side of texts, in the order of the vectors.

    Args:
        documents: [n], 0 where unknown. languages: names, or numbers from `language_number`.
        sketches: whether a rule will compare words.
    """
    import numpy as np

    keys, drawn = bytearray(), bytearray()
    for text in texts:
        keys += bytes.fromhex(text_key(text))[:8]
        if sketches:
            drawn += sketch_of(text)
    if not isinstance(languages, np.ndarray):
        languages = np.asarray([language_number(name) for name in languages], dtype=np.int64)
    side = Side(
        vectors=vectors,
        keys=np.frombuffer(bytes(keys), dtype=np.uint64),
        documents=documents,
        languages=languages,
        sketches=np.frombuffer(bytes(drawn), dtype=np.uint64).reshape(-1, 2) if sketches else None,
        second=second,
    )
    if not len(side) == vectors.rows == len(documents) == len(languages):
        raise ValueError(f"{len(side)} texts with {vectors.rows} vectors and {len(documents)} documents")
    return side


def rows_of_keys(keys: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The first row that has each key, -1 where none has."""
    import numpy as np

    order = np.argsort(keys, kind="stable")
    place = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
    rows = order[place]
    return np.where(keys[rows] == wanted, rows, -1).astype(np.int64)


def cosines(one: Vectors, rows: NDArray[np.int64], other: Vectors, others: NDArray[np.int64]) -> NDArray[np.float32]:
    """[q, m] cosines of `rows` [q] with `others` [q, m], whether or not the vectors are normalised; -inf for row -1."""
    import numpy as np

    found = np.full(others.shape, -np.inf, dtype=np.float32)
    step = max(1, _CELLS // max(1, one.dimension * others.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        asked = unit_vectors(one, rows[part])
        there = others[part] >= 0
        theirs = unit_vectors(other, np.maximum(others[part], 0).ravel())
        products = np.einsum("qmd,qd->qm", theirs.reshape(*others[part].shape, -1), asked)
        found[part] = np.where(there, products, -np.inf)
    return found


def unit_vectors(vectors: Vectors, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Some rows [n, dimension] at unit length, whether or not the vectors are normalised."""
    found = vectors.take(rows)
    return found if vectors.normalised else unit_rows(found)
