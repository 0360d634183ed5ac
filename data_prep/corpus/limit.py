"""`max_documents_per_file`, applied after copies are known: the first documents of each file that are no copies.

A text that falls to the limit is no longer there for others to be copies of: the next copy of it, if its own file has
room, takes its place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def apply_limit(folders: list[Path], pieces: list[list[int]], limit: int) -> None:
    """Write `within.npy` (bool [rows]: kept) into each folder of signatures, beside its verdicts.

    Args:
        folders: signature folders of the parts, in order.
        pieces: rows of each piece of each part; every piece is one whole file.
        limit: documents kept of a file at most.
    """
    import numpy as np

    verdicts = [np.load(f / "verdict.npy", allow_pickle=False) for f in folders]
    repeated = [np.load(f / "of.npy", allow_pickle=False, mmap_mode="r") for f in folders]
    fallen: set[tuple[int, int]] = set()

    def first(part: int, row: int) -> tuple[int, int]:
        """The text that stays for a copy of a copy."""
        while verdicts[part][row]:
            part, row = map(int, repeated[part][row])
        return part, row

    for number, (folder, sizes) in enumerate(zip(folders, pieces, strict=True)):
        within = np.zeros(len(verdicts[number]), bool)
        start = 0
        for size in sizes:
            room = limit
            for row in range(start, start + size):
                own = not verdicts[number][row]
                of = (number, row) if own else first(number, row)
                if not own and of not in fallen:
                    continue
                if room:
                    within[row] = True
                    room -= 1
                    fallen.discard(of)
                else:
                    fallen.add(of)
            start += size
        _write(folder / "within.npy", within)


def _write(path: Path, values: Any) -> None:
    import numpy as np

    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("wb") as stream:
        np.save(stream, values, allow_pickle=False)
    beside.replace(path)
