"""The loops of near-duplicate search that numba compiles. Import it inside functions.

Nothing compiled in another file is called here: numba's cache of compiled code would not notice that it changed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_prep.compiled import compiled, inlined


@inlined
def _mix(value: np.uint64) -> np.uint64:
    """Spread a 64-bit value over all its bits (the finaliser of SplitMix64, a bijection)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@compiled
def band_hashes(signatures: NDArray[np.uint32], bands: int, rows: int) -> NDArray[np.uint64]:
    """The hash of every band of every signature, uint64 [n, bands]; the same values in two bands differ."""
    out = np.empty((len(signatures), bands), np.uint64)
    for i in range(len(signatures)):
        for band in range(bands):
            value = np.uint64(band + 1)
            for k in range(band * rows, (band + 1) * rows):
                value = _mix(value ^ np.uint64(signatures[i, k])) + np.uint64(k)
            out[i, band] = _mix(value)
    return out


@compiled
def keep_first(
    rows: NDArray[np.int64],
    signatures: NDArray[np.uint32],
    member_starts: NDArray[np.int64],
    member_buckets: NDArray[np.int64],
    bucket_starts: NDArray[np.int64],
    bucket_used: NDArray[np.int32],
    slots: NDArray[np.int64],
    kept_rows: NDArray[np.int64],
    kept_signatures: NDArray[np.uint32],
    kept: int,
    need: int,
) -> tuple[int, NDArray[np.int64]]:
    """Go through rows in order; a row that is near to a kept row of one of its buckets repeats it, else it is kept.

    Args:
        rows, signatures: row numbers ascending [n] and their signatures [n, permutations].
        member_starts, member_buckets: row i is in the buckets `member_buckets[member_starts[i]:member_starts[i + 1]]`.
        bucket_starts, bucket_used, slots: bucket b remembers the kept rows `slots[bucket_starts[b]:][:bucket_used[b]]`
            (positions in `kept_rows`), as many as it has slots up to `bucket_starts[b + 1]`. Updated.
        kept_rows, kept_signatures, kept: what was kept so far, `kept` of them. Updated.
        need: equal positions of two signatures that make them near.

    Returns:
        The new `kept`, and for every row the row that it repeats, -1 where it is kept (int64 [n]): the most similar
        kept row, the earliest among equals.
    """
    permutations = signatures.shape[1]
    repeats = np.full(len(rows), -1, np.int64)
    for i in range(len(rows)):
        best, best_equal = -1, need - 1
        for m in range(member_starts[i], member_starts[i + 1]):
            bucket = member_buckets[m]
            for s in range(bucket_starts[bucket], bucket_starts[bucket] + bucket_used[bucket]):
                other = slots[s]
                equal = 0
                for k in range(permutations):
                    equal += signatures[i, k] == kept_signatures[other, k]
                if equal > best_equal or (equal == best_equal and best >= 0 and other < best):
                    best, best_equal = other, equal
        if best >= 0:
            repeats[i] = kept_rows[best]
            continue
        kept_rows[kept] = rows[i]
        kept_signatures[kept] = signatures[i]
        for m in range(member_starts[i], member_starts[i + 1]):
            bucket = member_buckets[m]
            end = bucket_starts[bucket] + bucket_used[bucket]
            if end < bucket_starts[bucket + 1]:
                slots[end] = kept
                bucket_used[bucket] += 1
        kept += 1
    return kept, repeats
