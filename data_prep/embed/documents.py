"""All documents of a folder → vectors, in parts that processes or machines share.

Invariant: the vectors do not depend on who computes the parts, nor on how many do: a part is a fixed range of rows, and
looks into the cache as it was when the folder was begun.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from data_prep.embed.store import ROWS_PER_FILE, Kind, Parts, StoredVectors, embed_texts, kind_of, open_cache
from data_prep.embed.teacher import identity, load_teacher
from data_prep.errors import UserError
from data_prep.fanout import Fanout
from data_prep.files import write_atomically
from data_prep.progress import Progress
from data_prep.text_store import TextStore, build_text_store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.embedder import Role, Teacher

Cut = Literal["whole", "first_line"]


def embed_documents(
    documents: Path,
    teacher_folder: Path,
    *,
    role: Role,
    folder: Path,
    fanout: Fanout | None = None,
    scratch: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    text: Cut = "whole",
    rows: NDArray[np.int64] | None = None,
    texts: TextStore | None = None,
    teacher: Teacher | None = None,
    rows_per_file: int = ROWS_PER_FILE,
) -> StoredVectors:
    """Embed the documents of a shard folder into `folder`, one vector a row, in the order of the rows.

    Args:
        documents: a shard folder of kind `documents`.
        teacher_folder: what `fit_teacher` saved; whoever computes a part loads it from there.
        fanout: who computes the parts; None computes here. An endpoint is always asked from here, it has its own
            concurrency.
        scratch: a folder that outlives a crash; None takes one inside `folder`, which goes at the end.
        cache: folder of all teachers' caches; none embeds everything.
        text: the whole text, or its first line (its title).
        rows: only these rows, in this order; None takes all.
        teacher: the one in `teacher_folder`, where it is loaded already; asked where the parts are computed here.
        texts: the text store of `documents`, where there is one already; else it is built in `scratch`.

    Raises:
        UserError: no sound documents or teacher; a vector that is not finite, zero without a reason, or of another
            dimension than the teacher's; a full disk.
    """
    progress = progress or Progress()
    own = scratch is None
    scratch = scratch or folder / ".scratch"
    store = texts or build_text_store(documents, scratch / "texts", progress=progress)
    count = store.rows if rows is None else len(rows)
    told = identity(teacher_folder)
    if fanout is None or fanout.workers <= 1 or told["kind"] == "endpoint":
        items = _items(store, text, range(store.rows) if rows is None else rows.tolist())
        found = embed_texts(
            items,
            teacher or load_teacher(teacher_folder, log=scratch / "requests"),
            role=role,
            folder=folder,
            cache=cache,
            progress=progress,
            total=count,
            rows_per_file=rows_per_file,
        )
    else:
        kind = Kind(
            teacher=told["hash"],
            name=told["name"],
            dimension=told["dimension"],
            normalised=told["normalised"],
            role=role,
            prompt=told["prompts"][role],
        )
        parts = Parts(folder, kind)
        open_cache(folder, kind, cache)  # what the parts may look into is settled here, once
        chosen = None if rows is None else _written(rows, scratch)
        asked: list[dict[str, Any]] = [
            {
                "store": str(store.folder.resolve()),
                "fingerprint": store.fingerprint,
                "teacher_folder": str(teacher_folder.resolve()),
                "kind": asdict(kind),
                "folder": str(folder.resolve()),
                "number": number,
                "start": start,
                "stop": min(start + rows_per_file, count),
                "rows": chosen,
                "text": text,
                "cache": str(cache.resolve()) if cache else None,
                "scratch": str(scratch.resolve()),
            }
            for number, start in enumerate(range(0, count, rows_per_file))
        ]
        function = "data_prep.embed.documents:embed_rows"
        records = fanout.map(function, asked, scratch=scratch, label="embed", progress=progress)
        for number, record in enumerate(records):
            if parts.finished(number, record["asked"]) is None:  # was damaged or removed after it was finished
                records[number] = embed_rows(**asked[number])
        found = parts.finish(records)
    if own:
        shutil.rmtree(scratch, ignore_errors=True)
    return found


def embed_rows(
    *,
    store: str,
    fingerprint: str,
    teacher_folder: str,
    kind: dict[str, Any],
    folder: str,
    number: int,
    start: int,
    stop: int,
    rows: str | None,
    text: Cut,
    cache: str | None,
    scratch: str,
) -> dict[str, Any]:
    """One part of `embed_documents`; returns the record of its file.

    Raises:
        UserError: as `embed_documents`; and where the teacher's files changed since the parts were dealt out.
    """
    import numpy as np

    from data_prep.embed.part import embed_part

    texts, role = TextStore(Path(store)), kind["role"]
    teacher = _loaded(teacher_folder, kind["teacher"], scratch)
    expected = Kind(**kind)
    if kind_of(teacher, role) != expected or texts.fingerprint != fingerprint:
        raise UserError(
            teacher_folder, "the teacher's files or the documents changed during embedding", "run the command again"
        )
    chosen = range(start, stop) if rows is None else np.fromfile(rows, dtype="<i8")[start:stop].tolist()
    return embed_part(
        Parts(Path(folder), expected),
        number,
        list(_items(texts, text, chosen)),
        teacher,
        role=role,
        cache=open_cache(Path(folder), expected, Path(cache) if cache else None),
        first_row=start,
        progress=Progress(),
    )


def _written(rows: NDArray[np.int64], scratch: Path) -> str:
    """The rows in a file that is named by its content."""
    data = rows.astype("<i8").tobytes()
    path = scratch / f"rows-{hashlib.sha256(data).hexdigest()[:24]}.i64"
    if not path.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    return str(path.resolve())


def _items(store: TextStore, text: Cut, rows: Iterable[int]) -> Iterator[tuple[str, str]]:
    for row in rows:
        whole = store.text(row)
        yield store.id(row), whole.partition("\n")[0] if text == "first_line" else whole


@lru_cache(maxsize=1)
def _loaded(folder: str, digest: str, scratch: str) -> Teacher:
    """The teacher, loaded once in a process that computes several parts."""
    is_model = identity(Path(folder))["kind"] == "sentence-transformers"
    return load_teacher(Path(folder), device=_device(Path(scratch)) if is_model else None)


_HELD: list[IO[bytes]] = []
"""Locks of this process's GPU; they end with the process."""


def _device(scratch: Path) -> str | None:
    """A GPU of this machine that no process beside this one took; None where there is at most one, or no free one."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return None
    for number in range(count):
        stream = (scratch / f"gpu-{socket.gethostname()}-{number}.lock").open("wb")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.close()
            continue
        _HELD.append(stream)
        return f"cuda:{number}"
    return f"cuda:{os.getpid() % count}"
