"""The loops over blocks of scores that numba compiles: count, pick, draw, and score again in float64.

Imported only where it is needed: numba takes a second to load. `torch_picks` does the same without it. All loops run
outside Python's lock, one thread a block of rows.

A key holds a score and its corpus row in 64 bits such that ascending keys mean: higher score first, equal scores by
the lower row. A distance enters as a negative score.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data_prep.compiled import compiled

LANES = 128
"""Partial sums of a float64 product: element i goes to sum i mod 128, then the sums are folded in halves. The order is
part of the result: `scoring.py` adds in the same one."""
_STRIP = 512
"""Scores of a row that are looked at together: a loop over a short slice is compiled to vector instructions."""
EMPTY = np.int64(np.iinfo(np.int64).max)


@compiled
def exact(query: Any, row: Any, euclidean: Any, lanes: Any) -> Any:
    """The inner product, or minus the distance, of two float32 vectors: in float64, rounded once to float32."""
    for i in range(LANES):
        lanes[i] = 0.0
    start = 0
    if not euclidean:
        while start + 2 * LANES <= query.shape[0]:  # two at a time: half as many loads and stores of the sums
            for i in range(LANES):
                first = lanes[i] + np.float64(query[start + i]) * np.float64(row[start + i])
                second = np.float64(query[start + LANES + i]) * np.float64(row[start + LANES + i])
                lanes[i] = first + second
            start += 2 * LANES
    while start < query.shape[0]:
        a = query[start : start + LANES]
        b = row[start : start + LANES]
        if euclidean:
            for i in range(a.shape[0]):
                gap = np.float64(a[i]) - np.float64(b[i])
                lanes[i] += gap * gap
        else:
            for i in range(a.shape[0]):
                lanes[i] += np.float64(a[i]) * np.float64(b[i])
        start += LANES
    half = LANES // 2
    while half > 0:
        for i in range(half):
            lanes[i] += lanes[i + half]
        half //= 2
    total = -np.sqrt(lanes[0]) if euclidean else lanes[0]
    return np.float32(total) + np.float32(0.0)  # no -0.0: it would lose ties against 0.0


@compiled
def key_of(score: Any, row: Any) -> Any:
    """The key of a float32 score and a corpus row below 2^32."""
    bits = np.int64(np.float32(score).view(np.int32))
    if bits < 0:
        bits ^= np.int64(0x7FFFFFFF)
    return (~bits << np.int64(32)) | np.int64(row)


@compiled
def score_of(key: Any) -> Any:
    """The float32 score in a key."""
    bits = ~(key >> np.int64(32))
    if bits < 0:
        bits ^= np.int64(0x7FFFFFFF)
    return np.int32(bits).view(np.float32)


@compiled
def _edge(values: Any, k: Any) -> Any:
    """At most the k-th largest of float32 values, and at least the one a sixteenth of k further down; spoils them.

    Halves the range and counts: more steps than a selection needs, but each is vector instructions.
    """
    bits = values.view(np.int32)
    for j in range(bits.shape[0]):  # integers of the same order
        bits[j] ^= (bits[j] >> np.int32(31)) & np.int32(0x7FFFFFFF)
    low = high = bits[0]
    for j in range(bits.shape[0]):
        low, high = min(low, bits[j]), max(high, bits[j])
    a, b = np.int64(low), np.int64(high) + 1  # k or more are at least a, fewer than k are at least b
    while b - a > 1:
        middle = np.int32((a + b) // 2)
        above = np.int32(0)
        for j in range(bits.shape[0]):
            above += np.int32(bits[j] >= middle)
        if above < k:
            b = np.int64(middle)
            continue
        a = np.int64(middle)
        if above <= k + k // 16:
            break
    bits[0] = np.int32(a)
    bits[0] ^= (bits[0] >> np.int32(31)) & np.int32(0x7FFFFFFF)
    return values[0]


@compiled
def select(values: Any, count: Any, k: Any) -> Any:
    """The k-th largest of the first `count` values, which are reordered."""
    left, right, place = 0, count - 1, k - 1
    while left < right:
        pivot = values[(left + right) // 2]
        i, j = left, right
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if place <= j:
            right = j
        elif place >= i:
            left = i
        else:
            break
    return values[place]


@compiled
def _count(part: Any, hidden: Any, euclidean: Any, square: Any, low: Any, scale: Any, bins: Any, places: Any) -> None:
    """Count a strip of scores into the bins of its row, all but the one at `hidden`.

    For euclidean the scores are q·d - |d|²/2 and `square` is |q|²: the distance is counted.
    """
    last, zero = np.float32(bins.shape[0] - 1), np.float32(0.0)
    if euclidean:
        for j in range(part.shape[0]):
            value = np.sqrt(max(square - np.float32(2.0) * part[j], zero))
            places[j] = np.uint32(np.int32(min(max((value - low) * scale, zero), last)))
    else:
        for j in range(part.shape[0]):
            places[j] = np.uint32(np.int32(min(max((part[j] - low) * scale, zero), last)))
    for j in range(part.shape[0]):
        bins[places[j]] += np.uint32(1)
    if 0 <= hidden < part.shape[0]:
        bins[places[hidden]] -= np.uint32(1)


@compiled
def _approximate(key: Any, square: Any, euclidean: Any) -> Any:
    """A key's score on the scale of the blocks: the inner product, or q·d - |d|²/2."""
    value = np.float64(score_of(key))
    return np.float32((square - value * value) / 2) if euclidean else np.float32(value)


@compiled
def _raise_floor(i: Any, state: Any, euclidean: Any, scratch: Any) -> None:
    """Drop what is waiting in row i and cannot be among its k best any more."""
    keys, filled, values, places, waiting, older, floor, slack, squares, _ = state
    k, n = keys.shape[1], waiting[i]
    have = filled[i] + n
    if have < k:
        return
    for j in range(filled[i]):
        scratch[j] = _approximate(keys[i, j], squares[i], euclidean)
    scratch[filled[i] : have] = values[i, :n]
    edge = _edge(scratch[:have], k) - slack[i]
    if edge > floor[i]:
        floor[i] = edge
    kept = before = 0
    for j in range(n):
        if values[i, j] >= floor[i]:
            values[i, kept] = values[i, j]
            places[i, kept] = places[i, j]
            kept += 1
            before += j < older[i]
    waiting[i], older[i] = kept, before


@compiled
def _settle(
    i: Any, state: Any, base: Any, queries: Any, panel: Any, dimension: Any, euclidean: Any, lanes: Any, work: Any
) -> None:
    """Score those of row i that wait and are of this panel exactly, and put them among its k best."""
    keys, filled, _, places, waiting, older, floor, slack, squares, _ = state
    fresh, merged = work
    k, have, worst = keys.shape[1], filled[i], keys[i, keys.shape[1] - 1]
    new = 0
    for j in range(older[i], waiting[i]):
        score = exact(queries[i, :dimension], panel[places[i, j] - base, :dimension], euclidean, lanes)
        key = key_of(score, places[i, j])
        if key < worst:
            fresh[new] = key
            new += 1
    waiting[i] = older[i]
    if new == 0:
        return
    fresh[:new].sort()
    a = b = out = 0
    while out < k and (a < have or b < new):
        if b >= new or (a < have and keys[i, a] < fresh[b]):
            merged[out] = keys[i, a]
            a += 1
        else:
            merged[out] = fresh[b]
            b += 1
        out += 1
    keys[i, :out] = merged[:out]
    filled[i] = out
    if out == k:
        edge = _approximate(keys[i, k - 1], squares[i], euclidean) - slack[i]
        if edge > floor[i]:
            floor[i] = edge


@compiled
def pick(
    scores: Any,
    rows: Any,
    columns: Any,
    offset: Any,
    base: Any,
    queries: Any,
    panel: Any,
    dimension: Any,
    euclidean: Any,
    tally: Any,
    state: Any,
) -> None:
    """Count every score [rows, columns], and note those that may belong to the k best of their row.

    What is noted waits with the score it was computed with. Rows with too many near-ties, which only exact scores can
    tell apart, are scored exactly on the way.

    Args:
        scores: float32; column j is row `offset + j` of `panel` and row `base + offset + j` of the corpus.
        queries, panel: the vectors that the scores are of.
        tally: lowest score, bins a unit of score (0: nothing is counted), counts [rows, bins] uint32.
        state: keys [rows, k] of those that are known exactly, ascending; filled [rows], how many; waiting values and
            corpus rows [rows, room]; waiting [rows], how many; older [rows], how many of these are of earlier panels;
            floor [rows]; slack [rows] (twice the rounding error of a score); |q|² [rows]; excluded corpus row [rows].
    """
    keys, _, values, places, waiting, _, floor, _, squares, excluded = state
    low, scale, counts = tally
    room, k = values.shape[1], keys.shape[1]
    scratch = np.empty(k + room, dtype=np.float32)
    work = np.empty(room, dtype=np.int64), np.empty(k, dtype=np.int64)
    lanes = np.empty(LANES, dtype=np.float64)
    bins = np.empty(_STRIP, dtype=np.uint32)
    hits = np.empty(_STRIP, dtype=np.uint8)
    eights = hits.view(np.uint64)
    for i in range(rows):
        hidden = excluded[i] - base - offset
        edge, n = floor[i], waiting[i]
        for first in range(0, columns, _STRIP):
            strip = scores[i, first : min(first + _STRIP, columns)]
            if scale > 0:
                _count(strip, hidden - first, euclidean, squares[i], low, scale, counts[i], bins)
            for j in range(strip.shape[0]):
                hits[j] = strip[j] >= edge
            for j in range(strip.shape[0], _STRIP):
                hits[j] = 0
            for eight in range(_STRIP // 8):
                if eights[eight] == 0:
                    continue
                for j in range(8 * eight, 8 * eight + 8):
                    if hits[j] == 0 or strip[j] < edge or first + j == hidden:
                        continue
                    values[i, n] = strip[j]
                    places[i, n] = base + offset + first + j
                    n += 1
                    if n < room:
                        continue
                    waiting[i] = n
                    _raise_floor(i, state, euclidean, scratch)
                    if 4 * waiting[i] > 3 * room:
                        _settle(i, state, base, queries, panel, dimension, euclidean, lanes, work)
                    edge, n = floor[i], waiting[i]
        waiting[i] = n


@compiled
def end_panel(
    rows: Any, base: Any, queries: Any, panel: Any, dimension: Any, euclidean: Any, last: Any, state: Any
) -> None:
    """Make room for the next panel: what waits in most rows goes on waiting. `last`: sort out those that need not."""
    keys, _, values, _, waiting, older, _, _, _, _ = state
    room, k = values.shape[1], keys.shape[1]
    scratch = np.empty(k + room, dtype=np.float32)
    work = np.empty(room, dtype=np.int64), np.empty(k, dtype=np.int64)
    lanes = np.empty(LANES, dtype=np.float64)
    for i in range(rows):
        if last or 4 * waiting[i] > 3 * room:
            _raise_floor(i, state, euclidean, scratch)
        if 4 * waiting[i] > 3 * room:
            _settle(i, state, base, queries, panel, dimension, euclidean, lanes, work)
        older[i] = waiting[i]


@compiled
def pairs(queries: Any, corpus: Any, left: Any, right: Any, euclidean: Any, out: Any) -> Any:
    """out [m] = exact score of query left[m] and corpus row right[m]."""
    lanes = np.empty(LANES, dtype=np.float64)
    for m in range(out.shape[0]):
        out[m] = exact(queries[left[m]], corpus[right[m]], euclidean, lanes)


@compiled
def mix(value: Any) -> Any:
    """splitmix64's finaliser (Steele, Lea, Flood 2014): spreads 64 bits over 64 bits."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@compiled
def draw(
    scores: Any,
    rows: Any,
    columns: Any,
    offset: Any,
    base: Any,
    queries: Any,
    panel: Any,
    dimension: Any,
    euclidean: Any,
    wanted: Any,
    window: Any,
    state: Any,
) -> Any:
    """Keep the `wanted` rows of the lowest hash among those inside the window of their query, and count all of them.

    Args:
        wanted: how many rows a query draws.
        window: low and high [rows] on the scale of results; surely_low, surely_high, maybe_low, maybe_high [rows] on
            the scale of the blocks: between surely and maybe the score is computed exactly; salts [rows] uint64.
        state: hashes and corpus rows [rows, room], drawn [rows], edges [rows] (hashes above are too high), available
            [rows], excluded [rows].
    """
    low, high, surely_low, surely_high, maybe_low, maybe_high, salts = window
    hashes, found, drawn, edges, available, excluded = state
    room = hashes.shape[1]
    lanes = np.empty(LANES, dtype=np.float64)
    scratch = np.empty(room, dtype=np.int64)
    sure = np.empty(_STRIP, dtype=np.int32)
    doubtful = np.empty(_STRIP, dtype=np.int32)
    spread = np.empty(_STRIP, dtype=np.int64)
    for i in range(rows):
        n, edge = drawn[i], edges[i]
        hidden = excluded[i] - base - offset
        a, b, c, d = surely_low[i], surely_high[i], maybe_low[i], maybe_high[i]
        for left in range(0, columns, _STRIP):
            part = scores[i, left : min(left + _STRIP, columns)]
            inside, doubts, early = np.int32(0), np.int32(0), np.int32(0)
            for j in range(part.shape[0]):
                sure[j] = np.int32(part[j] >= a) & np.int32(part[j] <= b)
                doubtful[j] = np.int32(part[j] >= c) & np.int32(part[j] <= d) & (np.int32(1) - sure[j])
                inside += sure[j]
                doubts += doubtful[j]
            if left <= hidden < left + part.shape[0]:
                inside -= sure[hidden - left]
                sure[hidden - left] = doubtful[hidden - left] = 0
            available[i] += inside
            if inside == 0 and doubts == 0:
                continue
            first = np.uint64(base + offset + left)
            for j in range(part.shape[0]):
                value = salts[i] + (first + np.uint64(j)) * np.uint64(0x9E3779B97F4A7C15)
                spread[j] = np.int64(mix(value) >> np.uint64(1))
                early += np.int32(spread[j] <= edge) & sure[j]
            if early == 0 and doubts == 0:
                continue
            for j in range(part.shape[0]):
                if doubtful[j]:
                    told = exact(queries[i, :dimension], panel[offset + left + j, :dimension], euclidean, lanes)
                    told = -told if euclidean else told
                    if told < low[i] or told > high[i]:
                        continue
                    available[i] += 1
                elif not sure[j]:
                    continue
                if spread[j] > edge:
                    continue
                hashes[i, n], found[i, n] = spread[j], base + offset + left + j
                n += 1
                if n < room:
                    continue
                scratch[:n] = -hashes[i, :n]
                edge = -select(scratch, n, wanted)
                kept = 0
                for m in range(n):
                    if hashes[i, m] <= edge:
                        hashes[i, kept], found[i, kept] = hashes[i, m], found[i, m]
                        kept += 1
                n = kept
        drawn[i], edges[i] = n, edge
