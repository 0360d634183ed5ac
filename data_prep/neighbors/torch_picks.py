"""What `kernels` does, in torch alone: for a GPU, where there is no numba, and for small searches.

The results are the same to the last bit: candidates pass the same kind of threshold and are scored exactly in the same
order of summation. Works on scores of one tile [rows, columns] on any device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from data_prep.neighbors.scoring import EMPTY, exact, keys_of, scores_of

if TYPE_CHECKING:
    import torch

_PAIR_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}


def hide(scores: torch.Tensor, excluded: torch.Tensor, base: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the tile's excluded scores; `excluded` [rows] are corpus rows, `base` the tile's first."""
    local = excluded - base
    rows = ((local >= 0) & (local < scores.shape[1])).nonzero()[:, 0]
    return rows, local[rows]


def count(
    scores: torch.Tensor,
    hidden: tuple[torch.Tensor, torch.Tensor],
    *,
    squares: torch.Tensor | None,
    low: float,
    scale: float,
    counts: torch.Tensor,
) -> None:
    """Count a tile's scores into int32 bins [rows, bins]; with `squares` [rows], |q|², the distances instead."""
    import torch

    values = scores
    if squares is not None:
        values = (squares[:, None] - 2.0 * scores).clamp_(min=0.0)
        # On the CPU torch's float32 roots (by MKL) are not correctly rounded.
        values = values.sqrt_() if values.is_cuda else values.double().sqrt_().float()
    # the same float32 arithmetic as the compiled loop
    bins = (values - low).mul_(scale).int().clamp_(0, counts.shape[1] - 1).long()
    one = torch.ones((1, 1), dtype=counts.dtype, device=counts.device)
    counts.scatter_add_(1, bins, one.expand(bins.shape))
    counts[hidden[0], bins[hidden]] -= 1


def approximate(keys: torch.Tensor, squares: torch.Tensor | None) -> torch.Tensor:
    """The scores in keys on the scale of a tile: inner products, or q·d - |d|²/2."""
    value = scores_of(keys)
    return value if squares is None else ((squares.double() - value.double() ** 2) / 2).float()


def pick(
    scores: torch.Tensor,
    *,
    base: int,
    queries: torch.Tensor,
    rows: torch.Tensor,
    squares: torch.Tensor | None,
    slack: torch.Tensor,
    keys: torch.Tensor,
    floor: torch.Tensor,
) -> None:
    """Merge a tile's scores into the best keys [rows, k] and raise the floor [rows] below which no score can matter.

    Args:
        scores: [rows, columns]; excluded ones are -inf.
        base: the corpus row of the first column.
        queries, rows: the tile's vectors [rows, d] and [columns, d], exactly as they are.
        squares: |q|² for distances, None for inner products.
        slack: [rows] twice the rounding error of a score.
        keys, floor: changed in place.
    """
    import torch

    k = keys.shape[1]
    hits = scores >= floor[:, None]
    if scores.shape[1] > k and int(hits.sum()) > 4 * k * len(scores):
        torch.maximum(floor, scores.topk(k, dim=1).values[:, -1] - slack, out=floor)
        hits = scores >= floor[:, None]
    hits &= scores > -torch.inf
    found = hits.nonzero()
    step = max(1, _PAIR_BYTES[scores.device.type] // (32 * queries.shape[1]))
    for start in range(0, len(found), step):
        own, column = found[start : start + step].unbind(1)
        told = exact(queries[own], rows[column], euclidean=squares is not None)
        _merge(own, keys_of(told, column + base), keys)
    full = keys[:, -1] != EMPTY
    edge = approximate(keys[:, -1], squares) - slack
    torch.maximum(floor, torch.where(full, edge, -torch.inf), out=floor)


def _merge(own: torch.Tensor, fresh: torch.Tensor, keys: torch.Tensor) -> None:
    """Keep the smallest keys of each row among its own and the fresh ones; `own` [m] is the row of each fresh key."""
    import torch

    better = fresh < keys[own, -1]
    own, fresh = own[better], fresh[better]
    if not len(own):
        return
    touched, local = own.unique(return_inverse=True)
    k = keys.shape[1]
    row = torch.cat([torch.arange(len(touched), device=keys.device).repeat_interleave(k), local])
    every = torch.cat([keys[touched].reshape(-1), fresh])
    order = every.argsort()
    order = order[row[order].argsort(stable=True)]
    row, every = row[order], every[order]
    place = torch.arange(len(row), device=keys.device) - torch.searchsorted(row, row)
    kept = place < k
    merged = torch.full((len(touched), k), EMPTY, dtype=torch.int64, device=keys.device)
    merged[row[kept], place[kept]] = every[kept]
    keys[touched] = merged


def mix(value: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser on int64: shifts fill with zeros, products wrap."""

    def right(bits: int) -> torch.Tensor:
        return (value >> bits) & ((1 << (64 - bits)) - 1)

    value = (value ^ right(30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    value = (value ^ right(27)) * (0x94D049BB133111EB - (1 << 64))
    return value ^ right(31)


def draw(
    scores: torch.Tensor,
    *,
    base: int,
    queries: torch.Tensor,
    rows: torch.Tensor,
    euclidean: bool,
    window: tuple[torch.Tensor, ...],
    hashes: torch.Tensor,
    found: torch.Tensor,
    available: torch.Tensor,
) -> None:
    """Merge a tile's rows inside the windows into the lowest hashes [rows, wanted]; see `kernels.draw`."""
    import torch

    low, high, surely_low, surely_high, maybe_low, maybe_high, salts = (bound[:, None] for bound in window)
    inside = (scores >= maybe_low) & (scores <= maybe_high) & (scores > -torch.inf)
    doubtful = (inside & ((scores < surely_low) | (scores > surely_high))).nonzero()
    step = max(1, _PAIR_BYTES[scores.device.type] // (32 * queries.shape[1]))
    for start in range(0, len(doubtful), step):
        own, column = doubtful[start : start + step].unbind(1)
        told = exact(queries[own], rows[column], euclidean=euclidean)
        told = -told if euclidean else told
        inside[own, column] = (told >= low[own, 0]) & (told <= high[own, 0])
    available += inside.sum(dim=1)
    numbers = torch.arange(base, base + scores.shape[1], device=scores.device)
    spread = mix(salts + numbers * (0x9E3779B97F4A7C15 - (1 << 64)))
    spread = torch.where(inside, (spread >> 1) & EMPTY, EMPTY)
    every = torch.cat([hashes, spread], dim=1)
    where = torch.cat([found, numbers.expand(scores.shape)], dim=1)
    lowest, order = every.topk(hashes.shape[1], dim=1, largest=False)
    hashes.copy_(lowest)
    found.copy_(torch.where(lowest == EMPTY, -1, where.gather(1, order)))
