"""The loops of decontamination that numba compiles. Import it inside functions.

Nothing compiled in another file is called here: numba's cache of compiled code would not notice that it changed.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from data_prep.compiled import compiled, inlined

U64: TypeAlias = NDArray[np.uint64]
I64: TypeAlias = NDArray[np.int64]
I32: TypeAlias = NDArray[np.int32]
B1: TypeAlias = NDArray[np.bool_]


@compiled
def build_table(keys: U64) -> tuple[U64, I32]:
    """An open-addressing table of distinct hashes: slots with the hash, and its number in `keys` (-1: free)."""
    size = 16
    while size < 2 * len(keys):
        size *= 2
    slots = np.zeros(size, np.uint64)
    numbers = np.full(size, -1, np.int32)
    for number in range(len(keys)):
        place = np.int64(keys[number] & np.uint64(size - 1))
        while numbers[place] >= 0:
            place = (place + 1) & (size - 1)
        slots[place], numbers[place] = keys[number], number
    return slots, numbers


@inlined
def look_up(slots: U64, numbers: I32, key: np.uint64) -> int:
    """The number of a hash in a table, -1 where it is not there."""
    mask = len(slots) - 1
    place = np.int64(key & np.uint64(mask))
    while numbers[place] >= 0:
        if slots[place] == key:
            return numbers[place]
        place = (place + 1) & mask
    return -1


@compiled
def covered_text(
    text: U64,
    runs: U64,
    size: int,
    number: int,
    slots: U64,
    numbers: I32,
    posting_starts: I64,
    postings: I32,
    places: I32,
    words: U64,
    starts: I64,
    forgotten: B1,
    seen: I64,
    counts: I32,
    covered: I64,
    first_at: I64,
    end_at: I64,
) -> tuple[int, int, int, int]:
    """The evaluation text of which the largest share of words stands in runs of `size` words that the text holds too.

    Args:
        text, runs: hashes of the text's words, and of its runs of `size` words.
        number: a number that no call before had, above 0.
        forgotten: evaluation texts that are passed over.
        seen, counts, first_at, end_at: scratch per evaluation text; covered: scratch per word of them.

    Returns:
        (evaluation text or -1, its words covered, first word, end word of the longest stretch in the text).
    """
    best, best_count = -1, 0
    for i in range(len(runs)):
        entry = look_up(slots, numbers, runs[i])
        if entry < 0:
            continue
        for q in range(posting_starts[entry], posting_starts[entry + 1]):
            e = postings[q]
            if forgotten[e]:
                continue
            at = starts[e] + places[q]
            same = True
            for k in range(size):
                same &= words[at + k] == text[i + k]
            if not same:  # two runs with one hash
                continue
            if seen[e] != number:
                seen[e], counts[e], first_at[e], end_at[e] = number, 0, i, i
            for k in range(at, at + size):
                counts[e] += covered[k] != number
                covered[k] = number
            if i + size - 1 == end_at[e] or end_at[e] == first_at[e]:
                end_at[e] = i + size
            share, best_share = 0.0, -1.0
            share = counts[e] / (starts[e + 1] - starts[e])
            if best >= 0:
                best_share = best_count / (starts[best + 1] - starts[best])
            if share > best_share:
                best, best_count = e, counts[e]
    if best < 0:
        return -1, 0, 0, 0
    return best, best_count, first_at[best], end_at[best]


@compiled
def best_match(pattern: U64, text: U64, low: int, high: int, whole: bool) -> tuple[int, int, int]:
    """Fewest word edits between a pattern and a stretch of `text[low:high]` (all of it where `whole`).

    Returns:
        (edits, first word, end word) of the best stretch, the earliest end among equals.
    """
    m = len(pattern)
    cost = np.arange(m + 1)
    begin = np.full(m + 1, low)
    best, best_begin, best_end = m + 1, low, low
    for j in range(low, high):
        diagonal, diagonal_begin = cost[0], begin[0]
        if whole:
            cost[0] += 1
        else:
            begin[0] = j + 1
        for i in range(1, m + 1):
            old, old_begin = cost[i], begin[i]
            value, start = diagonal, diagonal_begin
            if pattern[i - 1] != text[j]:
                value += 1
                if old + 1 < value:
                    value, start = old + 1, old_begin
                if cost[i - 1] + 1 < value:
                    value, start = cost[i - 1] + 1, begin[i - 1]
            cost[i], begin[i] = value, start
            diagonal, diagonal_begin = old, old_begin
        if cost[m] < best and (not whole or j == high - 1):
            best, best_begin, best_end = cost[m], begin[m], j + 1
    return best, best_begin, best_end


@compiled
def near_text(
    text: U64,
    pairs: U64,
    number: int,
    slots: U64,
    numbers: I32,
    posting_starts: I64,
    postings: I32,
    words: U64,
    starts: I64,
    forgotten: B1,
    edits: I32,
    edits_inside: I32,
    need: I32,
    seen: I64,
    counts: I32,
) -> tuple[int, int, int, int]:
    """The evaluation text that equals the text, or a stretch of it, but for its allowed edits, by the share of edits.

    A stretch with at most k edits keeps all but 2 k of the pattern's pairs of neighbouring words. The table holds, for
    every pattern, pairs of which at least `need` must stand in a stretch of m + k words; windows of twice that length,
    laid twice with half an overlap, hold each such stretch whole, so that counting pairs misses nothing.

    Args:
        text, pairs: hashes of the text's words, and of its pairs of neighbouring words.
        number: a number that no call before had, above 0.
        forgotten: evaluation texts that are passed over.
        edits: per evaluation text, how many are allowed where it is compared with the whole text; `edits_inside`, with
            a stretch of a longer one (-1: never).
        seen, counts: scratch, [2, evaluation texts].

    Returns:
        (evaluation text or -1, edits, first word, end word).
    """
    found, found_edits, found_first, found_end = -1, 0, 0, 0
    found_share = 2.0
    total = len(text)
    for p in range(len(pairs)):
        entry = look_up(slots, numbers, pairs[p])
        if entry < 0:
            continue
        for q in range(posting_starts[entry], posting_starts[entry + 1]):
            e = postings[q]
            if forgotten[e]:
                continue
            m = starts[e + 1] - starts[e]
            reach = m + edits[e]
            whole = total <= reach and edits_inside[e] < edits[e]
            allowed = edits[e] if whole else edits_inside[e]
            if allowed < 0:
                continue
            for half in range(2):
                block = (p + half * reach) // (2 * reach)
                stamp = (number << 32) + block
                if seen[half, e] != stamp:
                    seen[half, e] = stamp
                    counts[half, e] = 0
                counts[half, e] += 1
                if counts[half, e] != need[e]:
                    continue
                low = max(0, 2 * reach * block - half * reach)
                high = min(total, 2 * reach * (block + 1) - half * reach + 1)
                if whole:
                    low, high = 0, total
                cost, first, end = best_match(words[starts[e] : starts[e + 1]], text, low, high, whole)
                if cost <= allowed and cost / m < found_share:
                    found, found_edits, found_first, found_end = e, cost, first, end
                    found_share = cost / m
    return found, found_edits, found_first, found_end
