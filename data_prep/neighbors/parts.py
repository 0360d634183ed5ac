"""A search in blocks that survive a crash, computed here, in other processes or on other machines.

Every block writes one file named by the digest of all that decides its content (vectors, plan, rows; not the memory
budget, not the number of threads), beside its final place and then moved there. A search that is started again finds
the finished blocks, whoever computed them and under whatever budget.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.fanout import Fanout, Serial, finished, record_of
from data_prep.neighbors.blocks import ROWS, Computer, Inputs, Plan
from data_prep.progress import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from data_prep.embed.vectors import Vectors

_HERE: dict[str, Vectors] = {}
"""Vectors that parts computed in this process find by their digest, instead of in a file."""
_LAST: dict[str, Computer] = {}
"""The computer of the part before: its panels may lie on a GPU."""


def run_here(
    queries: Vectors, corpus: Vectors, plan: Plan, inputs: Inputs, progress: Progress, **settings: Any
) -> dict[str, NDArray[Any]]:
    """All results in memory, nothing on disk; `settings` are those of `Computer`."""
    import numpy as np

    computer = Computer(queries, corpus, plan, inputs, **settings)
    progress.begin("find neighbours", queries.rows, "queries")
    results: dict[str, NDArray[Any]] = {}
    shown = 0.0

    def tell(done: float) -> None:
        nonlocal shown
        progress.advance(int(shown + done) - int(shown))
        shown += done

    for start in range(0, max(1, queries.rows), ROWS):
        stop = min(start + ROWS, queries.rows)
        for name, array in computer.compute(start, stop, tell).items():
            if name not in results:
                results[name] = np.empty((queries.rows, *array.shape[1:]), dtype=array.dtype)
            results[name][start:stop] = array
    return results


def run_in_parts(
    queries: tuple[Vectors, str],
    corpus: tuple[Vectors, str],
    plan: Plan,
    inputs: Inputs,
    progress: Progress,
    *,
    budget_gb: float,
    fanout: Fanout | None,
    scratch: Path,
    block_rows: int = ROWS,
) -> dict[str, NDArray[Any]]:
    """The same through files in `scratch`; results larger than a quarter of the budget stay there, memory-mapped.

    Args:
        queries, corpus: vectors and the digest of their content.
    """
    fanout = fanout or Serial()
    folder = (scratch / "neighbors").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    here = isinstance(fanout, Serial)
    given = _write_inputs(inputs, folder)
    total = queries[0].rows
    parts = []
    for start in range(0, total, block_rows):
        stop = min(start + block_rows, total)
        asked = [queries[1], corpus[1], asdict(plan), given, start, stop]
        name = hashlib.blake2b(json.dumps(asked).encode(), digest_size=12).hexdigest()
        part: dict[str, Any] = {
            "queries": _handle(*queries, folder, here=here),
            "corpus": _handle(*corpus, folder, here=here),
            "plan": asdict(plan),
            "inputs": given,
            "rows": [start, stop],
            "budget_gb": budget_gb,
            "file": str(folder / f"{name}.npz"),
        }
        record = record_of(COMPUTE, part, scratch=scratch, label=LABEL)
        if finished(record) is not None and not Path(part["file"]).exists():
            record.unlink()
        parts.append(part)
    try:
        fanout.map(COMPUTE, parts, scratch=scratch, label=LABEL, progress=progress)
    finally:
        _HERE.clear()
        _LAST.clear()
    return _gather([Path(part["file"]) for part in parts], total, block_rows, budget_gb, folder)


LABEL = "neighbours"
COMPUTE = f"{__name__}:compute"


def compute(
    *,
    queries: dict[str, Any],
    corpus: dict[str, Any],
    plan: dict[str, Any],
    inputs: str | None,
    rows: list[int],
    budget_gb: float,
    file: str,
) -> dict[str, Any]:
    """One part: the results of queries rows[0] … rows[1] into `file`. Returns how many queries were computed."""
    import numpy as np

    if Path(file).exists():  # finished under another budget
        return {"queries": 0}
    asked = json.dumps([queries, corpus, plan, inputs, budget_gb])
    if asked not in _LAST:
        _LAST.clear()
        arrays = dict(np.load(inputs)) if inputs else {}
        settled = Plan(**{**plan, "percentiles": tuple(plan["percentiles"])})
        _LAST[asked] = Computer(_open(queries), _open(corpus), settled, Inputs(**arrays), budget_gb=budget_gb)
    _save(Path(file), _LAST[asked].compute(rows[0], rows[1]))
    return {"queries": rows[1] - rows[0]}


def _save(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Whole or not at all."""
    import os

    import numpy as np

    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    with beside.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)


def _write_inputs(inputs: Inputs, folder: Path) -> str | None:
    """The file of the inputs, named by their digest; None where there are none."""
    import numpy as np

    arrays = inputs.arrays()
    if not arrays:
        return None
    told = hashlib.blake2b(digest_size=12)
    for name, array in sorted(arrays.items()):
        told.update(name.encode() + np.ascontiguousarray(array).tobytes())
    path = folder / f"inputs-{told.hexdigest()}.npz"
    if not path.exists():
        _save(path, arrays)
    return str(path)


def _handle(vectors: Vectors, digest: str, folder: Path, *, here: bool) -> dict[str, Any]:
    """How a part finds vectors: in this process, in the folder where they are stored, or in a copy in scratch."""
    import numpy as np

    from data_prep.embed.store import StoredVectors

    if here:
        _HERE[digest] = vectors
        return {"here": digest}
    if isinstance(vectors, StoredVectors):
        return {"folder": str(vectors.folder.absolute()), "digest": digest}
    path = folder / f"vectors-{digest}.npy"
    if not path.exists():
        beside = path.with_suffix(".part")
        shape = (vectors.rows, vectors.dimension)
        copy = np.lib.format.open_memmap(beside, mode="w+", dtype=np.float32, shape=shape)
        for start in range(0, vectors.rows, 4096):
            stop = min(start + 4096, vectors.rows)
            copy[start:stop] = vectors.read(start, stop)
        copy.flush()
        beside.replace(path)
    return {"file": str(path), "normalised": vectors.normalised}


def _open(handle: dict[str, Any]) -> Vectors:
    import numpy as np

    from data_prep.embed.store import StoredVectors
    from data_prep.embed.vectors import ArrayVectors

    if "here" in handle:
        return _HERE[handle["here"]]
    if "folder" in handle:
        return StoredVectors(Path(handle["folder"]), verify=False)
    return ArrayVectors(np.load(handle["file"], mmap_mode="r"), normalised=handle["normalised"])


def _gather(files: list[Path], rows: int, block_rows: int, budget_gb: float, folder: Path) -> dict[str, NDArray[Any]]:
    """The arrays of all parts, one below the other."""
    import numpy as np

    results: dict[str, NDArray[Any]] = {}
    name_of_all = hashlib.blake2b("".join(file.stem for file in files).encode(), digest_size=12).hexdigest()
    for number, file in enumerate(files):
        start = number * block_rows
        with np.load(file) as arrays:
            for name in arrays.files:
                array = arrays[name]
                if name not in results:
                    shape = (rows, *array.shape[1:])
                    if rows * array[:1].nbytes > budget_gb * 1e9 / 4:
                        path = folder / f"all-{name_of_all}-{name}.npy"
                        results[name] = np.lib.format.open_memmap(path, mode="w+", dtype=array.dtype, shape=shape)
                    else:
                        results[name] = np.empty(shape, dtype=array.dtype)
                results[name][start : start + len(array)] = array
    return results
