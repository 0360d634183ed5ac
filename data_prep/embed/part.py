"""One part of a folder of vectors: texts → checked float16 rows, those that the cache knows taken from there.

Invariant: a part depends on its texts, the teacher and the cache as it was when the folder was begun; not on who
computes it, when, or what the other parts hold. Identical texts of a part are embedded once.

A transformer's vector differs in the last bits of float32 with the other texts of its batch (other padding, other
matrix shapes). Float16 rounding hides nearly all of it, not all: of MiniLM's numbers about one in a thousand moves by
one float16 step when batches are cut otherwise. The same texts in the same order, with the same part size, batch
settings and cache, give the same bytes on one machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data_prep.embed.store import Kind, Parts, id_digests
from data_prep.errors import UserError
from data_prep.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.cache import VectorCache
    from data_prep.embed.embedder import Role, Teacher

Item = tuple[str, str]
"""A text's id and the text."""
_LARGEST = 65_504.0
_BLOCK = 256
_UNIT_ERROR = 1e-3


def text_keys(texts: Sequence[str], prompt: str) -> NDArray[np.uint8]:
    """[n, 16]: BLAKE2b-128 of what is sent. Where the prompt ends counts: some models pool over the text alone."""
    import numpy as np

    start = hashlib.blake2b(f"{len(prompt)}:{prompt}".encode("utf-8", "surrogatepass"), digest_size=16)
    digests = []
    for text in texts:
        digest = start.copy()
        digest.update(text.encode("utf-8", "surrogatepass"))
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 16)


def embed_part(
    parts: Parts,
    number: int,
    items: Sequence[Item],
    teacher: Teacher,
    *,
    role: Role,
    cache: VectorCache | None,
    first_row: int,
    progress: Progress,
) -> dict[str, Any]:
    """Write part `number`, unless it lies there whole; returns its record.

    Args:
        items: the texts of the part with their ids.
        cache: looked up and filled; none embeds everything.
        first_row: row of the first item among all, for messages.
        progress: advanced by each text.

    Raises:
        UserError: see `checked`.
    """
    texts = [text for _, text in items]
    ids, keys = id_digests([name for name, _ in items]), text_keys(texts, teacher.prompt(role))
    asked = hashlib.sha256(ids.tobytes() + keys.tobytes()).hexdigest()
    told = parts.finished(number, asked)
    if told is not None:
        progress.advance(len(items))
        return told
    vectors, fresh_keys, fresh = _vectors(items, keys, teacher, role, cache, first_row, progress)
    told = parts.write(number, asked, ids, vectors)
    if cache is not None and len(fresh_keys):
        cache.add(fresh_keys, fresh)
    return told | {"embedded": len(fresh_keys)}


def _vectors(
    items: Sequence[Item],
    keys: NDArray[np.uint8],
    teacher: Teacher,
    role: Role,
    cache: VectorCache | None,
    first_row: int,
    progress: Progress,
) -> tuple[NDArray[np.float16], NDArray[np.uint8], NDArray[np.float16]]:
    """All vectors [n, dimension], and the keys and vectors of those that were embedded now."""
    import numpy as np

    _, first, inverse = np.unique(keys.view("S16").ravel(), return_index=True, return_inverse=True)
    order = np.argsort(first)  # distinct texts in the order of the items, so that batches follow the corpus
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    first, inverse = first[order], place[inverse.ravel()]
    distinct = np.empty((len(first), teacher.dimension), dtype=np.float16)
    missing = np.ones(len(first), dtype=bool)
    if cache is not None:
        found, rows = cache.get(keys[first])
        distinct[found], missing[found] = rows, False
    wanted = first[missing]
    progress.advance(len(items) - len(wanted))
    if len(wanted):
        asked = [items[row] for row in wanted.tolist()]
        answer = teacher.embed([text for _, text in asked], role=role, progress=_Inner(progress))
        fresh = checked(answer, asked, teacher, rows=first_row + wanted)
        if len(wanted) == len(first):
            distinct = fresh
        else:
            distinct[missing] = fresh
    else:
        fresh = np.empty((0, teacher.dimension), dtype=np.float16)
    return distinct if len(first) == len(items) else distinct[inverse], keys[wanted], fresh


class _Inner(Progress):
    """Lets a teacher advance the bar of the whole instead of beginning its own."""

    def __init__(self, outer: Progress) -> None:
        super().__init__()
        self._outer = outer

    def advance(self, n: int = 1, **shown: float | str) -> None:
        """Advance the outer bar."""
        self._outer.advance(n, **shown)

    def note(self, line: str) -> None:
        """Pass the line on."""
        self._outer.note(line)


def checked(
    vectors: NDArray[Any], items: Sequence[Item], teacher: Teacher, *, rows: NDArray[np.int64]
) -> NDArray[np.float16]:
    """The vectors as float16, rounded once.

    Args:
        vectors: what the teacher gave for the items. rows: their rows among all texts, for messages.

    Raises:
        UserError: another number of rows or dimension than announced, a number that is not finite or too large for
            float16, a zero row where the teacher has no reason for one, rows that are not of unit length where the
            teacher says so. The first such text is named.
    """
    import numpy as np

    if vectors.shape != (len(items), teacher.dimension):
        raise UserError(
            f"teacher {teacher.name!r}: vectors of shape {list(vectors.shape)} for {len(items)} texts",
            f"must be [{len(items)}, {teacher.dimension}], the dimension that it announced",
            "check the teacher: another model answers than was asked for",
        )
    small = np.empty(vectors.shape, dtype=np.float16)
    lengths, largest = np.empty(len(vectors)), np.empty(len(vectors))
    for start in range(0, len(vectors), _BLOCK):
        block = slice(start, start + _BLOCK)
        exact = vectors[block].astype(np.float64)
        lengths[block] = np.sqrt(np.einsum("ij,ij->i", exact, exact))
        largest[block] = np.abs(exact).max(axis=1, initial=0)
        with np.errstate(over="ignore"):
            small[block] = vectors[block]
    other = "remove the text, or use another teacher"
    faults: list[tuple[Any, str, str]] = [
        (~np.isfinite(lengths), "is not finite (NaN or infinite)", f'{other} or dtype = "float32"'),
        (
            largest > _LARGEST,
            "holds a number that float16 cannot",
            "set the teacher's normalise = true",
        ),
    ]
    if not teacher.may_be_zero:
        faults.append((~small.any(axis=1), "is all zero", other))
    if teacher.normalised:
        wrong = (np.abs(lengths - 1) > _UNIT_ERROR) & (lengths > 0)
        faults.append((wrong, "is not of unit length, as the teacher says", "set the teacher's normalise = false"))
    for fault, rule, fix in faults:
        _refuse(fault, items, teacher, rows, rule, fix)
    return small


def _refuse(fault: Any, items: Sequence[Item], teacher: Teacher, rows: NDArray[np.int64], rule: str, fix: str) -> None:
    """Raises `UserError` about the first row at fault, if there is one."""
    found = fault.nonzero()[0]
    if not len(found):
        return
    name, text = items[int(found[0])]
    words = " ".join(text.split()[:8])[:80]
    more = f" (and of {len(found) - 1} more)" if len(found) > 1 else ""
    raise UserError(
        f"teacher {teacher.name!r}: the vector of text {name} (row {int(rows[found[0]])}: {words!r}){more}", rule, fix
    )


__all__ = ["Item", "Kind", "checked", "embed_part", "text_keys"]
