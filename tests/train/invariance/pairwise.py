"""A small set of settings in which every pair of values of any two factors occurs together.

Most defects of settings that meddle with each other need two of them (Kuhn, Wallace & Gallo, 2004, IEEE TSE 30(6)), so
a few dozen cases stand for the thousands of the full product. Greedy, as in AETG (Cohen et al., 1997, IEEE TSE 23(7)):
the next case is the best of some tries, each of which begins with a missing pair and adds one factor after another.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations

Row = dict[str, str]
Pair = tuple[tuple[str, str], tuple[str, str]]
TRIES = 60


def pairs_of(row: Mapping[str, str]) -> set[Pair]:
    """All pairs of (factor, value) in a row."""
    return set(combinations(row.items(), 2))


def all_pairs(factors: Mapping[str, Sequence[str]]) -> set[Pair]:
    """All pairs of (factor, value) that must be covered."""
    return {((one, a), (two, b)) for one, two in combinations(factors, 2) for a in factors[one] for b in factors[two]}


def pairwise(factors: Mapping[str, Sequence[str]], *, seed: int = 0) -> list[Row]:
    """Rows that hold one value of every factor, and together every pair; the same on every machine."""
    rng = random.Random(seed)
    missing = all_pairs(factors)
    rows: list[Row] = []
    while missing:
        ordered = sorted(missing)
        tries = [_try(factors, missing, dict(rng.choice(ordered)), rng) for _ in range(TRIES)]
        best = max(tries, key=lambda row: len(pairs_of(row) & missing))
        missing -= pairs_of(best)
        rows.append(best)
    return rows


def _try(factors: Mapping[str, Sequence[str]], missing: set[Pair], found: Row, rng: random.Random) -> Row:
    """`found` completed so that it covers many missing pairs."""
    rest = [name for name in factors if name not in found]
    rng.shuffle(rest)
    order = {name: number for number, name in enumerate(factors)}
    for name in rest:
        chosen = [((other, value), order[other] < order[name]) for other, value in found.items()]
        gains = {}
        for value in factors[name]:
            new = (name, value)
            gains[value] = sum(((old, new) if before else (new, old)) in missing for old, before in chosen)
        most = max(gains.values())
        found[name] = rng.choice([value for value, gain in gains.items() if gain == most])
    return {name: found[name] for name in factors}
