"""Which texts of a corpus repeat an earlier one, exactly or nearly, at any size of the corpus.

Texts are taken in order (part, then row). A text is an exact copy where an earlier one has its `text_key`. Of the
others, a text is a near copy exactly if it shares a band of its signature with an earlier *kept* text and the two
signatures are equal in at least `threshold` of their positions. So nothing is removed through a chain: what is removed
is near to a text that stays. What stays is not near (by signature) to any kept text with which it shares a band, except
that a bucket remembers its first `_REMEMBERED` kept texts only. Pairs at the threshold share a band with probability
`recall` or more. Where the corpus is cut into parts, and how much memory there is, changes nothing.

Tables are cut by hash and sorted part by part on disk; what must be looked up at random is memory-mapped.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.corpus.partitions import Partitions, partition_bits
from data_prep.corpus.signatures import NO_WORDS, NearConfig, Signatures, SignatureWriter
from data_prep.files import disk_errors
from data_prep.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EXACT", "KEPT", "NEAR", "NearConfig", "SignatureWriter", "find_duplicates"]
KEPT, EXACT, NEAR = 0, 1, 2
_REMEMBERED = 500
_BLOCK = 1 << 16


def find_duplicates(folders: list[Path], config: NearConfig, scratch: Path, progress: Progress) -> None:
    """Judge every text of the signature folders; the order of the folders and of their rows is the order of the corpus.

    Writes into every folder `verdict.npy` (uint8 [rows]: 0 kept, 1 exact copy, 2 near copy) and `of.npy` (int64
    [rows, 2]: number of the folder and row of the text that it repeats, -1 where kept). An exact copy repeats the first
    text with its key, which itself may be a near copy of another.

    Args:
        scratch: a folder for tables, 0.4 KB a text plus 0.5 KB a text that has a partner; emptied at the end.

    Raises:
        UserError: signatures are missing, damaged or made with other settings; the disk is full.
    """
    work = scratch / "near"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    parts = [Signatures(folder, config) for folder in folders]
    verdicts = _Verdicts(parts, work)
    progress.begin("exact copies", verdicts.rows, "texts")
    _exact(parts, verdicts, config, work, progress)
    if config.enabled:
        progress.begin("near copies", verdicts.rows, "texts")
        _Buckets(parts, verdicts, config, work, progress).judge()
    verdicts.write()
    shutil.rmtree(work, ignore_errors=True)


class _Verdicts:
    """The verdicts of all texts, numbered through all parts, in memory-mapped files."""

    def __init__(self, parts: list[Signatures], work: Path) -> None:
        import numpy as np

        self.parts = parts
        self.starts = np.cumsum([0, *(part.rows for part in parts)])
        self.rows = int(self.starts[-1])
        self.verdict: NDArray[np.uint8] = new_table(work / "verdict", np.uint8, (self.rows,))
        self.of: NDArray[np.int64] = new_table(work / "of", np.int64, (self.rows,))

    def mark(self, rows: NDArray[np.int64], verdict: int, of: NDArray[np.int64]) -> None:
        """Give texts a verdict and the texts that they repeat."""
        self.verdict[rows], self.of[rows] = verdict, of

    def blocks(self) -> list[tuple[Signatures, int, int, int]]:
        """(part, first row, end row, number of the first row in the corpus) of pieces that fit into memory."""
        pieces = []
        for part, offset in zip(self.parts, self.starts.tolist(), strict=False):
            pieces += [(part, a, min(a + _BLOCK, part.rows), offset + a) for a in range(0, part.rows, _BLOCK)]
        return pieces

    def write(self) -> None:
        """Write `verdict.npy` and `of.npy` beside every part's signatures, atomically."""
        import numpy as np

        for part, offset in zip(self.parts, self.starts.tolist(), strict=False):
            verdict = np.array(self.verdict[offset : offset + part.rows])
            of = np.array(self.of[offset : offset + part.rows])
            which = np.searchsorted(self.starts, of, side="right") - 1
            pairs = np.stack([which, of - self.starts[which]], axis=1)
            pairs[verdict == KEPT] = -1
            for name, values in (("of.npy", pairs), ("verdict.npy", verdict)):
                beside = part.folder / f".{name}.tmp"
                with disk_errors(beside), beside.open("wb") as stream:
                    np.save(stream, values, allow_pickle=False)
                beside.replace(part.folder / name)


def new_table(path: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """A memory-mapped table of zeros; a plain array where it is empty."""
    import numpy as np

    if not math.prod(shape):
        return np.zeros(shape, dtype)
    with disk_errors(path):
        return np.memmap(path, dtype, "w+", shape=shape)


def _groups(values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(first index, size) of every run of equal values in a sorted array."""
    import numpy as np

    first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])) if len(values) else np.empty(0, int)
    return first, np.diff(np.append(first, len(values)))


def _exact(parts: list[Signatures], verdicts: _Verdicts, config: NearConfig, work: Path, progress: Progress) -> None:
    import numpy as np

    record = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])
    bits = partition_bits(verdicts.rows, record.itemsize, config.memory_gb)
    table = Partitions(work / "keys", record)
    for part, start, end, offset in verdicts.blocks():
        records = np.empty(end - start, record)
        keys = part.keys[start:end]
        records["high"], records["low"] = keys[:, 0], keys[:, 1]
        records["row"] = np.arange(offset, offset + end - start)
        table.append(prefix(records["high"], bits), records)
    for number in range(1 << bits):
        records = table.read(number)
        records = records[np.lexsort((records["low"], records["high"]))]  # stable: rows stay in order
        first, size = _groups(records[["high", "low"]])
        of = np.repeat(records["row"][first], size)
        copies = records["row"] != of
        verdicts.mark(records["row"][copies], EXACT, of[copies])
        table.drop(number)
        progress.advance(len(records))


def prefix(hashes: NDArray[np.uint64], bits: int) -> NDArray[np.int64]:
    """The leading bits of hashes, as partition numbers."""
    import numpy as np

    return (hashes >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(hashes), np.int64)


class _Buckets:
    """Texts that share a band, and the pass that keeps the first of those that are near."""

    def __init__(
        self, parts: list[Signatures], verdicts: _Verdicts, config: NearConfig, work: Path, progress: Progress
    ) -> None:
        import numpy as np

        self.parts, self.verdicts, self.config, self.work, self.progress = parts, verdicts, config, work, progress
        self.count, self.memberships = 0, 0
        # a row of the last pass holds its memberships (sorted) and its signature
        row_bytes = 64 * config.bands()[0] + 8 * config.permutations
        self.rows_at_once = max(1, int(config.memory_gb * 1e9 / row_bytes))
        self.members = Partitions(work / "members", np.dtype([("row", "<i8"), ("bucket", "<i8")]))

    def judge(self) -> None:
        """Mark near copies."""
        self._group()
        if self.count:
            self._keep_first()

    def _group(self) -> None:
        """Write which text is in which bucket, for buckets of two texts or more, by ranges of rows."""
        import numpy as np

        from data_prep.corpus.near_kernels import band_hashes

        bands, rows = self.config.bands()
        record = np.dtype([("hash", "<u8"), ("row", "<i8")])
        bits = partition_bits(self.verdicts.rows * bands, record.itemsize, self.config.memory_gb)
        table = Partitions(self.work / "bands", record)
        for part, start, end, offset in self.verdicts.blocks():
            values = np.array(part.values[start:end])
            chosen = np.flatnonzero((self.verdicts.verdict[offset : offset + end - start] == KEPT) & _has_words(values))
            records = np.empty(len(chosen) * bands, record)
            records["hash"] = band_hashes(values[chosen], bands, rows).ravel()
            records["row"] = np.repeat(chosen + offset, bands)
            table.append(prefix(records["hash"], bits), records)
            self.progress.advance((end - start) // 2)
        with (self.work / "sizes").open("wb") as sizes:
            for number in range(1 << bits):
                records = table.read(number)
                records = records[np.argsort(records["hash"], kind="stable")]
                size = _groups(records["hash"])[1]
                shared = size > 1
                names = np.cumsum(shared) - 1 + self.count
                inside = np.repeat(shared, size)
                member = np.empty(int(inside.sum()), self.members.dtype)
                member["row"], member["bucket"] = records["row"][inside], np.repeat(names, size)[inside]
                self.members.append(member["row"] // self.rows_at_once, member)
                with disk_errors(self.work / "sizes"):
                    np.minimum(size[shared], _REMEMBERED).astype(np.int64).tofile(sizes)
                self.count += int(shared.sum())
                self.memberships += len(member)
                table.drop(number)

    def _keep_first(self) -> None:
        import numpy as np

        from data_prep.corpus.near_kernels import keep_first

        starts = new_table(self.work / "starts", np.int64, (self.count + 1,))
        np.cumsum(np.memmap(self.work / "sizes", np.int64, "r"), out=starts[1:])
        used = new_table(self.work / "used", np.int32, (self.count,))
        slots = new_table(self.work / "slots", np.int64, (int(starts[-1]),))
        most = min(self.memberships, self.verdicts.rows)
        kept_rows = new_table(self.work / "kept_rows", np.int64, (most,))
        kept_signatures = new_table(self.work / "kept", np.uint32, (most, self.config.permutations))
        kept = 0
        for number in range(-(-self.verdicts.rows // self.rows_at_once)):
            member = self.members.read(number)
            member = member[np.argsort(member["row"], kind="stable")]
            first = _groups(member["row"])[0]
            rows = member["row"][first]
            kept, repeats = keep_first(
                rows,
                self._signatures(rows),
                np.append(first, len(member)),
                np.ascontiguousarray(member["bucket"]),
                np.asarray(starts),
                np.asarray(used),
                np.asarray(slots),
                np.asarray(kept_rows),
                np.asarray(kept_signatures),
                kept,
                math.ceil(self.config.threshold * self.config.permutations - 1e-9),
            )
            near = repeats >= 0
            self.verdicts.mark(rows[near], NEAR, repeats[near])
            self.members.drop(number)
            self.progress.advance(min(self.rows_at_once, self.verdicts.rows - number * self.rows_at_once) // 2)

    def _signatures(self, rows: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Signatures of ascending row numbers."""
        import numpy as np

        out = np.empty((len(rows), self.config.permutations), np.uint32)
        cuts = np.searchsorted(rows, self.verdicts.starts)
        for part, offset, a, b in zip(self.parts, self.verdicts.starts, cuts[:-1], cuts[1:], strict=False):
            out[a:b] = part.values[rows[a:b] - offset]
        return out


def _has_words(values: NDArray[np.uint32]) -> NDArray[np.bool_]:
    import numpy as np

    return np.asarray(values[:, 0] != NO_WORDS)
