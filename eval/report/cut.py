"""What a cut costs: the probe's figures for every depth of the base, as one plot and one table.

Invariant: figures are the probe's; which depth is the recipe's comes from the truncate stage's own record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.report import charts_cut
from eval.report.facts import Stage
from eval.report.parts import make_chart, million
from train.probe import verdict

_TABLE_ROWS = 8


def cut(record: Mapping[str, Any] | None, stages: Sequence[Stage]) -> dict[str, Any] | None:
    """Chart, sentence and table rows of probe.json; None where the run has no probe."""
    if record is None:
        return None
    kept = _kept(stages)
    rows = record["rows"]
    metric = record["metric"]
    svg = charts_cut.depths(
        rows, record.get("cut"), kept=kept, metric=metric, title=f"{metric} after every layer of the base", ident="cut"
    )
    convention = record["convention"]
    note = f"{convention[0].upper()}{convention[1:]}. Bars: how far the layer turns a token's state (1 − cosine)."
    shown = [
        _row(str(row["layers"]), row, chosen=row["layers"] == kept) for row in _few(rows, kept, record["best_layers"])
    ]
    if extra := record.get("cut"):
        shown.append(_row(", ".join(map(str, extra["layers"])), extra, chosen=True))
    sentence = (
        f"{_this_cut(record, kept)}{verdict(record)} Measured on {record['queries']:,} queries and "
        f"{record['passages']:,} passages of “{record['source']}”, with {100 * record['level']:.0f} % bootstrap "
        "intervals over queries, before any training: it ranks cuts, it does not foretell the finetuned model."
    )
    return {
        "sentence": sentence,
        "metric": metric,
        "rows": shown,
        "chart": make_chart(f"{metric} by depth, before training", svg, note),
    }


def _kept(stages: Sequence[Stage]) -> int | None:
    """The depth of the run's cut; None where it is a list that is no prefix, or not recorded."""
    config = next((s.config for s in stages if s.name == "truncate"), {})
    layers = (config.get("truncate") or {}).get("layers")
    if isinstance(layers, list):
        return len(layers) if layers == list(range(len(layers))) else None
    return layers if isinstance(layers, int) else None


def _this_cut(record: Mapping[str, Any], kept: int | None) -> str:
    """What the recipe's cut gives beside the best depth, if it was measured."""
    row = record.get("cut") or next((r for r in record["rows"] if r["layers"] == kept), None)
    if row is None:
        return ""
    count = len(row["layers"]) if isinstance(row["layers"], list) else row["layers"]
    best = max(r["recall"]["mean"] for r in record["rows"])
    return (
        f"This cut keeps {count} of {record['base_layers']} layers: {record['metric']} {row['recall']['mean']:.3f}, "
        f"where the best depth has {best:.3f}. "
    )


def _few(rows: Sequence[Mapping[str, Any]], kept: int | None, best: int) -> list[Mapping[str, Any]]:
    """About `_TABLE_ROWS` rows of a deep base: evenly spread ones, the last, the recipe's own and the best."""
    step = -(-len(rows) // _TABLE_ROWS)
    return [r for i, r in enumerate(rows) if i % step == 0 or i == len(rows) - 1 or r["layers"] in (kept, best)]


def _row(label: str, row: Mapping[str, Any], *, chosen: bool) -> dict[str, Any]:
    recall, against = row["recall"], row["against_all"]
    return {
        "label": label,
        "parameters": million(row["parameters"]),
        "recall": recall,
        "against": f"{against['mean']:+.3f}".replace("-", "\N{MINUS SIGN}"),
        "spread": f"{against['low']:+.3f} to {against['high']:+.3f}".replace("-", "\N{MINUS SIGN}"),
        "chosen": chosen,
    }
