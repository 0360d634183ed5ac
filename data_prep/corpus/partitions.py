"""Records that are sorted on disk: cut by a prefix of their key into files that each fit into memory.

Records are appended block by block and keep their order inside a partition, so a stable sort of each partition in turn
is a stable sort of everything, whatever the number of partitions.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.files import disk_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SORTING = 4
"""Sorting a partition takes about this many times its bytes: the records, the order, the sorted copy, the groups."""


def partition_bits(records: int, record_bytes: int, budget_gb: float) -> int:
    """The number of leading key bits that cut `records` evenly spread records into parts that sort within the budget.

    At most 12 bits (4,096 files).
    """
    parts, bits = records * record_bytes * _SORTING / (budget_gb * 1e9), 0
    while bits < 12 and parts > 1 << bits:
        bits += 1
    return bits


class Partitions:
    """Append records by partition number, read the partitions back one by one.

    Args:
        folder: where the files go; emptied first.
        dtype: NumPy type of one record.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        self.folder, self.dtype = folder, dtype
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def append(self, numbers: NDArray[np.int64], records: NDArray[Any]) -> None:
        """Add records ([n] of `dtype`) to the partitions `numbers` ([n])."""
        import numpy as np

        if not len(records):
            return
        order = np.argsort(numbers, kind="stable")
        present, first = np.unique(numbers[order], return_index=True)
        for number, rows in zip(present.tolist(), np.split(order, first[1:]), strict=True):
            path = self._path(number)
            with disk_errors(path), path.open("ab") as stream:
                stream.write(records[rows].tobytes())

    def read(self, number: int) -> NDArray[Any]:
        """The records of one partition in the order of their appending ([m] of `dtype`)."""
        import numpy as np

        path = self._path(number)
        return np.fromfile(path, self.dtype) if path.exists() else np.empty(0, self.dtype)

    def drop(self, number: int) -> None:
        """Delete a partition that was read."""
        self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}"
