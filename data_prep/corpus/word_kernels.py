"""The loops over words that numba compiles. Import it inside functions: loading numba takes most of a second."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_prep.compiled import compiled, inlined

_PRIME = np.uint64(0x9E3779B97F4A7C15)
_BASE = np.uint64(0xD6E8FEB86659FD93)


@inlined
def _mix(value: np.uint64) -> np.uint64:
    """Spread a 64-bit value over all its bits (the finaliser of SplitMix64, a bijection)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@compiled
def cut_words(
    codes: NDArray[np.uint32], classes: NDArray[np.uint8]
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64], np.uint64]:
    """Code points → hash, start and end of every word, and the hash of all letters (0 without any)."""
    size = len(codes)
    hashes = np.empty(size, np.uint64)
    starts = np.empty(size, np.int64)
    ends = np.empty(size, np.int64)
    count, inside = 0, False
    word = letters = np.uint64(0)
    for i in range(size):
        code = codes[i]
        kind = classes[code]
        if kind == 3:
            continue
        if kind == 0:
            inside = False
            continue
        value = np.uint64(code) + np.uint64(1)
        letters = (letters ^ value) * _PRIME
        letters ^= letters >> np.uint64(29)
        if kind == 2 or not inside:
            starts[count] = i
            count += 1
            word = np.uint64(0)
        word = (word ^ value) * _PRIME
        word ^= word >> np.uint64(29)
        hashes[count - 1] = _mix(word)
        ends[count - 1] = i + 1
        inside = kind == 1
    return hashes[:count].copy(), starts[:count].copy(), ends[:count].copy(), letters


@compiled
def grams(hashes: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """Hashes of all runs of `size` words, in order (uint64 [words - size + 1], empty for a shorter text)."""
    count = len(hashes) - size + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    out = np.empty(count, np.uint64)
    top = np.uint64(1)
    for _ in range(size - 1):
        top *= _BASE
    rolling = np.uint64(0)
    for i in range(len(hashes)):
        if i >= size:
            rolling -= hashes[i - size] * top
        rolling = rolling * _BASE + hashes[i]
        if i >= size - 1:
            out[i - size + 1] = _mix(rolling)
    return out
