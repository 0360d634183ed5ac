"""How many rows of each source an epoch takes: shares, caps and temperature.

A blend gives shares to stages (`pairs = 1.0`) and, where wanted, to sources inside a stage's shards (`"pairs:legal_*" =
0.5`, a pattern on the column `source`). The most specific entry wins: a name before a pattern, a pattern with more
letters before one with fewer, any of them before the stage. Sources that no entry names drop out; a share of 0 drops
what it names.

Rows of an epoch, for a source of n rows: n · with a temperature T, c · n^(1/T) with the largest c that lets no source
repeat a row · times its share · at most the cap · at least one. Each epoch takes other rows, as far as there are any.

A stage without entries of its own is one source, as long as neither cap nor temperature is set; with either, and in
every stage that has such entries, each value of the column `source` is one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from data_prep.errors import UserError

STAGES = ("mine", "pairs", "synth")
PRESETS: dict[str, dict[str, float]] = {"paper": {"synth": 1.0, "mine": 0.3}}
"""`paper`: all synthetic pairs and 30 % of the mined ones (arXiv 2402.03053)."""
MOST_SOURCES = 256
"""More sources than this in one blend are file names or ids, not sources."""
_WILD = "*?["


@dataclass(frozen=True)
class Portion:
    """What one source gives to every epoch.

    Attributes:
        stage, source: the shards, and the value of their column `source`; None: all of them.
        rows: that there are. share: of them that an epoch takes. rows_per_epoch: the same, counted.
    """

    stage: str
    source: str | None
    rows: int
    share: float
    rows_per_epoch: int

    @property
    def name(self) -> str:
        """`stage` or `stage:source`."""
        return self.stage if self.source is None else f"{self.stage}:{self.source}"


def check_blend(blend: Mapping[str, float]) -> None:
    """Raise `ValueError` with value, rule and fix for a key or share that no blend can have."""
    for key, share in blend.items():
        stage, colon, pattern = key.partition(":")
        if stage not in STAGES or (colon and not pattern):
            near = difflib.get_close_matches(stage, STAGES, 1)
            raise ValueError(
                f"finetune.blend.{key}: must be 'pairs', 'mine' or 'synth', or one of them with a source, such as "
                f"'pairs:legal_*'. Fix: {f'did you mean {near[0]!r}?' if near else 'name a stage'}"
            )
        if not colon and not share:
            raise ValueError(f"finetune.blend.{key} = 0: must be above 0. Fix: leave it out of the blend")


def stages_of(blend: Mapping[str, float]) -> set[str]:
    """The stages that a blend takes anything from."""
    return {key.partition(":")[0] for key in blend}


def is_split(stage: str, blend: Mapping[str, float], *, cap: int | None, temperature: float | None) -> bool:
    """Whether a stage counts as several sources."""
    return cap is not None or temperature is not None or any(key.startswith(f"{stage}:") for key in blend)


def plan_blend(
    blend: Mapping[str, float],
    found: Mapping[str, int | Mapping[str, int]],
    *,
    cap: int | None = None,
    temperature: float | None = None,
) -> list[Portion]:
    """What every source gives, by stage and source in alphabetical order.

    Args:
        found: rows of each stage that is there, or of each of its sources where it counts as several (`is_split`).
        cap: most rows of a source in an epoch. temperature: at least 1; 1 leaves the shares as they are.

    Raises:
        UserError: an entry that names no source, too many sources, or nothing left.
    """
    wanted: list[tuple[str, str | None, int, float]] = []
    for stage in sorted(stages_of(blend) & found.keys()):
        rows = found[stage]
        if isinstance(rows, int):
            wanted.append((stage, None, rows, blend[stage]))
            continue
        _check_named(stage, blend, rows)
        wanted += [(stage, source, rows[source], _share(stage, source, blend)) for source in sorted(rows)]
    wanted = [w for w in wanted if w[2] and w[3]]
    if not wanted:
        raise UserError(
            f"finetune.blend = {sorted(blend)}",
            f"none of these sources has pairs (there are: {_told(found) or 'none'})",
            "switch on [mine], [synth] or [pairs], or name an existing source",
        )
    if len(wanted) > MOST_SOURCES:
        raise UserError(
            f"finetune.blend: {len(wanted)} sources", f"must be at most {MOST_SOURCES} in one blend",
            "give the rows fewer, larger sources, or name those to take, e.g. \"pairs:legal_*\" = 1.0",
        )  # fmt: skip
    return _portions(wanted, cap=cap, temperature=temperature)


def _portions(
    wanted: Sequence[tuple[str, str | None, int, float]], *, cap: int | None, temperature: float | None
) -> list[Portion]:
    power = 1 / (temperature or 1.0)
    scale = min(rows ** (1 - power) for _, _, rows, _ in wanted)
    portions = []
    for stage, source, rows, share in wanted:
        plain = count = max(1, round(rows * share))
        if power != 1:
            taken = min(float(rows), scale * rows**power) * share
            count = max(1, round(round(taken, 6)))  # pow may differ in its last digits between machines
        if cap is not None:
            count = min(count, cap)
        portions.append(Portion(stage, source, rows, share if count == plain else count / rows, count))
    return portions


def _share(stage: str, source: str, blend: Mapping[str, float]) -> float:
    """The share of the most specific entry that names a source; 0 where none does."""
    patterns = [key.partition(":")[2] for key in blend if key.startswith(f"{stage}:")]
    matching = [p for p in patterns if _names(p, source)]
    if not matching:
        return blend.get(stage, 0.0)
    best = max(sorted(matching), key=lambda p: (p == source, sum(c not in _WILD for c in p)))
    return blend[f"{stage}:{best}"]


def _names(pattern: str, source: str) -> bool:
    return pattern == source or fnmatchcase(source, pattern)


def _check_named(stage: str, blend: Mapping[str, float], rows: Mapping[str, int]) -> None:
    """Every entry for a source of the stage must name one."""
    for key in sorted(blend):
        pattern = key.partition(":")[2]
        if not key.startswith(f"{stage}:") or any(_names(pattern, source) for source in rows):
            continue
        near = difflib.get_close_matches(pattern, rows, 1)
        raise UserError(
            f"finetune.blend.{key}", f"names no source of {stage} (there are: {', '.join(sorted(rows)) or 'none'})",
            f"did you mean {near[0]!r}?" if near else "name one of these, or leave the entry out",
        )  # fmt: skip


def _told(found: Mapping[str, int | Mapping[str, int]]) -> str:
    names = [
        name
        for stage, rows in sorted(found.items())
        for name in ([stage] if isinstance(rows, int) else [f"{stage}:{source}" for source in sorted(rows)])
    ]
    return str(names) if names else ""


def blend_facts(portions: Iterable[Portion]) -> list[dict[str, Any]]:
    """The blend as JSON values: source, rows, rows_per_epoch, and their shares of the source and of the epoch."""
    portions = list(portions)
    total = sum(p.rows_per_epoch for p in portions)
    return [
        {
            "source": p.name,
            "rows": p.rows,
            "rows_per_epoch": p.rows_per_epoch,
            "share_of_source": p.rows_per_epoch / p.rows,
            "share_of_epoch": p.rows_per_epoch / total,
        }
        for p in portions
    ]


def blend_counts(facts: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The blend as counts of a stage: pairs of an epoch, in all and by source."""
    counts = {f"epoch_pairs of {f['source']}": int(f["rows_per_epoch"]) for f in facts}
    return {"epoch_pairs": sum(counts.values())} | counts


def blend_lines(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The blend as a table of plain lines."""
    rows = [("source", "rows", "an epoch takes", "of the source", "of the epoch")]
    rows += [
        (
            str(f["source"]),
            f"{f['rows']:,}",
            f"{f['rows_per_epoch']:,}",
            f"{f['share_of_source']:.1%}",
            f"{f['share_of_epoch']:.1%}",
        )
        for f in facts
    ]
    total = sum(f["rows_per_epoch"] for f in facts)
    rows.append(("together", f"{sum(f['rows'] for f in facts):,}", f"{total:,}", "", "100.0%"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
